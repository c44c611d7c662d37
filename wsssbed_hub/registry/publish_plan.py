"""What it takes to publish a key folder, wherever it goes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.artifacts.keys import Key, Version
from wsssbed_hub.artifacts.manifest import Chosen, File, Manifest
from wsssbed_hub.utils.errors import UsageError


class Transfer(NamedTuple):
    """One file: as the key folder lists it, and as it is listed where it goes."""

    here: File
    there: File


class Plan:
    """What is published: the entries of ``folder``, the only version as ``version`` if it is given.

    Raises UsageError if the folder has several versions and one number is given for them.
    """

    def __init__(self, folder: Path, version: str | None):
        manifest = read_manifest(folder)
        if version is not None and len(manifest.versions) != 1:
            have = ", ".join(manifest.versions)
            raise UsageError(f"{folder} holds the versions {have}: they are published as they are.")
        self.folder = folder
        self._moves = [(chosen, _renumbered(chosen, version)) for chosen in manifest.entries()]
        self.manifest = manifest.with_entries(new for _, new in self._moves)
        self.key = self.manifest.parsed_key
        self.size = sum(chosen.entry.size for chosen, _ in self._moves)

    @property
    def keys(self) -> list[Key]:
        """The key at each version that is published."""
        return [self.key.at(number) for number in self.manifest.versions]

    def missing(self, old: Manifest | None) -> list[Transfer]:
        """The files of the entries that ``old``, what is published already, has not got."""
        there = {chosen[:2] for chosen in old.entries()} if old else set()
        return [
            Transfer(*pair)
            for mine, new in self._moves
            if new[:2] not in there
            for pair in zip(mine.entry.files, new.entry.files, strict=True)
        ]


def _renumbered(chosen: Chosen, version: str | None) -> Chosen:
    """The entry as it is under another version, the files in that version's folder."""
    if version is None:
        return chosen
    number = Version.parse(version)
    folder = f"{chosen.target}/{number}"
    files = [f.model_copy(update={"path": f"{folder}/{f.name}"}) for f in chosen.entry.files]
    return Chosen(number, chosen.target, chosen.entry.model_copy(update={"files": files}))
