"""Locks on the cache: shared ones for those who read, and a try at what nobody holds.

All are ``flock`` locks on the things themselves, as those of ``utils.files.exclusive`` are: a
killed process leaves none behind, and a forked one holds what its parent holds.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST = 64  # descriptors that one process spends on what it uses
_held: dict[Path, int] = {}  # what this process goes on using, the latest last


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Holds ``folder``, made if it is missing, together with all others who share it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _share(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def hold(folder: Path) -> None:
    """Shares ``folder`` until this process and those that it forks end, or until it has come to use
    ``_MOST`` others."""
    old = _held.pop(folder, None)
    if old is not None:
        os.close(old)  # perhaps of another folder that was there
    if len(_held) >= _MOST:
        os.close(_held.pop(next(iter(_held))))
    _held[folder] = _share(folder)


def _share(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Whether nobody holds or shares the file or folder at ``path``; then nobody else will, while
    this lasts. What is not there is held by nobody; a symbolic link is not to be had."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield not os.path.lexists(path)
        return
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
