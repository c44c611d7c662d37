"""Contents of the cache (see ``store``): artifacts, leftovers of transfers, other files.

Things are known by their names and places alone, so damaged and hostile ones are seen as well as
whole ones. Whatever has another name or is a symbolic link is passed over, and never changed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cache.store import Store
from wsssbed_hub.utils.errors import HubError, UsageError

_NEVER = datetime.fromtimestamp(0, UTC)
OTHERS = ("hub", "datasets", "annotations", "stages")
"""Folders that other code fills."""

_KEY = r"(?P<kind>[a-z]+)-(?P<name>[a-z0-9-]+)"
_ENTRY = r"(?P<target>[a-z0-9-]+)-(?P<version>\d{1,6}\.\d{1,6}\.\d{1,6})"
_FOLDER = rf"{_ENTRY}-[0-9a-f]{{16}}"
_SHARD = r"\.?[A-Za-z0-9][A-Za-z0-9._-]*\.(?:parquet|safetensors|json)(?:\.tmp)?"
_NAMES = {
    what: re.compile(name, re.ASCII)
    for what, name in {
        "blob": r"blobs/(?P<first>[0-9a-f]{2})/(?P<digest>(?P=first)[0-9a-f]{62})",
        "file": r"(?P<place>blobs/(?P<first>..)/(?P<thing>(?P=first)[0-9a-f]{62})\.partial)",
        "artifact": rf"(?P<place>artifacts/{_KEY}/{_FOLDER})/(?P<inner>.+)",
        "folder": rf"(?P<place>artifacts/{_KEY}/\.{_FOLDER}\.partial)/.+",
        "record": rf"(?P<place>releases/{_KEY}/{_ENTRY})/{MANIFEST}",
        "conversion": rf"(?P<place>releases/{_KEY}/{_ENTRY}/\.partial)/.+",
        "download": r"(?P<place>downloads/\.?(?P<thing>[0-9a-f]{32})(\.partial|\.json(\.tmp)?)?)",
    }.items()
}


@dataclass(eq=False)
class CachedArtifact:
    """One version of a key over one target: its key folders, and the record of its conversion if
    it came from a release. Several folders are there if its manifest has changed."""

    key: Key
    target: str
    folders: dict[Path, list[Path]] = field(default_factory=dict)
    """Key folders, and the cache's files in each."""
    mixed: set[Path] = field(default_factory=set)
    """Key folders that hold something else as well."""
    record: Path | None = None
    digests: set[str] = field(default_factory=set)
    """sha256 (64 digits) of the files that its manifests list."""
    used: datetime = _NEVER

    @property
    def files(self) -> list[Path]:
        return [path for files in self.folders.values() for path in files]

    def __str__(self) -> str:
        return f"{self.key} over {self.target}"


@dataclass(eq=False)
class Leftover:
    """Files of a transfer that has not come to its end, or is under way."""

    what: str
    name: str
    locks: list[Path]
    places: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.what} {self.name}"


@dataclass
class Contents:
    """Contents of a cache: all of it, or what is to go."""

    root: Path
    status: dict[Path, os.stat_result] = field(default_factory=dict)
    """Of every file, whatever it belongs to; of nothing else."""
    blobs: dict[str, Path] = field(default_factory=dict)
    """By sha256."""
    artifacts: list[CachedArtifact] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    """Blobs that no artifact has."""
    others: dict[str, list[Path]] = field(default_factory=dict)
    """Files by the folder of ``OTHERS`` that they are in."""

    def inode(self, path: Path) -> tuple[int, int]:
        """Device and inode: two names of one file have the same."""
        return self.status[path].st_dev, self.status[path].st_ino

    def size(self, paths: Iterable[Path]) -> int:
        """Bytes of files, each counted once whatever its names."""
        return sum({self.inode(path): self.status[path].st_size for path in paths}.values())

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return self.size(self.status)

    def size_of(self, artifact: CachedArtifact) -> int:
        """Bytes of all its files; some of them may belong to others as well."""
        blobs = (self.blobs[digest] for digest in artifact.digests if digest in self.blobs)
        return self.size([*artifact.files, *blobs])

    def changed(self, paths: Iterable[Path]) -> datetime:
        """Time when the last of these files was changed."""
        return datetime.fromtimestamp(max(self.status[path].st_mtime for path in paths), UTC)

    def links_elsewhere(self, paths: Iterable[Path]) -> dict[Path, int]:
        """Number of names that each of these files has and that are not among ``paths``."""
        known = list(dict.fromkeys(paths))
        names = Counter(map(self.inode, known))
        return {path: self.status[path].st_nlink - names[self.inode(path)] for path in known}

    def not_in(self, artifacts: Collection[CachedArtifact]) -> list[Path]:
        """Blobs that none of ``artifacts`` has, by its manifest or by a link."""
        named = {digest for artifact in artifacts for digest in artifact.digests}
        linked = {self.inode(path) for artifact in artifacts for path in artifact.files}
        return [
            path
            for digest, path in sorted(self.blobs.items())
            if digest not in named and self.inode(path) not in linked
        ]


def scan(store: Store | None = None) -> Contents:
    """The contents of the cache just now. Other processes may change it meanwhile."""
    scanner = _Scanner(Contents((store or Store()).root))
    for entry in _walk(scanner.found.root):
        scanner.add(entry)
    scanner.found.artifacts = sorted(scanner.artifacts.values(), key=str)
    scanner.found.leftovers = sorted(scanner.leftovers.values(), key=str)
    scanner.found.unused = scanner.found.not_in(scanner.found.artifacts)
    return scanner.found


class _Scanner:
    def __init__(self, found: Contents):
        self.found = found
        self.artifacts: dict[tuple[Key, str], CachedArtifact] = {}
        self.leftovers: dict[tuple[str, str], Leftover] = {}

    def add(self, entry: os.DirEntry[str]) -> None:
        path = Path(entry)
        name = path.relative_to(self.found.root).as_posix()
        plain = entry.is_file(follow_symlinks=False)
        for what, pattern in _NAMES.items():
            match = pattern.fullmatch(name)
            if match and (plain or what == "artifact"):
                break
        else:
            area = name.partition("/")[0]
            if plain and area in OTHERS and self._is_there(path):
                self.found.others.setdefault(area, []).append(path)
            return
        if plain and not self._is_there(path):
            return
        if what == "blob":
            self.found.blobs[match["digest"]] = path
        elif what == "artifact":
            self._artifact_file(path, match, plain)
        elif what == "record":
            self._record(path, match)
        else:
            self._leftover_file(path, match, what)

    def _is_there(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            self.found.status[path] = path.lstat()
        return path in self.found.status

    def _artifact_file(self, path: Path, match: re.Match[str], plain: bool) -> None:
        artifact = self._artifact(match)
        if artifact is None:
            return
        folder = self.found.root / match["place"]
        files = artifact.folders.setdefault(folder, [])
        own = re.escape(f"{match['target']}/{match['version']}/") + _SHARD
        if plain and re.fullmatch(rf"{MANIFEST}|\.{MANIFEST}\.tmp|{own}", match["inner"], re.ASCII):
            files.append(path)
        else:
            artifact.mixed.add(folder)
        if match["inner"] == MANIFEST and plain:
            artifact.digests |= _digests(folder)
        with suppress(FileNotFoundError):
            self._use(artifact, folder.stat())

    def _record(self, path: Path, match: re.Match[str]) -> None:
        artifact = self._artifact(match)
        if artifact is not None:
            artifact.record = path.parent
            artifact.digests |= _digests(path.parent)
            self._use(artifact, self.found.status[path])

    def _use(self, artifact: CachedArtifact, status: os.stat_result) -> None:
        artifact.used = max(artifact.used, datetime.fromtimestamp(status.st_mtime, UTC))

    def _artifact(self, match: re.Match[str]) -> CachedArtifact | None:
        try:
            key = Key.parse(f"{match['kind']}/{match['name']}@{match['version']}")
        except UsageError:
            return None
        fresh = CachedArtifact(key, match["target"])
        return self.artifacts.setdefault((key, match["target"]), fresh)

    def _leftover_file(self, path: Path, match: re.Match[str], what: str) -> None:
        place = self.found.root / match["place"]
        if what in ("file", "download"):
            name = match["thing"]
        else:
            name = "{kind}/{name}@{version} over {target}".format(**match.groupdict())
        locks = [place]
        if what == "conversion":
            locks = [record_lock(place.parent)]
        elif what == "download":
            locks = [place.with_name(f"{name}.partial"), self.found.root / "blobs"]
        found = self.leftovers.setdefault((what, name), Leftover(what, name, locks))
        found.files.append(path)
        if place not in found.places:
            found.places.append(place)


def record_lock(home: Path) -> Path:
    """The lock of a conversion, whose record ``home`` is."""
    return home.with_name(f".{home.name}.lock")


def _digests(folder: Path) -> set[str]:
    """The files that the manifest in ``folder`` lists; none if it cannot be read."""
    try:
        entries = list(read_manifest(folder).entries())
    except HubError:
        return set()
    return {file.sha256.removeprefix("sha256:") for one in entries for file in one.entry.files}


def _walk(place: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder that is no folder itself; links are not followed."""
    try:
        with os.scandir(place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry))
        else:
            yield entry
