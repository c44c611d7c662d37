from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from wsssbed_hub.utils.parallel import Stop, at_once, pipeline


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


def test_a_pipeline_gives_the_results_in_order_and_works_in_this_thread() -> None:
    here = threading.get_ident()
    finished_by: set[int] = set()

    def finish(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        finished_by.add(threading.get_ident())
        return number + 1

    for threads in (0, 1, 3):
        finished_by.clear()
        worked: list[int] = []

        def work(number: int, worked: list = worked) -> int:
            assert threading.get_ident() == here
            worked.append(number)
            return 10 * number

        found = list(pipeline(range(20), abs, work, finish, threads=threads))
        assert found == [10 * number + 1 for number in range(20)]
        assert worked == list(range(20))
        assert (here in finished_by) == (threads == 0)


def test_at_once_the_threads_work_too() -> None:
    """The first item is worked on until the second is, in another thread."""
    both = threading.Barrier(2, timeout=60)
    workers: set[int] = set()

    def work(number: int) -> int:
        workers.add(threading.get_ident())
        if number < 2:
            both.wait()
        return number

    steps = (abs, work, lambda number: number + 1)
    assert list(pipeline(range(9), *steps, threads=2, at_once=True)) == [*range(1, 10)]
    assert len(workers) == 2
    assert threading.get_ident() not in workers


def test_the_work_waits_neither_for_what_comes_before_nor_for_what_comes_after() -> None:
    """The first item is finished only after the third was worked on, which was read meanwhile."""
    third = threading.Event()

    def work(number: int) -> int:
        if number == 3:
            third.set()
        return number

    def finish(number: int) -> int:
        assert third.wait(60)
        return number

    assert list(pipeline([1, 2, 3], int, work, finish, threads=2)) == [1, 2, 3]


@pytest.mark.parametrize("step", ["read", "work", "finish"])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("at_once", [False, True])
def test_an_error_anywhere_ends_a_pipeline(step: str, threads: int, at_once: bool) -> None:
    def fails_at(name: str) -> Callable[[int], int]:
        def do(number: int) -> int:
            if name == step and number == 5:
                raise ValueError(f"{number} in {name}")
            return number

        return do

    steps = map(fails_at, ("read", "work", "finish"))
    found = pipeline(range(9), *steps, threads=threads, at_once=at_once)
    with pytest.raises(ValueError, match=f"5 in {step}"):
        list(found)


def test_few_items_of_a_pipeline_are_in_memory() -> None:
    read: list[int] = []
    worked: list[int] = []

    def note(number: int) -> int:
        read.append(number)
        return number

    def work(number: int) -> int:
        worked.append(number)
        assert len(read) - len(worked) <= 5
        return number

    found = pipeline(range(100), note, work, int, threads=2)
    assert next(found) == 0
    assert len(worked) <= 8
    found.close()
