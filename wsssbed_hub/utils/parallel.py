"""Several items at once, in threads: the same thing done with each, where the first error ends all,
or one step for all in this thread, with what comes before and after it in others."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Read = TypeVar("Read")
Made = TypeVar("Made")
Result = TypeVar("Result")

JOBS = 4  # transfers at once, where nobody says otherwise
_GRACE = 3.0  # seconds that others get to end when one has failed


class Stopped(BaseException):
    """Raised in a thread that is to end because another one failed; it never gets out.

    No Exception, so that nobody on the way takes it for an error and tries again.
    """


class Stop:
    """Whether the threads are to end. Each asks now and then, where it can end well."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises Stopped if it is time to end."""
        if self._event.is_set():
            raise Stopped

    def wait(self, seconds: float = 0.1) -> None:
        """Waits, and raises Stopped as soon as it is time to end."""
        if self._event.wait(seconds):
            raise Stopped


def at_once(action: Callable[[T, Stop], object], items: Sequence[T], jobs: int = JOBS) -> None:
    """Calls ``action(item, stop)`` for every item, ``jobs`` at a time, begun in their order.

    If one raises, or a signal does so here, the others are told through ``stop``, and what came
    first is raised when they have ended. One that does not end within seconds, as it hears nothing
    from a server, is left behind: it ends with its next ``stop.check()``, or with the process.
    """
    stop = Stop()
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for item in items:
        todo.put(item)
    count = min(jobs, len(items))
    # In threads even if it is one, as a library that waits may keep signals from the main thread;
    # daemons, as the interpreter waits for all others when it ends, however long they hear nothing.
    threads = [
        threading.Thread(target=_thread, args=(action, todo, stop, ended), daemon=True)
        for _ in range(count)
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stop.set()
        until = time.monotonic() + _GRACE
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))


def _work(action: Callable[[T, Stop], object], todo: queue.SimpleQueue[T], stop: Stop) -> None:
    while True:
        try:
            item = todo.get_nowait()
        except queue.Empty:
            return
        stop.check()
        action(item, stop)


def _thread(
    action: Callable[[T, Stop], object],
    todo: queue.SimpleQueue[T],
    stop: Stop,
    ended: queue.SimpleQueue[BaseException | None],
) -> None:
    try:
        _work(action, todo, stop)
    except Stopped:
        ended.put(None)
    except BaseException as error:
        ended.put(error)
    else:
        ended.put(None)


def _same(item: T) -> T:
    return item


def pipeline(
    items: Iterable[T],
    read: Callable[[T], Read],
    work: Callable[[Read], Made],
    finish: Callable[[Made], Result],
    *,
    threads: int,
    at_once: bool = False,
    initializer: Callable[[], object] | None = None,
) -> Generator[Result]:
    """``finish(work(read(item)))`` of each item, in order.

    ``work`` happens in this thread, item after item; ``threads`` others read ahead of it and finish
    behind, so that it never waits for them as long as they keep up. With ``at_once`` they work too,
    each at an item of its own. With 0 threads all happens here. A few items for each thread are in
    memory. To be closed when it is left early.
    """

    def whole(item: T) -> Result:
        return finish(work(read(item)))

    if threads == 0:
        yield from map(whole, items)
        return
    if at_once:
        yield from pipeline(items, whole, _same, _same, threads=threads, initializer=initializer)
        return
    ahead = 2 * threads + 1
    remaining = iter(items)
    reading: deque[Future[Read]] = deque()
    finishing: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, initializer=initializer)

    def read_ahead() -> None:
        while len(reading) < ahead:
            try:
                reading.append(pool.submit(read, next(remaining)))
            except StopIteration:
                return

    try:
        read_ahead()
        while reading:
            value = reading.popleft().result()
            read_ahead()
            finishing.append(pool.submit(finish, work(value)))
            while finishing and (finishing[0].done() or len(finishing) > ahead):
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
