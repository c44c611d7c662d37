"""Processes that are killed with SIGKILL where it hurts: just before each change of the disk."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CHANGES = ("open", "write", "fsync", "link", "mkdir", "rename", "replace", "unlink")


def deaths(action: Callable[[], object], step: int = 1) -> Iterator[int]:
    """Runs ``action`` again and again, killed a little later each time, until it gets through.

    Yields the number of the change (opening, writing, renaming …) that it was killed before; a
    write that is killed has written half. Every run finds what the killed ones left.
    """
    for number in itertools.count(1, step):
        if not _is_killed(action, number):
            return
        yield number


def in_child(action: Callable[[], object]) -> int:
    """Process id of a forked child that runs ``action`` and exits with 0, or 1 if it raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int:
    """Exit code of the child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _is_killed(action: Callable[[], object], number: int) -> bool:
    def run() -> None:
        counter = itertools.count(1)
        for name in _CHANGES:
            setattr(os, name, _deadly(getattr(os, name), name, counter, number))
        whole = Path.write_bytes
        Path.write_bytes = _deadly(whole, "write", counter, number)  # type: ignore[method-assign]
        action()

    code = exit_code(in_child(run))
    assert code in (0, -signal.SIGKILL), f"the run ended with {code}"
    return code != 0


def _deadly(function: Any, name: str, counter: Iterator[int], number: int) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        if next(counter) == number:
            if name == "write":
                function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    return call
