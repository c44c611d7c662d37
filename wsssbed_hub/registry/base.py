"""The base of all registries: how keys are found, and the order in which files are published."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest, verify_folder
from wsssbed_hub.artifacts.keys import KINDS, Key, Version
from wsssbed_hub.artifacts.manifest import MAX_BYTES, Chosen, File, Manifest, parse_manifest
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.artifacts.private_paths import private_paths
from wsssbed_hub.artifacts.stage_command import ARTIFACTS, DATA, INPUTS
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.utils.progress import Progress, share

NAMESPACE = "wsssbed"  # the folder of a registry in which the folders of its keys are
THREADS = 8  # that read manifests


class Missing(UsageError):
    """An artifact that is not there, or may not be seen. The text of ``hint``, which may take
    asking a server, is added when the message is read: the next registry may have it."""

    def __init__(self, message: str = "", hint: Callable[[], str] = str):
        super().__init__(message)
        self._hint = hint

    def __str__(self) -> str:
        return super().__str__() + self._hint()


class Registry(Protocol):
    """A place that holds artifacts; ``str()`` of it is what messages call it."""

    def keys(self) -> list[Key]:
        """The keys that are published here, in the order of their names."""

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all keys. Raises HubError at one that is not valid."""

    def find(self, key: Key) -> Manifest:
        """The manifest of ``key``, whatever its version.

        Raises Missing, with keys that look alike, if nothing is published under it, and HubError
        if the place cannot be read or the manifest is not valid.
        """

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """Writes to ``out``, which has ``out.tell()`` of the file's bytes and not all, the rest of
        them, or after ``out.seek(0)`` all.

        Nobody trusts them. Raises HubError if they cannot be had.
        """

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """Publishes what the key folder ``folder`` holds; the keys with their versions.

        Everything is verified first, and becomes visible at once, when the manifest is written.
        With ``version`` the folder's only version is published under that number. What is there
        already with the same content stays as it is; with other content it is a HubError.
        Interrupted or killed it leaves nothing that can be seen, and may be repeated.
        """


class BaseRegistry(ABC):
    """The common part of every registry with manifests of its own."""

    @abstractmethod
    def keys(self) -> list[Key]:
        """As ``Registry.keys``."""

    @abstractmethod
    def _load(self, key: Key) -> Manifest:
        """The manifest that lies where that of ``key`` should. Raises Missing if there is none,
        with what may be the reason, and HubError if it cannot be read or is not valid."""

    @abstractmethod
    def _send(self, publication: Publication, progress: Progress | None) -> None:
        """Publishes what was verified: files first, the manifest last. ``progress(bytes, of)``."""

    def _admit(self, publication: Publication) -> None:
        """Raises what is in the way of a publication before all of it is verified, such as a
        version that is there with other content."""
        with suppress(Missing):
            merge(self._checked(publication.key), publication.manifest)

    def _where(self, key: Key) -> str:
        """How messages call the manifest of ``key``."""
        return f"{self}: {key.repository}/{MANIFEST}"

    def find(self, key: Key) -> Manifest:
        """As ``Registry.find``."""
        try:
            return self._checked(key)
        except Missing as error:
            reason = f" {error}" if str(error) else ""
            message = f"There is no {key.unversioned} in {self}.{reason}"
            raise Missing(message, lambda: self._near(key)) from None

    def _checked(self, key: Key) -> Manifest:
        manifest = self._load(key)
        if manifest.parsed_key != key.unversioned:
            raise HubError(f"{self._where(key)} speaks of {manifest.key}, not of {key}.")
        return manifest

    def _near(self, key: Key) -> str:
        known: list[str] = []
        with suppress(HubError):
            known = [str(other) for other in self.keys()]
        what = f" It has {len(known)} keys; `wsssbed-hub list` shows them." if known else ""
        return did_you_mean(str(key.unversioned), known) or what

    def manifests(self) -> Iterator[Manifest]:
        """As ``Registry.manifests``."""
        with ThreadPoolExecutor(THREADS) as threads:
            yield from threads.map(self.find, self.keys())

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """As ``Registry.publish``."""
        publication = Publication(folder, version)
        self._admit(publication)
        size = publication.size
        verify_folder(folder, progress=share(progress, 0, size, 2 * size))
        self._send(publication, share(progress, size, size, 2 * size))
        if progress is not None:
            progress(2 * size, 2 * size)
        return publication.keys


class Transfer(NamedTuple):
    """One file: as the key folder lists it, and as it is listed where it goes."""

    here: File
    there: File


class Publication:
    """Entries of ``folder`` to be published, the only version as ``version`` if it is given.

    Raises UsageError if the folder has several versions and one number is given for them, and
    HubError if the manifest or a file that people read names a folder of this machine.
    """

    def __init__(self, folder: Path, version: str | None):
        manifest = read_manifest(folder)
        if version is not None and len(manifest.versions) != 1:
            have = ", ".join(manifest.versions)
            raise UsageError(f"{folder} holds the versions {have}: they are published as they are.")
        self.folder = folder
        _refuse_private_paths(folder, manifest)
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


def _refuse_private_paths(folder: Path, manifest: Manifest) -> None:
    texts = {MANIFEST: manifest.dump()}
    for chosen in manifest.entries():
        for file in chosen.entry.files:
            path = folder / file.path
            if path.suffix == ".json" and path.is_file():  # all others are pixels and numbers
                texts[file.path] = path.read_text(errors="replace")
    for name, text in texts.items():
        found = private_paths(text)
        if found:
            raise HubError(
                f"{folder / name} would tell everybody paths of this machine: "
                f"{', '.join(found[:3])}. Nothing was published. Write what stands for them in a "
                f"container ({DATA}, {ARTIFACTS}, {INPUTS}/1/NAME), or make the artifact again."
            )


def _renumbered(chosen: Chosen, version: str | None) -> Chosen:
    """The entry as it is under another version, the files in that version's folder."""
    if version is None:
        return chosen
    number = Version.parse(version)
    folder = f"{chosen.target}/{number}"
    files = [f.model_copy(update={"path": f"{folder}/{f.name}"}) for f in chosen.entry.files]
    return Chosen(number, chosen.target, chosen.entry.model_copy(update={"files": files}))


def keys_of(repositories: Iterable[str]) -> list[Key]:
    """The keys whose folders or repositories have such names; other names are passed over."""
    found = []
    for name in repositories:
        kind, _, rest = name.partition("-")
        with suppress(UsageError):  # something else that lies there
            if kind in KINDS:
                found.append(Key.parse(f"{kind}/{rest}"))
    return sorted(found, key=str)


def load_file(path: Path) -> Manifest:
    """The manifest at ``path``. Raises Missing if there is none, HubError if it is damaged."""
    try:
        with open(path, "rb") as file:
            return parse_manifest(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        raise Missing from None
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None
