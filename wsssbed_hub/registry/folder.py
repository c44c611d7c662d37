"""A registry in a folder: ``<root>/<namespace>/<kind>-<name>/manifest.yaml``, files below it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest, verify_folder
from wsssbed_hub.artifacts.keys import KINDS, Key
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.cache.store import copy_checked
from wsssbed_hub.registry.publish_plan import Plan, Transfer
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.utils.files import (
    CHUNK,
    check_room,
    exclusive,
    expect_trouble,
    sync_folder,
    write_whole,
)
from wsssbed_hub.utils.progress import Progress, share


class FolderRegistry:
    """Artifacts below ``root``, which ``publish`` creates; any number of processes may use it."""

    def __init__(self, root: Path | str, namespace: str = "wsssbed"):
        self.root = Path(os.path.abspath(root))
        self.namespace = namespace

    def __str__(self) -> str:
        return str(self.root)

    def _folder(self, key: Key) -> Path:
        return self.root / self.namespace / key.repository

    def keys(self) -> list[Key]:
        """The keys that are published here, in the order of their names."""
        place = self.root / self.namespace
        if not place.is_dir():
            return []
        found = []
        for folder in place.iterdir():
            kind, _, name = folder.name.partition("-")
            if kind in KINDS and (folder / MANIFEST).exists():
                found.append(Key.parse(f"{kind}/{name}"))
        return sorted(found, key=str)

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all keys. Raises HubError at one that is not valid."""
        for key in self.keys():
            yield self.find(key)

    def find(self, key: Key) -> Manifest:
        """The manifest of ``key``, whatever its version.

        Raises UsageError, with keys that look alike, if nothing is published under it, and HubError
        if the manifest is damaged.
        """
        folder = self._folder(key)
        if not (folder / MANIFEST).exists():
            known = [str(other) for other in self.keys()]
            what = f" It has {len(known)} keys; `wsssbed-hub list` shows them." if known else ""
            what = did_you_mean(str(key.unversioned), known) or what
            raise UsageError(f"There is no {key.unversioned} in {self}.{what}")
        manifest = read_manifest(folder)
        if manifest.parsed_key != key.unversioned:
            raise HubError(f"{folder / MANIFEST} speaks of {manifest.key}, not of {key}.")
        return manifest

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """Writes what ``out`` lacks of ``file``. Raises HubError if it is missing."""
        path = self._folder(key) / file.path
        try:
            stream = open(path, "rb")  # noqa: SIM115  # what is raised below is of ``out``
        except OSError as error:
            raise HubError(f"{path} cannot be read: {error.strerror}.") from None
        with stream:
            stream.seek(out.tell())
            shutil.copyfileobj(stream, out, CHUNK)

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """Publishes what the key folder ``folder`` holds; the keys with their versions.

        Everything is verified first, and becomes visible at once, when the manifest is replaced.
        With ``version`` the folder's only version is published under that number. What is there
        already with the same content stays as it is; with other content it is a HubError. A killed
        run leaves nothing that can be seen and may be repeated.
        """
        plan = Plan(folder, version)
        place = self._folder(plan.key)
        verify_folder(folder, progress=share(progress, 0, plan.size, 2 * plan.size))
        with expect_trouble(self.root, plan.size), exclusive(place, folder=True):
            old = self.find(plan.key) if (place / MANIFEST).exists() else None
            merged = merge(old, plan.manifest)
            if merged is not old:
                copied = share(progress, plan.size, plan.size, 2 * plan.size)
                _copy(folder, place, plan.missing(old), copied)
                write_whole(place / MANIFEST, merged.dump().encode())
                sync_folder(place.parent)
        if progress is not None:
            progress(2 * plan.size, 2 * plan.size)
        return plan.keys


def _copy(folder: Path, place: Path, transfers: list[Transfer], progress: Progress | None) -> None:
    """Copies files into ``place``, whose lock the caller holds."""
    for left in place.rglob(".*.tmp"):  # of a run that was killed
        left.unlink()
    total = sum(transfer.here.size for transfer in transfers)
    check_room(place, total)
    done = 0
    for old, new in transfers:
        goal = place / new.path
        goal.parent.mkdir(parents=True, exist_ok=True)
        temporary = goal.with_name(f".{goal.name}.tmp")
        copy_checked(folder / old.path, temporary, old)
        os.replace(temporary, goal)
        sync_folder(goal.parent)
        done += old.size
        if progress is not None:
            progress(done, total)
