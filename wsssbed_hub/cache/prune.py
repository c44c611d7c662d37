"""Making room in the cache, while others may be at work in it.

What a process holds or uses stays. A key folder is renamed before it is emptied, so it is whole or
not there; a blob goes when no artifact in the cache has it any more. Folders that were exported
have links of their own and never notice. Killed, it may be repeated.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from wsssbed_hub.artifacts.key_folder import MANIFEST
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cache.locks import try_exclusive
from wsssbed_hub.cache.scan import CachedArtifact, Contents, record_lock, scan
from wsssbed_hub.cache.store import Store
from wsssbed_hub.utils.errors import UsageError, did_you_mean
from wsssbed_hub.utils.files import disk_errors, sync_folder
from wsssbed_hub.utils.progress import Progress

IN_USE = "a process uses it"
FETCHING = "a process is fetching into the cache"
MIXED = "files that are not the cache's lie in it"
STAGES = "stages keep their own files there; remove it by hand when none runs"


@dataclass(frozen=True)
class Selection:
    """Things that may go, beside files that no artifact in the cache has: artifacts by key (with or
    without version), those not used for ``older_than`` days, leftovers of transfers, or all.

    Keys and days together, or leftovers and days, mean what is both.
    """

    keys: tuple[Key, ...] = ()
    older_than: float | None = None
    leftovers: bool = False
    everything: bool = False

    def has(self, artifact: CachedArtifact) -> bool:
        """Whether an artifact may go."""
        named = {artifact.key, artifact.key.unversioned} & set(self.keys)
        asked = named if self.keys else self.older_than is not None
        return self.everything or (bool(asked) and self.is_old(artifact.used))

    def is_old(self, used: datetime) -> bool:
        """Whether what was used then may go for that."""
        if self.older_than is None:
            return True
        return datetime.now(UTC) - used > timedelta(days=self.older_than)


@dataclass
class Pruned:
    """Things that went, and those that stayed and why."""

    removed: list[str] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    freed: int = 0


def plan(contents: Contents, selection: Selection) -> tuple[Contents, int]:
    """The part of ``contents`` that would go, and the bytes that this frees if none is in use.

    A blob that exported folders share takes no room, so it stays for the next ``pull``. Raises
    UsageError for a key that is not there, and for keys or days together with everything.
    """
    if selection.everything and (selection.keys or selection.older_than is not None):
        raise UsageError("Everything is more than those keys or days. Say one or the other.")
    _check_keys(contents, selection.keys)
    going = Contents(contents.root, contents.status, contents.blobs)
    going.artifacts = [one for one in contents.artifacts if selection.has(one)]
    going.leftovers = [
        one
        for one in contents.leftovers
        if selection.everything
        or (selection.leftovers and selection.is_old(contents.changed(one.files)))
    ]
    if selection.everything:
        going.others = {k: files for k, files in contents.others.items() if k != "stages"}
    files = [path for one in going.artifacts for path in one.files]
    files += [path for one in going.leftovers for path in one.files]
    files += [path for others in going.others.values() for path in others]
    unused = contents.not_in([one for one in contents.artifacts if one not in going.artifacts])
    shared = contents.links_elsewhere([*files, *unused])
    going.unused = [path for path in unused if selection.everything or not shared[path]]
    frees = contents.size(path for path in (*files, *going.unused) if not shared[path])
    return going, frees


def prune(
    selection: Selection, *, store: Store | None = None, progress: Progress | None = None
) -> Pruned:
    """Removes what ``selection`` says, as the cache is now; ``progress(things, of)`` as it goes.

    Raises UsageError as ``plan`` does, HubError for a cache that cannot be written.
    """
    store = store or Store()
    contents = scan(store)
    going, _ = plan(contents, selection)
    others = [contents.root / name for name in going.others]
    steps: list[tuple[str, Callable[[], str | None]]] = [
        *((str(one), partial(_remove_artifact, one)) for one in going.artifacts),
        *((str(one), partial(_remove_all, one.places, one.locks)) for one in going.leftovers),
        *((str(place), partial(_remove_all, [place], place.rglob("*.lock"))) for place in others),
        ("files that no artifact has", partial(_remove_blobs, store, selection)),
    ]
    pruned = Pruned()
    with disk_errors(store.root):
        for number, (name, step) in enumerate(steps, 1):
            why = step()
            if why is not None:
                pruned.kept.append((name, why))
            elif number < len(steps):
                pruned.removed.append(name)
            if progress is not None:
                progress(number, len(steps))
    if selection.everything and "stages" in contents.others:
        pruned.kept.append((str(contents.root / "stages"), STAGES))
    pruned.freed = max(0, contents.total - scan(store).total)
    return pruned


def _remove_artifact(artifact: CachedArtifact) -> str | None:
    """Removes its key folders, and the record of its conversion when they are gone; why it stays,
    or None."""
    whys = [remove_folder(artifact, folder) for folder in artifact.folders]
    if artifact.record is not None and not any(whys):
        whys.append(_remove_record(artifact.record))
    return next(filter(None, whys), None)


def remove_folder(artifact: CachedArtifact, folder: Path) -> str | None:
    """Removes a key folder; why it stays, or None if it is gone."""
    if folder in artifact.mixed:
        return MIXED
    going = folder.with_name(f".{folder.name}.partial")  # what a killed one left counts as that
    with _all_free(folder, folder / artifact.target, going) as free:
        if not free:
            return IN_USE
        _remove(going)
        with suppress(FileNotFoundError):
            os.rename(folder, going)
            sync_folder(going.parent)
            _remove(going)
    _remove_empty(folder.parent)
    return None


def _remove_record(home: Path) -> str | None:
    lock = record_lock(home)
    with try_exclusive(lock) as free:
        if not free:
            return IN_USE
        for name in (MANIFEST, f".{MANIFEST}.tmp"):
            (home / name).unlink(missing_ok=True)
        _remove_empty(home)
        if not home.exists():
            lock.unlink(missing_ok=True)
    _remove_empty(home.parent)
    return None


def _remove_all(places: list[Path], locks: Iterable[Path]) -> str | None:
    """Files or folders, if nobody holds any of their ``locks``."""
    with _all_free(*locks) as free:
        if not free:
            return IN_USE
        for place in places:
            _remove(place)
            _remove_empty(place.parent)
    return None


def _remove_blobs(store: Store, selection: Selection) -> str | None:
    """Looks again: artifacts that are in use have stayed, and others may have come."""
    with try_exclusive(store.blobs) as idle:
        contents = scan(store)
        unused = contents.unused if selection.everything else plan(contents, Selection())[0].unused
        if unused and not idle:
            return FETCHING
        for path in unused:
            path.unlink(missing_ok=True)
            _remove_empty(path.parent)
    return None


@contextmanager
def _all_free(*locks: Path) -> Iterator[bool]:
    """Whether nobody holds any of ``locks``; nobody will, while this lasts."""
    with ExitStack() as held:
        yield all([held.enter_context(try_exclusive(lock)) for lock in locks])


def _check_keys(contents: Contents, keys: Iterable[Key]) -> None:
    there = {key for one in contents.artifacts for key in (one.key, one.key.unversioned)}
    for key in keys:
        if key not in there:
            near = did_you_mean(str(key), map(str, there))
            what = near or " `wsssbed-hub cache list` shows what is there."
            raise UsageError(f"There is no {key} in the cache {contents.root}.{what}")


def _remove(path: Path) -> None:
    """A file, or a folder with all that is in it; links are removed and not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
