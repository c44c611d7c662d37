"""SIGINT and SIGTERM: a clean end, at a moment that suits, with the exit code a shell expects."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], Any]


class Interruption(KeyboardInterrupt):
    """Somebody asked this process to end; the exit code is 128 + the signal's number."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def raising() -> Iterator[None]:
    """Signals raise ``Interruption`` at once: for work that may stop anywhere."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interruption(number, "Stopped. Run the same command again to go on.")

    with _handled_by(handle):
        yield


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Signals are noted: the yielded function gives the first one's number, or 0.

    A second SIGINT does not wait: it raises ``Interruption``.
    """
    noted: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if noted and number == signal.SIGINT:
            raise Interruption(number, "Stopped at once. The last checkpoint is whole.")
        noted.append(number)

    with _handled_by(handle):
        yield lambda: noted[0] if noted else 0


def ignore_in_worker() -> None:
    """In a process that loads data: signals to the whole group are its parent's affair.

    Terminals, ``timeout`` and job schedulers signal every process; the batches are still needed
    then, to finish the step. The loader tells its processes through a queue when to end.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handle in before.items():
            signal.signal(number, handle)
