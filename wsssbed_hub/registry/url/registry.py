"""A registry at a URL: ``s3://``, ``gs://``, ``https://``, all that fsspec reads.

It has the tree of a registry in a folder, so a folder that is copied there as it is
(``aws s3 sync``) becomes one, and the other way round. How to sign in is each driver's own matter.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from wsssbed_hub.artifacts.key_folder import MANIFEST
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.registry.base import THREADS, BaseRegistry, Publication, keys_of
from wsssbed_hub.registry.url.place import Place
from wsssbed_hub.registry.url.publisher import Publisher
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.progress import Progress


class UrlRegistry(BaseRegistry):
    """Artifacts below ``url``. Raises as ``Place`` does."""

    def __init__(self, url: str):
        self.place = Place(url)

    def __str__(self) -> str:
        return str(self.place)

    def keys(self) -> list[Key]:
        """The keys that are published here. Raises HubError where folders cannot be listed, as on
        most web servers: their artifacts are found by key."""
        place = self.place
        place.files.invalidate_cache()
        try:
            with place.errors("its list of artifacts", may_miss=True):
                listed = place.files.ls(place.root, detail=False)
        except FileNotFoundError:
            return []
        found = keys_of({str(path).rstrip("/").rpartition("/")[2] for path in listed})
        with ThreadPoolExecutor(THREADS) as threads:
            there = list(threads.map(self._exists, found))
        return [key for key, one in zip(found, there, strict=True) if one]

    def _exists(self, key: Key) -> bool:
        with self.place.errors(f"{key.repository}/{MANIFEST}"):
            return bool(self.place.files.exists(self.place.path(key)))

    def _load(self, key: Key) -> Manifest:
        return self.place.read_manifest(key)

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """Writes what ``out`` lacks of ``file``. Raises HubError if it is not there."""
        self.place.fetch(key, file.path, out)

    def _admit(self, publication: Publication) -> None:
        if self.place.is_web:
            raise UsageError(
                f"{self} is read only: nothing is published over the web. Push "
                f"{publication.folder} to a folder, s3://, gs:// or hf:NAMESPACE."
            )
        super()._admit(publication)

    def _send(self, publication: Publication, progress: Progress | None) -> None:
        Publisher(self.place, publication, progress).run()
