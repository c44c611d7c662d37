"""A registry in a folder: ``<root>/wsssbed/<kind>-<name>/manifest.yaml``, files below it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from wsssbed_hub.artifacts.key_folder import MANIFEST
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.cache.store import copy_checked
from wsssbed_hub.registry.base import (
    NAMESPACE,
    BaseRegistry,
    Publication,
    Transfer,
    keys_of,
    load_file,
)
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import (
    CHUNK,
    check_room,
    disk_errors,
    exclusive,
    sync_folder,
    write_whole,
)
from wsssbed_hub.utils.progress import Progress


class FolderRegistry(BaseRegistry):
    """Artifacts below ``root``, which ``publish`` creates; any number of processes may use it."""

    def __init__(self, root: Path | str):
        self.root = Path(os.path.abspath(root))

    def __str__(self) -> str:
        return str(self.root)

    def _folder(self, key: Key) -> Path:
        return self.root / NAMESPACE / key.repository

    def _where(self, key: Key) -> str:
        return str(self._folder(key) / MANIFEST)

    def keys(self) -> list[Key]:
        """The keys that are published here, in the order of their names."""
        manifests = (self.root / NAMESPACE).glob(f"*/{MANIFEST}")
        return keys_of(path.parent.name for path in manifests)

    def _load(self, key: Key) -> Manifest:
        return load_file(self._folder(key) / MANIFEST)

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

    def _send(self, publication: Publication, progress: Progress | None) -> None:
        place = self._folder(publication.key)
        with disk_errors(self.root, publication.size), exclusive(place, folder=True):
            old = self.find(publication.key) if (place / MANIFEST).exists() else None
            merged = merge(old, publication.manifest)
            if merged is not old:
                _copy(publication.folder, place, publication.missing(old), progress)
                write_whole(place / MANIFEST, merged.dump().encode())
                sync_folder(place.parent)


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
        copy_checked(folder / old.path, goal, old)
        done += old.size
        if progress is not None:
            progress(done, total)
