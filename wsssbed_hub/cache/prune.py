"""Making room in the cache, while others may be at work in it.

What a process holds or uses stays, and so does what is foreign. A key folder is renamed before it
is emptied, so it is whole or not there; a blob goes when no artifact in the cache has it any more.
Folders that were exported have links of their own and never notice. Killed, it may be repeated.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from wsssbed_hub.artifacts.key_folder import MANIFEST
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cache.locks import if_free
from wsssbed_hub.cache.scan import (
    DERIVED,
    Artifact,
    Contents,
    Folder,
    Unfinished,
    files_in,
    identity,
    look,
)
from wsssbed_hub.cache.store import Store
from wsssbed_hub.utils.errors import UsageError, did_you_mean
from wsssbed_hub.utils.files import expect_trouble, sync_folder
from wsssbed_hub.utils.progress import Progress

IN_USE = "a process uses it"
FETCHING = "a process is fetching into the cache"
FOREIGN = "files that are not the cache's lie in it"
STAGES = "stages keep their own files there; remove it by hand when none runs"


@dataclass(frozen=True)
class Selection:
    """What may go, beside the files that no artifact in the cache has: artifacts by key (with or
    without version), those not used for ``older_than`` days, unfinished transfers, or everything.

    Keys and days together, or partials and days, mean what is both.
    """

    keys: tuple[Key, ...] = ()
    older_than: float | None = None
    partials: bool = False
    everything: bool = False

    def has(self, artifact: Artifact, now: datetime) -> bool:
        """Whether an artifact may go."""
        if self.everything:
            return True
        if self.keys:
            names = (artifact.key, artifact.key.unversioned)
            return any(key in names for key in self.keys) and self._old(artifact.used, now)
        return self.older_than is not None and self._old(artifact.used, now)

    def has_unfinished(self, one: Unfinished, now: datetime) -> bool:
        """Whether what a transfer left may go."""
        return self.everything or (self.partials and self._old(one.used, now))

    def _old(self, used: datetime, now: datetime) -> bool:
        return self.older_than is None or now - used > timedelta(days=self.older_than)


@dataclass
class Plan:
    """What would go."""

    artifacts: list[Artifact] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    blobs: list[Path] = field(default_factory=list)
    downloads: list[Path] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    frees: int = 0
    """Bytes, if nothing of it is in use. Files that exported folders share are not among them."""

    def __bool__(self) -> bool:
        return any((self.artifacts, self.unfinished, self.blobs, self.downloads, self.derived))


@dataclass
class Pruned:
    """What went, and what stayed and why."""

    removed: list[str] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    freed: int = 0


def plan(contents: Contents, selection: Selection) -> Plan:
    """What of ``contents`` would go. Raises UsageError for a key that is not there, and for keys
    or days together with everything."""
    if selection.everything and (selection.keys or selection.older_than is not None):
        raise UsageError("Everything is more than those keys or days. Say one or the other.")
    _check_keys(contents, selection.keys)
    now = datetime.now(UTC)
    going = [one for one in contents.artifacts if selection.has(one, now)]
    rest = [one for one in contents.artifacts if one not in going]
    paths = [path for one in going for folder in one.folders for path in folder.files]
    unused = Contents(contents.root, artifacts=rest, blobs=contents.blobs).unused()
    blobs = _going(unused, paths, selection)
    unfinished = [one for one in contents.unfinished if selection.has_unfinished(one, now)]
    downloads = contents.downloads if selection.everything else []
    derived = [n for n in DERIVED if contents.derived.get(n) and selection.everything]
    paths += [file for one in unfinished for path in one.paths for file in files_in(path)]
    frees = _frees([*paths, *blobs, *downloads]) + sum(contents.derived[name] for name in derived)
    return Plan(going, unfinished, blobs, downloads, derived, frees)


def prune(
    selection: Selection, *, store: Store | None = None, progress: Progress | None = None
) -> Pruned:
    """Removes what ``selection`` says, as the cache is now; ``progress(things, of)`` as it goes.

    Raises UsageError as ``plan`` does, HubError for a cache that cannot be written.
    """
    store = store or Store()
    contents = look(store)
    pruner = _Pruner(store, contents, selection)
    with expect_trouble(store.root):
        pruner.run(plan(contents, selection), progress)
    pruned = pruner.pruned
    pruned.kept += [(str(path), FOREIGN) for path in contents.foreign]
    if selection.everything and contents.derived.get("stages"):
        pruned.kept.append((str(contents.root / "stages"), STAGES))
    pruned.freed = max(0, contents.total - look(store).total)
    return pruned


class _Pruner:
    def __init__(self, store: Store, contents: Contents, selection: Selection):
        self.store, self.contents, self.selection = store, contents, selection
        self.pruned = Pruned()

    def run(self, wanted: Plan, progress: Progress | None) -> None:
        steps: list[tuple[str, Callable[[], str | None]]] = [
            *((one.name, partial(self._artifact, one)) for one in wanted.artifacts),
            *((f"{o.what} {o.name}", partial(self._unfinished, o)) for o in wanted.unfinished),
            *((f"download {p.name}", partial(self._download, p)) for p in wanted.downloads),
            ("files that no artifact has", self._blobs),
            *((name, partial(self._derived, name)) for name in wanted.derived),
        ]
        for number, (name, step) in enumerate(steps, 1):
            why = step()
            if why is not None:
                self.pruned.kept.append((name, why))
            elif step != self._blobs:
                self.pruned.removed.append(name)
            if progress is not None:
                progress(number, len(steps))

    def _artifact(self, artifact: Artifact) -> str | None:
        """Why it stays; None if it is gone."""
        whys = [remove_folder(folder) for folder in artifact.folders]
        if artifact.record is not None and not any(whys):
            whys.append(self._record(artifact.record))
        return next(filter(None, whys), None)

    def _record(self, home: Path) -> str | None:
        guard = home.with_name(f".{home.name}.lock")
        with if_free(guard) as free:
            if not free and guard.exists():
                return IN_USE
            for name in (MANIFEST, f".{MANIFEST}.tmp"):
                (home / name).unlink(missing_ok=True)
            _remove_empty(home)
            if not home.exists():
                guard.unlink(missing_ok=True)
            _remove_empty(home.parent)
        return None

    def _unfinished(self, one: Unfinished) -> str | None:
        with if_free(one.guard) as free:
            if not free and os.path.lexists(one.guard):
                return IN_USE
            for path in one.paths:
                _remove(path)
        _remove_empty(one.paths[0].parent)
        return None

    def _download(self, path: Path) -> str | None:
        with self._idle() as idle:
            if not idle:
                return FETCHING
            path.unlink(missing_ok=True)
        return None

    def _blobs(self) -> str | None:
        """Looks again: artifacts that are in use have stayed, and others may have come."""
        with self._idle() as idle:
            contents = look(self.store)
            going = _going(contents.unused(), [], self.selection)
            if going and not idle:
                return FETCHING
            for path in going:
                path.unlink(missing_ok=True)
                _remove_empty(path.parent)
        return None

    def _derived(self, name: str) -> str | None:
        place = self.contents.root / name
        for lock in place.rglob("*.lock"):
            with if_free(lock) as free:
                if not free and lock.is_file():
                    return IN_USE
        _remove(place)
        return None

    @contextmanager
    def _idle(self) -> Iterator[bool]:
        """Whether nobody is between fetching a file and linking it; nobody begins meanwhile."""
        with ExitStack() as held:
            free = held.enter_context(if_free(self.store.blobs))
            guards = [(path, held.enter_context(if_free(path))) for path in self.contents.guards]
            yield free and all(mine or not path.exists() for path, mine in guards)


def remove_folder(folder: Folder) -> str | None:
    """Removes a key folder from the cache; why it stays, or None if it is gone."""
    if folder.foreign:
        return FOREIGN
    partial = folder.path.with_name(f".{folder.path.name}.partial")
    with if_free(folder.path) as free, if_free(folder.path / folder.target) as unused:
        if not folder.path.exists():
            return None
        if not free or not (unused or not (folder.path / folder.target).exists()):
            return IN_USE
        with if_free(partial) as mine:  # of a process that was killed
            if os.path.lexists(partial) and not mine:
                return IN_USE
            _remove(partial)
        os.rename(folder.path, partial)
        sync_folder(partial.parent)
        _remove(partial)
    _remove_empty(folder.path.parent)
    return None


def _check_keys(contents: Contents, keys: Sequence[Key]) -> None:
    there = {key for one in contents.artifacts for key in (one.key, one.key.unversioned)}
    for key in keys:
        if key not in there:
            near = did_you_mean(str(key), map(str, there))
            what = near or " `wsssbed-hub cache list` shows what is there."
            raise UsageError(f"There is no {key} in the cache {contents.root}.{what}")


def _going(unused: Iterable[Path], with_: Sequence[Path], selection: Selection) -> list[Path]:
    """Those blobs that go. What exported folders share takes no room, so it stays for the next
    ``pull``; ``with_`` are the names that go as well."""
    if selection.everything:
        return list(unused)
    names = Counter(map(identity, with_))
    return [path for path in unused if _links(path) <= 1 + names[identity(path)]]


def _frees(paths: Iterable[Path]) -> int:
    """Bytes that are free once these names are gone."""
    names = {path: identity(path) for path in set(paths)}
    counts = Counter(names.values())
    one_each = {where: path for path, where in names.items()}
    return sum(_size(path) for where, path in one_each.items() if _links(path) <= counts[where])


def _links(path: Path) -> int:
    try:
        return path.lstat().st_nlink
    except FileNotFoundError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    """A file, or a folder with all that is in it; links are removed and not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
