"""Reading everything in the cache again, to find what has gone bad since it was fetched."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.cache.locks import try_exclusive
from wsssbed_hub.cache.prune import FETCHING, remove_folder
from wsssbed_hub.cache.scan import Contents, scan
from wsssbed_hub.cache.store import Store
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors
from wsssbed_hub.utils.progress import Progress, adding

NOTHING = "nothing"


class Damage(NamedTuple):
    """A file that is not what it should be; ``found`` says what it is instead."""

    artifact: str | None
    """Its owner, if the cache still knows."""
    path: Path
    expected: str
    found: str
    links: int
    """Names of these bytes outside the cache: exported folders that are damaged as well."""


@dataclass
class CacheCheck:
    """Files that were read, those of them that were bad, and what was done about that."""

    files: int
    size: int
    damaged: list[Damage]
    removed: list[Path] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)


def verify_cache(
    store: Store | None = None, *, remove: bool = False, progress: Progress | None = None
) -> CacheCheck:
    """Recomputes the sha256 of every file in the cache; ``progress(bytes, of)`` as it goes.

    Nothing is changed unless ``remove``: then damaged files go, with the key folders that have
    them, and the next ``pull`` fetches them anew. What a process uses stays.
    """
    store = store or Store()
    contents = scan(store)
    paths = [*contents.blobs.values(), *(path for one in contents.artifacts for path in one.files)]
    links = contents.links_elsewhere(paths)
    advance = adding(progress, contents.size(paths))
    digests: dict[tuple[int, int], str] = {}

    def digest(path: Path) -> str:
        inode = contents.inode(path)
        if inode not in digests:
            digests[inode] = _digest(path)
            advance(contents.status[path].st_size)
        return digests[inode]

    damaged = []
    for whose, path, expected in _claims(contents):
        found = digest(path) if path in links else _digest(path)
        gone = found == NOTHING and path in links  # since the cache was looked through
        if not found.startswith(expected) and not gone:
            damaged.append(Damage(whose, path, expected, found, links.get(path, 0)))
    check = CacheCheck(len(digests), contents.size(paths), damaged)
    if remove and damaged:
        with disk_errors(store.root):
            _remove(store, contents, check)
    return check


def _claims(contents: Contents) -> Iterator[tuple[str | None, Path, str]]:
    """Of each file whose it is, its path, and how its sha256 begins."""
    owners: dict[str, list[str]] = {}
    for artifact in contents.artifacts:
        for digest in artifact.digests:
            owners.setdefault(digest, []).append(str(artifact))
    for digest, path in contents.blobs.items():
        yield ", ".join(owners.get(digest, [])) or None, path, digest
    folders = [(one, folder) for one in contents.artifacts for folder in one.folders]
    for artifact, folder in folders:
        if not folder.exists():
            continue
        yield str(artifact), folder / MANIFEST, folder.name[-16:]
        for path, digest in _listed(folder) if folder / MANIFEST in artifact.files else ():
            blob = contents.blobs.get(digest)
            same = blob and path in contents.status and contents.inode(path) == contents.inode(blob)
            if not same:
                yield str(artifact), path, digest


def _listed(folder: Path) -> list[tuple[Path, str]]:
    """The files that a key folder's manifest lists, with their sha256; none if it is damaged."""
    try:
        entries = list(read_manifest(folder).entries())
    except HubError:
        return []
    files = [file for one in entries for file in one.entry.files]
    return [(folder / file.path, file.sha256.removeprefix("sha256:")) for file in files]


def _digest(path: Path) -> str:
    """64 hexadecimal digits, or what is there instead."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "something that is no file"
        return file_digest(path).removeprefix("sha256:")
    except FileNotFoundError:
        return NOTHING
    except OSError as error:
        return f"{NOTHING}: {error.strerror}"


def _remove(store: Store, contents: Contents, check: CacheCheck) -> None:
    bad = {damage.path for damage in check.damaged}
    inodes = {contents.inode(path) for path in bad & contents.status.keys()}
    for artifact in contents.artifacts:
        for folder, files in artifact.folders.items():
            damaged = inodes & set(map(contents.inode, files))
            if damaged or any(path.is_relative_to(folder) for path in bad):
                _note(check, folder, remove_folder(artifact, folder))
    with try_exclusive(store.blobs) as idle:
        for path in sorted(bad & set(contents.blobs.values())):
            if idle:
                path.unlink(missing_ok=True)
            _note(check, path, None if idle else FETCHING)


def _note(check: CacheCheck, path: Path, why: str | None) -> None:
    if why is None:
        check.removed.append(path)
    else:
        check.kept.append((str(path), why))
