"""How a stage ends: signals, errors of the machine, and what they become on stderr."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from stages.runtime import distributed
from wsssbed_hub.utils.errors import HubError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], Any]
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)
_SIGNS = (
    ("can't allocate memory", "memory"),
    ("out of memory", "memory"),
    ("deterministic implementation", "deterministic"),
    ("DataLoader worker", "worker"),
    ("onnection closed by", "process"),
    ("onnection reset by", "process"),
    ("NCCL", "process"),
)
_ADVICE = {
    "memory": (
        "The memory is exhausted. On a larger machine the same command goes on from the last "
        "checkpoint. A smaller --batch-size or --precision bf16 needs less; either is another "
        "training, which starts with --fresh."
    ),
    "deterministic": (
        "An operation of this network has no deterministic implementation on this device. Leave "
        "--deterministic out, or use --device cpu."
    ),
    "worker": (
        "A process that loads images died. In a container that is often its small shared memory: "
        "start it with --shm-size 8g, or use fewer --workers (0 works everywhere)."
    ),
    "process": "The connection to another of the processes is lost. If it ended, it says why.",
}


def guarded(work: Callable[[], None]) -> int:
    """Do the work; returns the exit code.

    An expected error becomes one message on stderr, an exception that nobody expects a traceback.
    """
    try:
        with signals_raise(), explained("The stage stopped"):
            work()
        distributed.stop()  # after an error the others may be gone, and leaving would wait for them
    except HubError as error:
        _complain(str(error))
        return error.exit_code
    except distributed.SaidElsewhere as end:
        return int(str(end.code))
    except Interruption as end:
        _complain(str(end), kind="stopped")
        return end.exit_code
    except OSError as error:
        if error.errno not in _DISK:
            return _unexpected()
        where = f" ({error.filename})" if error.filename else ""
        _complain(f"{error.strerror}{where}. Mend that and run it again, it goes on.")
        return 1
    except Exception as error:
        return _unexpected(*getattr(error, "__notes__", ()))
    return 0


@contextmanager
def blamed(assigned: Sequence[str]) -> Iterator[None]:
    """What nobody expects may come of the values that the person gave to fields of a recipe,
    ``NAME=VALUE``: not every value that cannot be is refused."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        if assigned:
            error.add_note(f"Or it comes of --set {' '.join(assigned)}: try it without.")
        raise


def _unexpected(*notes: str) -> int:
    traceback.print_exc()
    mistake = "This is a mistake in the program, or in a method's file."
    _complain(" ".join([mistake, *notes, "The last checkpoint is whole."]))
    return 1


def _complain(message: str, kind: str = "error") -> None:
    who = "" if distributed.is_main() else f"process {distributed.rank()}: "
    print(f"{who}{kind}: {message}", file=sys.stderr, flush=True)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Raises expected errors of the machine as a HubError that says ``where`` it happened."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = _kind(error)
        if kind is None:
            raise
        said = " ".join(str(error).split())[:300]
        raise HubError(f"{where}: {_ADVICE[kind]}" + (f" ({said})" if said else "")) from None


def _kind(error: BaseException) -> str | None:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    return next((kind for sign, kind in _SIGNS if sign in str(error)), None)


class Interruption(KeyboardInterrupt):
    """Somebody asked this process to end; the exit code is 128 + the signal's number."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Signals raise ``Interruption`` at once: for work that may stop anywhere."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interruption(number, "Stopped. Run the same command again to go on.")

    with _handled_by(handle):
        yield


@contextmanager
def signals_noted() -> Iterator[Callable[[], int]]:
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


def ignore_signals() -> None:
    """In a process that loads data: signals to the whole group are its parent's affair.

    Terminals, ``timeout`` and job schedulers signal every process; the batches are still needed
    then, to finish the step. Who starts such a process ends it with SIGKILL at the latest.
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
