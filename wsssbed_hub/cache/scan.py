"""What lies in the cache (see ``store``): artifacts, unfinished transfers, and what is foreign.

Things are known by their names and places alone, so damaged and hostile ones are seen as well as
whole ones. Symbolic links are never followed. What is not of the cache's making is ``foreign``: it
is named, and nothing here ever changes it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cache.store import Store
from wsssbed_hub.utils.errors import HubError, UsageError

DERIVED = ("hub", "datasets", "annotations")
"""Folders of files that are made again when they are needed."""
AREAS = ("blobs", "artifacts", "releases", "downloads", *DERIVED, "stages")
_TARGET = r"(?P<target>[a-z0-9]+(?:-[a-z0-9]+)*)"
_VERSION = r"(?P<version>\d{1,6}\.\d{1,6}\.\d{1,6})"
_FOLDER = re.compile(rf"{_TARGET}-{_VERSION}-(?P<digest>[0-9a-f]{{16}})", re.ASCII)
_RECORD = re.compile(rf"{_TARGET}-{_VERSION}", re.ASCII)
_MAPS = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]*\.(parquet|safetensors|json)(\.tmp)?", re.ASCII)
_OWN = {MANIFEST, f".{MANIFEST}.tmp"}
_BLOB = re.compile(r"[0-9a-f]{64}(?P<partial>\.partial)?", re.ASCII)
_NEVER = datetime.fromtimestamp(0, UTC)
_DOWNLOAD = re.compile(r"\.?(?P<name>[0-9a-f]{32})(\.partial|(\.json(\.tmp)?))?", re.ASCII)


@dataclass
class Folder:
    """A key folder in the cache: the files in it that are the cache's, and those that are not."""

    path: Path
    target: str
    digest: str
    """First 16 digits of the sha256 of its manifest."""
    files: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


@dataclass
class Artifact:
    """One version of a key over one target: its key folders, and the record of its conversion if
    it came from a release. Several folders are there if its manifest has changed."""

    key: Key
    target: str
    folders: list[Folder] = field(default_factory=list)
    record: Path | None = None
    digests: set[str] = field(default_factory=set)
    """sha256 (64 digits) of the files that its manifests list."""
    size: int = 0
    """Bytes of all its files; some of them may belong to others as well."""
    used: datetime = _NEVER

    @property
    def name(self) -> str:
        return f"{self.key} over {self.target}"


@dataclass
class Unfinished:
    """What a transfer that has not come to its end left, or leaves at this moment."""

    what: str
    name: str
    paths: list[Path]
    guard: Path
    """Its lock."""
    size: int
    used: datetime


@dataclass
class Contents:
    """All that lies in a cache."""

    root: Path
    artifacts: list[Artifact] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    blobs: dict[str, Path] = field(default_factory=dict)
    """By sha256."""
    downloads: list[Path] = field(default_factory=list)
    """Whole zips that wait to be converted."""
    guards: list[Path] = field(default_factory=list)
    """Locks of the conversions of releases."""
    derived: dict[str, int] = field(default_factory=dict)
    """Areas that other code keeps, with their bytes."""
    foreign: list[Path] = field(default_factory=list)
    total: int = 0
    """Bytes of all that is the cache's, shared files counted once."""

    def unused(self) -> list[Path]:
        """Blobs that no artifact here has, by its manifest or by a link."""
        named = {digest for artifact in self.artifacts for digest in artifact.digests}
        linked = {
            identity(path)
            for artifact in self.artifacts
            for folder in artifact.folders
            for path in folder.files
        }
        return [
            path
            for digest, path in sorted(self.blobs.items())
            if digest not in named and identity(path) not in linked
        ]


def identity(path: Path) -> tuple[int, int]:
    """What two names of one file have in common; (0, 0) for a file that is gone."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


def look(store: Store | None = None) -> Contents:
    """What lies in the cache of ``store`` just now. Other processes may change it meanwhile."""
    root = (store or Store()).root
    scan = _Scan(root)
    for entry in _entries(root):
        if entry.name not in AREAS or not _is_folder(entry):
            scan.found.foreign.append(Path(entry))
    scan.blobs()
    scan.artifacts()
    scan.releases()
    scan.downloads()
    for area in (*DERIVED, "stages"):
        scan.derived(area)
    return scan.finish()


class _Scan:
    def __init__(self, root: Path):
        self.root = root
        self.found = Contents(root)
        self._artifacts: dict[tuple[Key, str], Artifact] = {}
        self._sizes: dict[tuple[int, int], int] = {}

    def finish(self) -> Contents:
        order = sorted(self._artifacts.values(), key=lambda one: (str(one.key), one.target))
        self.found.artifacts = order
        for artifact in order:
            files = [path for folder in artifact.folders for path in folder.files]
            files += [self.found.blobs[d] for d in artifact.digests if d in self.found.blobs]
            artifact.size = sum({identity(path): self._size(path) for path in files}.values())
        self.found.unfinished.sort(key=lambda one: one.name)
        self.found.total = sum(self._sizes.values()) + sum(self.found.derived.values())
        return self.found

    def blobs(self) -> None:
        for place in self._folders(self.root / "blobs", re.compile(r"[0-9a-f]{2}")):
            for entry in _entries(place):
                match = _BLOB.fullmatch(entry.name)
                path = Path(entry)
                if match is None or not entry.name.startswith(place.name) or not _is_file(entry):
                    self.found.foreign.append(path)
                elif match["partial"]:
                    self._unfinished("file", path.stem, [path], path)
                else:
                    self.found.blobs[entry.name] = path
                    self._size(path)

    def artifacts(self) -> None:
        for place, key in self._repositories("artifacts"):
            for entry in _entries(place):
                path = Path(entry)
                name = entry.name
                partial = name.startswith(".") and name.endswith(".partial")
                match = _FOLDER.fullmatch(name[1 : -len(".partial")] if partial else name)
                if match is None or not _is_folder(entry):
                    self.found.foreign.append(path)
                elif partial:
                    whose = f"{key.at(match['version'])} over {match['target']}"
                    self._unfinished("folder", whose, [path], path)
                else:
                    artifact = self._artifact(key.at(match["version"]), match["target"])
                    self._add_folder(artifact, path, match["version"], match["digest"])

    def _add_folder(self, artifact: Artifact, path: Path, version: str, digest: str) -> None:
        folder = Folder(path, artifact.target, digest)
        place = path / artifact.target / version
        for entry in _walk(path):
            there = Path(entry)
            ours = _is_file(entry) and (
                (there.parent == path and entry.name in _OWN)
                or (there.parent == place and _MAPS.fullmatch(entry.name) is not None)
            )
            if ours:
                folder.files.append(there)
                self._size(there)
            elif not (_is_folder(entry) and (there == place or there == place.parent)):
                folder.foreign.append(there)
        artifact.folders.append(folder)
        self.found.foreign += folder.foreign
        if path / MANIFEST in folder.files:
            artifact.digests |= _digests(path)
        artifact.used = max(artifact.used, _when(path))

    def releases(self) -> None:
        for place, key in self._repositories("releases"):
            for entry in _entries(place):
                path, name = Path(entry), entry.name
                guard = name.startswith(".") and name.endswith(".lock")
                match = _RECORD.fullmatch(name[1 : -len(".lock")] if guard else name)
                if match is not None and guard and _is_file(entry):
                    self.found.guards.append(path)
                elif match is not None and _is_folder(entry):
                    self._add_record(path, key.at(match["version"]), match["target"])
                else:
                    self.found.foreign.append(path)

    def _add_record(self, home: Path, key: Key, target: str) -> None:
        for entry in _entries(home):
            path = Path(entry)
            if entry.name == MANIFEST and _is_file(entry):
                artifact = self._artifact(key, target)
                artifact.record = home
                artifact.digests |= _digests(home)
                artifact.used = max(artifact.used, _when(path))
            elif entry.name == ".partial" and _is_folder(entry):
                guard = home.with_name(f".{home.name}.lock")
                self._unfinished("conversion", f"{key} over {target}", [path], guard)
            elif entry.name not in _OWN:
                self.found.foreign.append(path)
            if entry.name in _OWN and _is_file(entry):
                self._size(path)

    def downloads(self) -> None:
        parts: dict[str, list[Path]] = {}
        for entry in _entries(self.root / "downloads"):
            match = _DOWNLOAD.fullmatch(entry.name)
            if match is None or not _is_file(entry):
                self.found.foreign.append(Path(entry))
            elif entry.name == match["name"]:
                self.found.downloads.append(Path(entry))
                self._size(Path(entry))
            else:
                parts.setdefault(match["name"], []).append(Path(entry))
        for name, paths in parts.items():
            guard = self.root / "downloads" / f"{name}.partial"
            self._unfinished("download", name, paths, guard)

    def derived(self, area: str) -> None:
        place = self.root / area
        if place.is_dir() and not place.is_symlink():
            files = {identity(Path(e)): _stat(Path(e)) for e in _walk(place) if _is_file(e)}
            sizes = [status.st_size for status in files.values() if status is not None]
            self.found.derived[area] = sum(sizes)

    def _unfinished(self, what: str, name: str, paths: list[Path], guard: Path) -> None:
        files = [file for path in paths for file in files_in(path)]
        size = sum({identity(file): self._size(file) for file in files}.values())
        used = max((_when(path) for path in (*paths, *files)), default=datetime.now(UTC))
        self.found.unfinished.append(Unfinished(what, name, paths, guard, size, used))

    def _artifact(self, key: Key, target: str) -> Artifact:
        return self._artifacts.setdefault((key, target), Artifact(key, target))

    def _size(self, path: Path) -> int:
        status = _stat(path)
        if status is None:
            return 0
        self._sizes[(status.st_dev, status.st_ino)] = status.st_size
        return status.st_size

    def _folders(self, place: Path, names: re.Pattern[str]) -> Iterator[Path]:
        for entry in _entries(place):
            if names.fullmatch(entry.name) and _is_folder(entry):
                yield Path(entry)
            else:
                self.found.foreign.append(Path(entry))

    def _repositories(self, area: str) -> Iterator[tuple[Path, Key]]:
        for place in self._folders(self.root / area, re.compile(r"[a-z]+-[a-z0-9-]+")):
            kind, _, name = place.name.partition("-")
            try:
                yield place, Key.parse(f"{kind}/{name}")
            except UsageError:
                self.found.foreign.append(place)


def _digests(folder: Path) -> set[str]:
    """The files that the manifest in ``folder`` lists; none if it cannot be read."""
    try:
        entries = list(read_manifest(folder).entries())
    except HubError:
        return set()
    return {file.sha256.removeprefix("sha256:") for one in entries for file in one.entry.files}


def _entries(place: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; nothing if it is none, or a link to one."""
    if place.is_symlink():
        return []
    try:
        with os.scandir(place) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(place: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, its folders included."""
    for entry in _entries(place):
        yield entry
        if _is_folder(entry):
            yield from _walk(Path(entry))


def files_in(path: Path) -> list[Path]:
    """``path``, or the files below it if it is a folder."""
    if path.is_dir() and not path.is_symlink():
        return [Path(entry) for entry in _walk(path) if _is_file(entry)]
    return [path]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _stat(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _when(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    except FileNotFoundError:
        return datetime.now(UTC)
