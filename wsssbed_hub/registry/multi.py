"""Several registries in order, and the list of them that a user keeps beside the own folder.

Behind those that nobody named, in ``WSSSBED_REGISTRY`` or in the list, stands the index of record.

The list is a text file, one registry a line: ``$XDG_CONFIG_HOME/wsssbed-hub/registries``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import File, Manifest
from wsssbed_hub.registry.base import Missing, Registry
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import disk_errors, exclusive, write_whole
from wsssbed_hub.utils.progress import Progress
from wsssbed_hub.utils.settings import registry_list

SEPARATOR = ","  # a colon stands in URLs


class Registries:
    """Several registries as one: a key is what the first that has it says it is.

    A registry that cannot be reached is an error and not passed over: the next one may hold
    something else under the same key. An ``index`` comes last, and adds to the keys of the others
    the versions and targets that only it lists: what is there to be had, wherever it lies.
    Publishing goes to the first.
    """

    def __init__(self, places: Sequence[Registry], index: IndexRegistry | None = None):
        self.index = index
        self._named = list(places)
        self.places = [*places, *([index] if index else [])]
        self._found: dict[Key, Registry] = {}

    def __str__(self) -> str:
        named = SEPARATOR.join(map(str, self._named))
        return f"{named} and {self.index}" if self.index else named

    def keys(self) -> list[Key]:
        """The keys of all."""
        return sorted(set().union(*(place.keys() for place in self.places)), key=str)

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all keys, each from the first registry that has it."""
        seen: set[str] = set()
        for place in self.places:
            for manifest in place.manifests():
                if manifest.key not in seen:
                    yield self._completed(manifest, place)
                seen.add(manifest.key)

    def find(self, key: Key) -> Manifest:
        """The first registry's manifest of ``key``, with what only the index has. Raises Missing
        with what each says if none has it, HubError at the first that cannot be read."""
        said: list[Missing] = []
        for place in self.places:
            try:
                manifest = place.find(key)
            except Missing as error:
                said.append(error)
                continue
            self._found[key.unversioned] = place
            return self._completed(manifest, place)
        raise Missing(hint=lambda: "\n".join(map(str, said)))

    def _completed(self, manifest: Manifest, place: Registry) -> Manifest:
        """The manifest of ``place`` with the versions and targets that only the index has."""
        index, key = self.index, manifest.parsed_key
        if index is None or place is index or not index.holds(key):
            return manifest
        entries = {chosen[:2]: chosen for chosen in index.find(key).entries()}
        entries |= {chosen[:2]: chosen for chosen in manifest.entries()}
        return manifest.with_entries(entries.values())

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """The file, of the registry in which ``find`` found the key; the entries of the index name
        places elsewhere."""
        if key.unversioned not in self._found:
            self.find(key)
        self._found[key.unversioned].fetch(key, file, out)

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """Publishes to the first."""
        return self.places[0].publish(folder, version=version, progress=progress)


def split(text: str) -> list[str]:
    """The registries that a text such as ``$WSSSBED_REGISTRY`` lists, in order, each once."""
    parts = [part.strip() for part in text.split(SEPARATOR)]
    return list(dict.fromkeys(part for part in parts if part))


def configured() -> list[str]:
    """The registries of the config file; lines that begin with ``#`` are remarks."""
    try:
        lines = registry_list().read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise HubError(f"{registry_list()} cannot be read: {error}.") from None
    found = (line.strip() for line in lines)
    return list(dict.fromkeys(line for line in found if line and not line.startswith("#")))


def add(where: str) -> None:
    """Puts a registry at the end of the list.

    Raises UsageError if it is there already or cannot stand in a list.
    """
    if not where.strip() or SEPARATOR in where or "\n" in where or where.startswith("#"):
        raise UsageError(f"{where!r} is not one registry: a folder, a URL or hf:NAMESPACE.")
    with _changing() as lines:
        if where in lines:
            raise UsageError(f"{where} is in {registry_list()} already.")
        lines.append(where)


def remove(where: str) -> None:
    """Takes a registry off the list; what it holds stays. UsageError if it is not on it."""
    with _changing() as lines:
        if where not in lines:
            have = ", ".join(configured()) or "none"
            raise UsageError(f"{where} is not in {registry_list()}. It lists: {have}.")
        lines[:] = [line for line in lines if line.strip() != where]


class _changing:
    """The lines of the config file, remarks included, written back whole."""

    def __enter__(self) -> list[str]:
        path = registry_list()
        self._lock = exclusive(path.parent / ".lock")
        with disk_errors(path.parent):
            self._lock.__enter__()
        self._lines = path.read_text().splitlines() if path.exists() else []
        return self._lines

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                text = "".join(f"{line}\n" for line in self._lines)
                with disk_errors(registry_list().parent):
                    write_whole(registry_list(), text.encode())
        finally:
            self._lock.__exit__(None, None, None)
