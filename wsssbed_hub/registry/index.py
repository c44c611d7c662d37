"""The index of record as a registry: the manifests that come with the package, read only.

``manifests/<kind>/<name>.yaml`` in a checkout, the same files inside the package in a wheel. It
holds no maps; its manifests say where these are to be had.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from wsssbed_hub.artifacts.keys import KINDS, Key
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.registry.base import BaseRegistry, Publication, load_file
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.progress import Progress

INDEX = Path(__file__).parents[1] / "manifests"


class IndexRegistry(BaseRegistry):
    """The manifests below ``root``, which nobody publishes to: they change by pull request."""

    def __init__(self, root: Path = INDEX):
        self.root = root

    def __str__(self) -> str:
        return f"the index of wsssbed-hub ({self.root})"

    def _path(self, key: Key) -> Path:
        return self.root / f"{key.unversioned}.yaml"

    def _where(self, key: Key) -> str:
        return str(self._path(key))

    def keys(self) -> list[Key]:
        """All keys, in the order of their names. Raises HubError at a file that has not the name of
        a key."""
        paths = (path for kind in KINDS for path in (self.root / kind).glob("*.yaml"))
        return sorted((_key(path) for path in paths), key=str)

    def holds(self, key: Key) -> bool:
        """Whether there is a manifest of ``key``."""
        return self._path(key).is_file()

    def _load(self, key: Key) -> Manifest:
        return load_file(self._path(key))

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """Raises HubError: there are no files here, their entries say where they are."""
        raise HubError(f"{self} holds manifests only: {file.path} of {key} is not in it.")

    def _admit(self, publication: Publication) -> None:
        raise UsageError(
            f"{self} changes by pull request only. Push {publication.folder} to a registry of your "
            "own."
        )

    def _send(self, publication: Publication, progress: Progress | None) -> None:
        self._admit(publication)


def _key(path: Path) -> Key:
    try:
        return Key.parse(f"{path.parent.name}/{path.stem}")
    except UsageError as error:
        raise HubError(f"{path}: {error}") from None
