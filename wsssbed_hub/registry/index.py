"""The index of record as a registry: the manifests that come with the package, read only.

``manifests/<kind>/<name>.yaml`` in a checkout, the same files inside the package in a wheel. It
holds no maps; its manifests say where these are to be had.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from wsssbed_hub.artifacts.keys import KINDS, Key
from wsssbed_hub.artifacts.manifest import MAX_BYTES, File, Manifest, parse_manifest
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.utils.progress import Progress

INDEX = Path(__file__).parents[1] / "manifests"


class IndexRegistry:
    """The manifests below ``root``, which nobody publishes to: they change by pull request."""

    def __init__(self, root: Path = INDEX):
        self.root = root

    def __str__(self) -> str:
        return f"the index of wsssbed-hub ({self.root})"

    def keys(self) -> list[Key]:
        """All keys, in the order of their names."""
        paths = (path for kind in KINDS for path in (self.root / kind).glob("*.yaml"))
        return sorted((_key(path) for path in paths), key=str)

    def holds(self, key: Key) -> bool:
        """Whether there is a manifest of ``key``."""
        return self._path(key).is_file()

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all keys. Raises HubError at one that is not valid."""
        for key in self.keys():
            yield self.find(key)

    def find(self, key: Key) -> Manifest:
        """The manifest of ``key``, whatever its version.

        Raises UsageError, with keys that look alike, if there is none, and HubError if it is not
        valid.
        """
        if not self.holds(key):
            near = did_you_mean(str(key.unversioned), map(str, self.keys()))
            raise UsageError(f"There is no {key.unversioned} in {self}.{near}")
        return read_index_file(self._path(key), self.root)

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """Raises HubError: there are no files here, their entries say where they are."""
        raise HubError(f"{self} holds manifests only: {file.path} of {key} is not in it.")

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """Raises UsageError: manifests are added to the index by pull request."""
        raise UsageError(
            f"{self} changes by pull request only. Push {folder} to a registry of your own."
        )

    def _path(self, key: Key) -> Path:
        return self.root / key.kind / f"{key.name}.yaml"


def read_index_file(path: Path, root: Path) -> Manifest:
    """The manifest at ``path``, whose place below ``root`` is that of its key.

    Raises HubError if it is not valid or speaks of another key.
    """
    try:
        with open(path, "rb") as file:
            manifest = parse_manifest(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None
    if path != root / f"{manifest.key}.yaml":
        raise HubError(f"{path} speaks of {manifest.key}: its place is {manifest.key}.yaml.")
    return manifest


def _key(path: Path) -> Key:
    try:
        return Key.parse(f"{path.parent.name}/{path.stem}")
    except UsageError as error:
        raise HubError(f"{path}: {error}") from None
