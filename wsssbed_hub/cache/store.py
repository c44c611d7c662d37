"""The local cache: every file once, by its sha256, and key folders made of links to them.

``<root>/blobs/ab/ab12…`` holds a file that was checked as it came in; ``….partial`` beside it one
that is on its way. ``<root>/artifacts/<repository>/<target>-<version>-<…>/`` is a key folder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import MANIFEST, check_file, read_manifest
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.cache.locks import hold, shared
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import (
    CHUNK,
    atomic_file,
    atomic_folder,
    check_room,
    disk_errors,
    exclusive,
    sync_folder,
    write_all,
    write_whole,
)
from wsssbed_hub.utils.parallel import JOBS, Stop, at_once
from wsssbed_hub.utils.progress import Progress, adding
from wsssbed_hub.utils.settings import cache_folder

Fetcher = Callable[[File, BinaryIO], object]
"""Writes a file of an artifact to a stream, whose ``tell()`` says how many of its bytes it has."""

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


class Store:
    """The cache in ``root`` (``cache_folder()`` if none is given), shared by processes."""

    def __init__(self, root: Path | None = None):
        self.root = Path(os.path.abspath(root or cache_folder()))

    @property
    def blobs(self) -> Path:
        """Folder of all files; who fetches shares it (see ``locks``)."""
        return self.root / "blobs"

    def blob(self, file: File) -> Path:
        """The place where a file lies, or would lie."""
        digest = file.sha256.removeprefix("sha256:")
        return self.blobs / digest[:2] / digest

    def pull(
        self,
        manifest: Manifest,
        fetch: Fetcher,
        *,
        to: Path | None,
        progress: Progress | None,
        jobs: int = JOBS,
    ) -> Path:
        """A key folder with all that ``manifest`` lists, every byte of it verified just now.

        It is ``to``, or else lies in the cache. ``jobs`` files are fetched at a time, each through
        ``fetch`` in a thread of its own; if one fails the others stop and keep what they have.
        Raises HubError for wrong bytes, a full disk, and if ``to`` is something else already.
        """
        files = [file for chosen in manifest.entries() for file in chosen.entry.files]
        advance = adding(progress, sum(file.size for file in files))
        check_room(self.root, sum(file.size for file in files if not self.blob(file).exists()))

        def get(file: File, stop: Stop) -> None:
            def step(size: int) -> None:
                advance(size)
                stop.check()

            self.fetch(file, fetch, step, stop.wait)

        with disk_errors(self.root), shared(self.blobs):  # so nothing of it is pruned now
            at_once(get, files, jobs)
            if to is not None:
                return self._export(manifest, files, Path(os.path.abspath(to)))
            return self._view(manifest, files)

    def fetch(
        self,
        file: File,
        fetch: Fetcher,
        advance: Callable[[int], None] = lambda size: None,
        waiting: Callable[[], object] | None = None,
    ) -> Path:
        """The blob with the bytes of ``file``: what is in the cache if it is right, else fetched.

        An interrupted fetch goes on where it stopped; what ``advance`` or ``waiting`` (called while
        somebody else fetches the same file) raises is such an interruption. Raises HubError, and
        keeps nothing, for bytes that are not the ones of ``file``.
        """
        blob = self.blob(file)
        if not _is_good(blob, file):
            partial = blob.with_name(f"{blob.name}.partial")
            lock = exclusive(partial, waiting=waiting)
            with disk_errors(self.root, file.size), lock as descriptor:
                if not _is_good(blob, file):  # while this process waited, another fetched it
                    blob.unlink(missing_ok=True)
                    try:
                        _complete(file, descriptor, fetch, advance)
                        os.fsync(descriptor)
                        os.fchmod(descriptor, 0o444)  # folders link to it: they would change too
                        os.replace(partial, blob)
                        sync_folder(blob.parent)
                    finally:
                        if os.fstat(descriptor).st_size == 0 and file.size:
                            partial.unlink(missing_ok=True)
                    return blob
                partial.unlink()
        advance(file.size)
        return blob

    def _view(self, manifest: Manifest, files: list[File]) -> Path:
        """The key folder in the cache; one that is there gets new links where it differs."""
        text = manifest.dump()
        (chosen, *_) = manifest.entries()
        digest = hashlib.sha256(text.encode()).hexdigest()
        name = f"{chosen.target}-{chosen.version}-{digest[:16]}"
        folder = self.root / "artifacts" / manifest.parsed_key.repository / name
        with disk_errors(self.root, len(text)):
            self._assemble(text, files, folder)
            with exclusive(folder, folder=True):
                for file in files:
                    path = folder / file.path
                    if not _same(path, self.blob(file)) and not _is_good(path, file):
                        self._link(file, path)
                if not _holds(folder / MANIFEST, text):
                    write_whole(folder / MANIFEST, text.encode())
                with suppress(OSError):  # a cache that is only read
                    os.utime(folder)  # when it was used last
                hold(folder / chosen.target)
        return folder

    def _export(self, manifest: Manifest, files: list[File], folder: Path) -> Path:
        """The key folder that the user named."""
        with disk_errors(folder.parent, sum(file.size for file in files)):
            if not self._assemble(manifest.dump(), files, folder):
                _check_same(folder, manifest, files)
        return folder

    def _assemble(self, text: str, files: list[File], folder: Path) -> bool:
        """Makes ``folder`` appear whole; False if something is there already."""
        with atomic_folder(folder) as partial:
            if partial is None:
                return False
            for file in files:
                self._link(file, partial / file.path)
            write_whole(partial / MANIFEST, text.encode())
        return True

    def _link(self, file: File, path: Path) -> None:
        """``path`` becomes a link to the blob, or a checked copy on another file system.

        The caller holds the lock of the folder.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(self.blob(file), temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            copy_checked(self.blob(file), path, file)


def copy_checked(source: Path, goal: Path, file: File) -> None:
    """Copies while hashing. Raises HubError, leaving ``goal`` alone, unless it is ``file``'s."""
    digest = hashlib.sha256()
    with open(source, "rb") as inside, atomic_file(goal) as temporary, open(temporary, "wb") as out:
        while data := inside.read(CHUNK):
            digest.update(data)
            out.write(data)
        found = f"sha256:{digest.hexdigest()}"
        if found != file.sha256:
            raise HubError(f"{source} changed: expected {file.sha256}, found {found}.")


def _complete(file: File, descriptor: int, fetch: Fetcher, advance: Callable[[int], None]) -> None:
    """Makes the partial file whole and right, whose lock the caller holds, or raises HubError."""
    with _Partial(file, descriptor, advance) as out:
        had = out.tell()
        found = _rest(file, fetch, out)
        if found != file.sha256 and had:
            # What was left of an earlier run may be what is wrong: once more from the beginning.
            out.seek(0)
            found = _rest(file, fetch, out)
    if found != file.sha256:
        os.ftruncate(descriptor, 0)
        raise HubError(
            f"{file.path}: wrong bytes. Expected {file.sha256}, received {found}. "
            "Nothing of it was kept."
        )


def _rest(file: File, fetch: Fetcher, out: _Partial) -> str:
    """The digest, once what ``out`` lacks is there."""
    try:
        if out.tell() < file.size:
            fetch(file, out)  # type: ignore[arg-type]
        if out.tell() < file.size:
            raise HubError(
                f"{file.path} is cut short: {out.tell():,} of {file.size:,} bytes came. Run it "
                "again, it goes on from there."
            )
        return out.digest()
    except _TooLong:
        return f"more than {file.size:,} bytes"


class _TooLong(HubError):
    """More bytes came than the file has."""


class _Partial(io.RawIOBase):
    """The partial file while it is received: counted and hashed, in a thread, as it is written.

    It is written at its end; ``seek(0)`` gives up what is there.
    """

    def __init__(self, file: File, descriptor: int, advance: Callable[[int], None]):
        self._most, self._descriptor, self._advance = file.size, descriptor, advance
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        self._digest, self._size = hashlib.sha256(), 0
        if os.fstat(descriptor).st_size > file.size:
            os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        while data := os.read(descriptor, CHUNK):
            self._digest.update(data)
            self._size += len(data)
        advance(self._size)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or offset not in (0, self._size):
            raise io.UnsupportedOperation("a partial file grows, or begins again")
        if offset < self._size:
            self._wait()
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            self._advance(-self._size)
            self._digest, self._size = hashlib.sha256(), 0
        return offset

    def truncate(self, size: int | None = None) -> int:
        """Nothing lies behind the place where is written."""
        return self._size

    def write(self, data: Any) -> int:
        """Raises _TooLong beyond the size of the file, and what went wrong with earlier pieces."""
        piece = bytes(data)
        if self._size + len(piece) > self._most:
            raise _TooLong
        self._wait()
        self._last = self._thread.submit(self._take, piece)
        self._size += len(piece)
        self._advance(len(piece))
        return len(piece)

    def _take(self, piece: bytes) -> None:
        self._digest.update(piece)
        write_all(self._descriptor, piece)

    def _wait(self) -> None:
        """For the piece that is being written. Raises its error."""
        if self._last is not None:
            self._last.result()

    def digest(self) -> str:
        self._wait()
        return f"sha256:{self._digest.hexdigest()}"

    def close(self) -> None:
        self._thread.shutdown()
        super().close()


def _is_good(blob: Path, file: File) -> bool:
    try:
        return blob.stat().st_size == file.size and file_digest(blob) == file.sha256
    except FileNotFoundError:
        return False


def _same(path: Path, blob: Path) -> bool:
    return path.exists() and os.path.samefile(path, blob)


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_bytes() == text.encode()


def _check_same(folder: Path, manifest: Manifest, files: list[File]) -> None:
    advice = "Remove it, or choose another folder, and run it again."
    try:
        there = read_manifest(folder)
        if there != manifest:
            raise HubError(f"it holds {there.key} with other versions or targets.")
        for file in files:
            check_file(folder, file)
    except HubError as error:
        raise HubError(
            f"{folder} is there already and is not {manifest.key}: {error} {advice}"
        ) from None
