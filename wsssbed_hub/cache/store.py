"""The local cache: every file once, by its sha256, and key folders made of links to them.

``<root>/blobs/ab/ab12…`` holds a file that was checked as it came in; ``….partial`` beside it one
that is on its way. ``<root>/artifacts/<repository>/<target>-<version>-<…>/`` is a key folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import MANIFEST, check_file, read_manifest
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.cache.locks import keep, sharing
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import (
    CHUNK,
    atomic_folder,
    check_room,
    exclusive,
    expect_trouble,
    sync_folder,
    write_all,
    write_whole,
)
from wsssbed_hub.utils.parallel import JOBS, Stop, at_once
from wsssbed_hub.utils.progress import Progress, adding
from wsssbed_hub.utils.settings import cache_folder

Opener = Callable[[File, int], BinaryIO]
"""Opens a file of an artifact for reading from an offset in bytes."""

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Store:
    """The cache in ``root`` (``cache_folder()`` if none is given), shared by processes."""

    def __init__(self, root: Path | None = None):
        self.root = Path(os.path.abspath(root or cache_folder()))

    @property
    def blobs(self) -> Path:
        """Folder of all files; who fetches shares it (see ``holding``)."""
        return self.root / "blobs"

    def blob(self, file: File) -> Path:
        """Where a file lies, or would lie."""
        digest = file.sha256.removeprefix("sha256:")
        return self.blobs / digest[:2] / digest

    def pull(
        self,
        manifest: Manifest,
        open_file: Opener,
        *,
        to: Path | None,
        progress: Progress | None,
        jobs: int = JOBS,
    ) -> Path:
        """A key folder with all that ``manifest`` lists, every byte of it verified just now.

        It is ``to``, or else lies in the cache. ``jobs`` files are fetched at a time, each through
        ``open_file`` in a thread of its own; if one fails the others stop and keep what they have.
        Raises HubError for wrong bytes, a full disk, and if ``to`` is something else already.
        """
        files = [file for chosen in manifest.entries() for file in chosen.entry.files]
        advance = adding(progress, sum(file.size for file in files))
        check_room(self.root, sum(file.size for file in files if not self.blob(file).exists()))

        def fetch(file: File, stop: Stop) -> None:
            def step(size: int) -> None:
                advance(size)
                stop.check()

            self.fetch(file, open_file, step, stop.wait)

        with expect_trouble(self.root), sharing(self.blobs):  # so nothing of it is pruned now
            at_once(fetch, files, jobs)
            if to is not None:
                return self._export(manifest, files, Path(os.path.abspath(to)))
            return self._view(manifest, files)

    def fetch(
        self,
        file: File,
        open_file: Opener,
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
            with expect_trouble(self.root, file.size), lock as descriptor:
                if not _is_good(blob, file):  # while this process waited, another fetched it
                    blob.unlink(missing_ok=True)
                    try:
                        _Fetch(file, blob, descriptor, open_file, advance).run()
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
        with expect_trouble(self.root, len(text)):
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
                keep(folder / chosen.target)
        return folder

    def _export(self, manifest: Manifest, files: list[File], folder: Path) -> Path:
        """The key folder that the user named."""
        with expect_trouble(folder.parent, sum(file.size for file in files)):
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
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            copy_checked(self.blob(file), temporary, file)
        os.replace(temporary, path)
        sync_folder(path.parent)


def copy_checked(source: Path, goal: Path, file: File) -> None:
    """Copies while hashing. Raises HubError, leaving no ``goal``, unless it is ``file``'s bytes."""
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as inside, open(goal, "wb") as out:
            while data := inside.read(CHUNK):
                digest.update(data)
                out.write(data)
            out.flush()
            os.fsync(out.fileno())
        found = f"sha256:{digest.hexdigest()}"
        if found != file.sha256:
            raise HubError(f"{source} changed: expected {file.sha256}, found {found}.")
    except BaseException:
        goal.unlink(missing_ok=True)
        raise


class _Fetch:
    """One file on its way into the cache; the partial file's lock is held by the caller."""

    def __init__(
        self,
        file: File,
        blob: Path,
        descriptor: int,
        open_file: Opener,
        advance: Callable[[int], None],
    ):
        self.file, self.blob, self.descriptor = file, blob, descriptor
        self.open_file, self.advance = open_file, advance

    def run(self) -> None:
        partial = self.blob.with_name(f"{self.blob.name}.partial")
        digest, done = self._resume()
        found = self._receive(digest, done)
        if found != self.file.sha256 and done:
            # What was left of an earlier run may be what is wrong: once more from the beginning.
            self.advance(-os.fstat(self.descriptor).st_size)
            os.ftruncate(self.descriptor, 0)
            found = self._receive(hashlib.sha256(), 0)
        if found != self.file.sha256:
            os.ftruncate(self.descriptor, 0)
            raise HubError(
                f"{self.file.path}: wrong bytes. Expected {self.file.sha256}, received {found}. "
                "Nothing of it was kept."
            )
        os.fsync(self.descriptor)
        os.fchmod(self.descriptor, 0o444)  # folders link to it: a change would change them all
        os.replace(partial, self.blob)
        sync_folder(self.blob.parent)

    def _resume(self) -> tuple[_Hash, int]:
        """The hash of what is there already and its size."""
        digest = hashlib.sha256()
        done = os.fstat(self.descriptor).st_size
        if done > self.file.size:
            os.ftruncate(self.descriptor, 0)
            return digest, 0
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        while data := os.read(self.descriptor, CHUNK):
            digest.update(data)
        self.advance(done)
        return digest, done

    def _receive(self, digest: _Hash, done: int) -> str:
        os.lseek(self.descriptor, done, os.SEEK_SET)

        def take(data: bytes) -> None:
            digest.update(data)
            write_all(self.descriptor, data)

        with self.open_file(self.file, done) as source, _Aside(take) as aside:
            while data := source.read(min(CHUNK, self.file.size - done + 1)):
                done += len(data)
                if done > self.file.size:
                    return f"more than {self.file.size:,} bytes"
                aside.put(data)
                self.advance(len(data))
        if done < self.file.size:
            raise HubError(
                f"{self.file.path} is cut short: {done:,} of {self.file.size:,} bytes came. Run it "
                "again, it goes on from there."
            )
        return f"sha256:{digest.hexdigest()}"


class _Aside:
    """Gives a piece to ``action`` while the next one is received; all are through on leaving."""

    def __init__(self, action: Callable[[bytes], None]):
        self._action = action
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def put(self, data: bytes) -> None:
        """Raises what went wrong with the pieces before."""
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(self._action, data)

    def __enter__(self) -> _Aside:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._thread.shutdown()
        if kind is None and self._last is not None:
            self._last.result()


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
