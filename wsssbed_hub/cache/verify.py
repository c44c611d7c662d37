"""Reading everything in the cache again, to find what has gone bad since it was fetched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.cache.locks import if_free
from wsssbed_hub.cache.prune import FETCHING, remove_folder
from wsssbed_hub.cache.scan import Artifact, Contents, Folder, identity, look
from wsssbed_hub.cache.store import Store
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import CHUNK, expect_trouble
from wsssbed_hub.utils.progress import Progress


class Damage(NamedTuple):
    """A file that is not what it should be; ``found`` says what it is instead."""

    artifact: str | None
    """What it belongs to, if the cache still knows."""
    path: Path
    expected: str
    found: str
    links: int
    """Names of these bytes outside the cache: exported folders that are damaged as well."""


@dataclass
class Verified:
    """What was read, what of it was bad, and what was done about that."""

    files: int
    size: int
    damaged: list[Damage]
    removed: list[Path]
    kept: list[tuple[str, str]]


def verify_cache(
    store: Store | None = None, *, remove: bool = False, progress: Progress | None = None
) -> Verified:
    """Recomputes the sha256 of every file in the cache; ``progress(bytes, of)`` as it goes.

    Nothing is changed unless ``remove``: then damaged files go, with the key folders that have
    them, and the next ``pull`` fetches them anew. What a process uses stays.
    """
    store = store or Store()
    contents = look(store)
    reader = _Reader(contents, progress)
    owners = _owners(contents)
    damaged = [*_bad_blobs(contents, reader, owners), *_bad_folders(contents, reader)]
    verified = Verified(len(reader.digests), reader.done, damaged, [], [])
    if remove and damaged:
        with expect_trouble(store.root):
            _remove(store, contents, verified)
    return verified


class _Reader:
    """The sha256 of files, each read once whatever it is called."""

    def __init__(self, contents: Contents, progress: Progress | None):
        self.digests: dict[tuple[int, int], str] = {}
        self.done = 0
        self._total = sum(_size(where) for where in _places(contents).values())
        self._progress = progress

    def digest(self, path: Path) -> str | None:
        """64 hexadecimal digits, or what is there instead; None if there is nothing."""
        where = identity(path)
        if where not in self.digests:
            if not path.is_file():
                return "something that is no file" if os.path.lexists(path) else None
            digest = hashlib.sha256()
            try:
                with open(path, "rb") as file:
                    while data := file.read(CHUNK):
                        digest.update(data)
                        self._advance(len(data))
            except FileNotFoundError:
                return None
            except OSError as error:
                return f"nothing: {error.strerror}"
            self.digests[where] = digest.hexdigest()
        return self.digests[where]

    def _advance(self, size: int) -> None:
        self.done += size
        if self._progress is not None:
            self._progress(self.done, max(self._total, self.done))


def _places(contents: Contents) -> dict[tuple[int, int], Path]:
    """One name of each file that will be read."""
    paths = [*contents.blobs.values()]
    paths += [path for one in contents.artifacts for folder in one.folders for path in folder.files]
    return {identity(path): path for path in paths}


def _bad_blobs(contents: Contents, reader: _Reader, owners: dict[str, str]) -> Iterator[Damage]:
    for expected, path in contents.blobs.items():
        found = reader.digest(path)
        if found not in (None, expected):
            yield Damage(owners.get(expected), path, expected, str(found), _outside(contents, path))


def _bad_folders(contents: Contents, reader: _Reader) -> Iterator[Damage]:
    for artifact in contents.artifacts:
        for folder in artifact.folders:
            if folder.path.exists():
                yield from _bad_folder(contents, artifact, folder, reader)


def _bad_folder(
    contents: Contents, artifact: Artifact, folder: Folder, reader: _Reader
) -> Iterator[Damage]:
    path = folder.path / MANIFEST
    found = reader.digest(path)
    if found is None or not found.startswith(folder.digest):
        expected = f"{folder.digest}…"
        yield Damage(artifact.name, path, expected, found or "nothing", _outside(contents, path))
    if path not in folder.files:
        return
    try:
        entries = list(read_manifest(folder.path).entries())
    except HubError:
        return  # said already
    for file in (file for one in entries for file in one.entry.files):
        expected = file.sha256.removeprefix("sha256:")
        path = folder.path / file.path
        blob = contents.blobs.get(expected)
        if blob is not None and identity(blob) == identity(path):
            continue  # the same bytes, and said already
        found = "a link" if path.is_symlink() else reader.digest(path) or "nothing"
        if found != expected:
            yield Damage(artifact.name, path, expected, found, _outside(contents, path))


def _owners(contents: Contents) -> dict[str, str]:
    """Whose a file is, by its sha256."""
    names: dict[str, list[str]] = {}
    for artifact in contents.artifacts:
        for digest in artifact.digests:
            names.setdefault(digest, []).append(artifact.name)
    return {digest: ", ".join(whose) for digest, whose in names.items()}


def _outside(contents: Contents, path: Path) -> int:
    """How many names the file has that are not the cache's."""
    where = identity(path)
    inside = [*contents.blobs.values()]
    inside += [
        file for one in contents.artifacts for folder in one.folders for file in folder.files
    ]
    try:
        return max(0, path.lstat().st_nlink - sum(identity(name) == where for name in inside))
    except FileNotFoundError:
        return 0


def _remove(store: Store, contents: Contents, verified: Verified) -> None:
    bad = {identity(damage.path) for damage in verified.damaged}
    paths = {damage.path for damage in verified.damaged}
    for artifact in contents.artifacts:
        for folder in artifact.folders:
            damaged = any(identity(path) in bad for path in folder.files)
            if not damaged and not any(path.is_relative_to(folder.path) for path in paths):
                continue
            why = remove_folder(folder)
            if why is None:
                verified.removed.append(folder.path)
            else:
                verified.kept.append((artifact.name, why))
    with if_free(store.blobs) as free:
        for damage in verified.damaged:
            if contents.blobs.get(damage.expected) != damage.path:
                continue
            if free:
                damage.path.unlink(missing_ok=True)
                verified.removed.append(damage.path)
            else:
                verified.kept.append((str(damage.path), FETCHING))


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
