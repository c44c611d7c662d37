"""Who uses what of the cache: shared locks for those who read, and a try at what nobody holds.

All are ``flock`` locks on the things themselves, as those of ``files.exclusive`` are: a killed
process leaves none behind, and a forked one holds what its parent holds.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOST = 64  # descriptors that one process spends on what it uses
_kept: dict[Path, int] = {}  # what this process goes on using, the latest last


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Holds ``folder``, made if it is missing, together with all others who share it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def keep(folder: Path) -> None:
    """Shares ``folder`` until this process and those that it forks end, or until it has come to use
    ``_MOST`` others."""
    old = _kept.pop(folder, None)
    if old is not None:
        os.close(old)  # perhaps of another folder that was there
    if len(_kept) >= _MOST:
        os.close(_kept.pop(next(iter(_kept))))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _kept[folder] = descriptor


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Whether nobody holds or shares the file or folder at ``path``; then nobody else will, while
    this lasts. It is not free either if it is not there, or is a symbolic link."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        yield _try(descriptor, path)
    finally:
        os.close(descriptor)


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except (BlockingIOError, FileNotFoundError):
        return False
