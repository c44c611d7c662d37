from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wsssbed_hub.utils.parallel import Stop, at_once


def test_each_item_once_and_so_many_at_a_time() -> None:
    here, most, done, lock = 0, 0, [], threading.Lock()

    def action(item: int, stop: Stop) -> None:
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
        time.sleep(0.01)
        with lock:
            here -= 1
            done.append(item)

    at_once(action, range(20), jobs=3)
    assert sorted(done) == list(range(20))
    assert most == 3


def test_one_at_a_time_is_done_in_order_by_one_thread() -> None:
    done: list[tuple[str, int]] = []
    at_once(lambda item, stop: done.append((item, threading.get_ident())), "abc", jobs=1)
    assert done == [(item, done[0][1]) for item in "abc"]
    at_once(lambda item, stop: done.clear(), [], jobs=4)
    assert len(done) == 3


def test_the_first_error_stops_the_others() -> None:
    begun, stopped = [], []

    def action(item: int, stop: Stop) -> None:
        begun.append(item)
        if item == 1:
            while len(begun) < 3:
                stop.wait(0.001)
            raise ValueError("the first")
        try:
            while True:
                stop.wait(0.01)
        except BaseException:
            stopped.append(item)
            raise ValueError("not the first") from None

    with pytest.raises(ValueError, match=r"^the first$"):
        at_once(action, range(9), jobs=3)
    assert sorted(stopped) == [0, 2]
    assert sorted(begun) == [0, 1, 2]  # nothing is begun afterwards


def test_who_hears_nothing_is_left_behind() -> None:
    silent = threading.Event()

    def action(item: int, stop: Stop) -> None:
        if item:
            raise ValueError("loud")
        silent.wait(60)

    start = time.monotonic()
    with pytest.raises(ValueError, match="loud"):
        at_once(action, range(2), jobs=2)
    assert time.monotonic() - start < 30
    silent.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_although_a_thread_hears_nothing(number: int) -> None:
    program = """if True:
        import os, threading
        from wsssbed_hub.utils.parallel import at_once
        def action(item, stop):
            os.write(1, b"here\\n")
            threading.Event().wait(100)
        at_once(action, range(2), jobs=2)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    assert [child.stdout.readline() for _ in range(2)] == [b"here\n"] * 2
    os.kill(child.pid, number)
    assert child.wait(30) == -number
