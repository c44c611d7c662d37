"""Files that are whole or not there, whatever stops the process that writes them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsssbed_hub.utils.errors import HubError

CHUNK = 1 << 20  # bytes that are copied and hashed at a time

_EXPECTED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextmanager
def disk_errors(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Raises a full disk, or one that cannot be written, as a HubError.

    ``needed`` is the number of bytes that were to be written below ``folder``, where it is known.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            room = "" if needed is None else f"; {needed:,} bytes are needed there"
            raise HubError(
                f"{folder}: the disk is full{room}. Make room and run it again, it goes on where "
                "it stopped."
            ) from None
        if error.errno in _EXPECTED:
            raise HubError(f"{folder} cannot be written: {error.strerror}.") from None
        raise


def check_room(folder: Path, needed: int) -> None:
    """Raises HubError if the disk under ``folder``, which need not exist, has less room."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise HubError(
            f"{folder}: {needed:,} bytes are needed there and the disk has {free:,} left. Make "
            "room and run it again."
        )


@contextmanager
def atomic_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` when this is left without an error.

    ``path`` holds the old bytes until the new ones are on the disk; without ``sync`` they are
    whenever the system comes to it. Others who write ``path`` wait; what a killed one left goes.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with exclusive(temporary) as descriptor:
        try:
            os.ftruncate(descriptor, 0)  # what a killed process left
            yield temporary
            if sync:
                sync_file(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if sync:
        sync_folder(path.parent)


def write_whole(path: Path, data: bytes, *, sync: bool = True) -> None:
    """``data`` as the file at ``path``, by ``atomic_file``."""
    with atomic_file(path, sync=sync) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(folder: Path, *, resume: bool = False) -> Iterator[Path | None]:
    """A folder to fill, which is renamed to ``folder`` when this is left without an error.

    Gives None instead if something is at ``folder``, an empty folder excepted. Others who make it
    wait. The folder to fill, ``.<name>.partial`` beside it, is empty, and an error removes it; with
    ``resume`` it is kept, and holds what a run left that did not come to its end.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if not is_free(folder):
        yield None
        return
    with exclusive(partial, folder=True):
        if is_free(folder):
            try:
                if not resume:
                    empty_folder(partial)
                yield partial
                os.rename(partial, folder)
            except BaseException:
                if not resume:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            sync_folder(folder.parent)
            return
        shutil.rmtree(partial)  # while this process waited, another was faster
    yield None


def is_free(path: Path) -> bool:
    """Whether a folder may be put at ``path``: nothing is there, or an empty folder."""
    if path.is_symlink() or not path.is_dir():
        return not os.path.lexists(path)
    return not any(path.iterdir())


def empty_folder(folder: Path) -> None:
    """Removes what is in ``folder``; links are removed and not followed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """All of ``data``: a single write may stop early, as it does when the disk fills."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_file(path: Path) -> None:
    """Brings what other code wrote to ``path`` to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Brings the names in ``folder`` to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(
    path: Path, *, folder: bool = False, waiting: Callable[[], object] | None = None
) -> Iterator[int]:
    """Holds the file (or ``folder``) at ``path``, made if it is missing; yields its descriptor.

    Others wait; with ``waiting`` they call it again and again meanwhile, and it may raise or rest
    a little. The lock lies on the thing itself, so a killed process leaves none behind, and it
    goes along when the thing is renamed into place: who waited then finds another thing at
    ``path``, or none, and takes that.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            with suppress(FileExistsError):
                os.mkdir(path)
        try:
            descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError:
            continue  # another process has just renamed it
        try:
            _lock(descriptor, waiting)
            if _is_at(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, waiting: Callable[[], object] | None) -> None:
    while waiting is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waiting()
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
