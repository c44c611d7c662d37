"""Registries, and what people do with them: pull, verify, load.

A registry is any place that holds manifests and files. ``Registry`` is all that is asked of one;
``open_registry`` is where other kinds of places (the Hub, S3) will be recognised by their scheme.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.files import Progress, share
from wsssbed_hub.folder_registry import FolderRegistry
from wsssbed_hub.keyfolder import Verified, open_entry, read_manifest, verify_folder
from wsssbed_hub.keys import Key, looks_like_key
from wsssbed_hub.manifest import Chosen, File, Manifest
from wsssbed_hub.pngs import write_pngs
from wsssbed_hub.store import Store

if TYPE_CHECKING:
    import datasets

__all__ = [
    "FolderRegistry",
    "Registry",
    "default_registry",
    "load_dataset",
    "open_registry",
    "pull",
    "verify",
]


class Registry(Protocol):
    """A place that holds artifacts; ``str()`` of it is what messages call it."""

    def keys(self) -> list[Key]: ...

    def manifests(self) -> Iterator[Manifest]: ...

    def find(self, key: Key) -> Manifest:
        """Raises UsageError for a key that is not there, naming keys that look alike."""

    def open(self, key: Key, file: File, offset: int = 0) -> BinaryIO:
        """A stream of the file's bytes from ``offset`` on. They are not trusted."""

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """All or nothing, and a version that is there never changes."""


def default_registry() -> str:
    """``$WSSSBED_REGISTRY``, else a folder of the user's own."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return os.environ.get("WSSSBED_REGISTRY") or str(Path(base) / "wsssbed-hub" / "registry")


def open_registry(where: Registry | str | Path | None = None, *, create: bool = False) -> Registry:
    """The registry at ``where``, a folder or a ``file://`` URL; the default one if it is None.

    Raises UsageError for other URLs, and for a folder that is not there unless it is the default
    one or the caller means to ``create`` it by publishing.
    """
    if where is not None and not isinstance(where, str | Path):
        return where
    text = str(where or default_registry())
    scheme, separator, _ = text.partition("://")
    if separator and scheme != "file":
        raise UsageError(
            f"{text}: a registry is a folder or a file:// URL; {scheme}:// is not read."
        )
    if separator and urlsplit(text).netloc not in ("", "localhost"):
        raise UsageError(f"{text}: write a folder of this machine as file:///path.")
    root = Path(unquote(urlsplit(text).path) if separator else text)
    if where is not None and not create and not root.is_dir():
        raise UsageError(f"There is no registry at {root}. `wsssbed-hub push` makes one.")
    return FolderRegistry(root)


def pull(
    key: str | Key,
    target: str | None = None,
    *,
    registry: Registry | str | Path | None = None,
    to: str | Path | None = None,
    as_: str = "parquet",
    progress: Progress | None = None,
) -> Path:
    """Fetches one entry of ``key`` and gives the key folder it lies in, whole and verified.

    Without a version in the key it is the highest that covers ``target``, which may be left out if
    the key covers one only. The folder is ``to``, or one in the cache; ``as_="png"`` writes ``to``
    as PNGs in the layout of the release. Interrupted or killed, it goes on when it is called again.
    ``progress(bytes, of)`` as it goes.

    Raises UsageError for an unknown key, version or target; HubError for wrong bytes, a full disk,
    or if ``to`` is something else already.
    """
    wanted = Key.parse(key) if isinstance(key, str) else key
    _check_form(wanted, as_, to)
    place = open_registry(registry)
    manifest, chosen = _narrow(place.find(wanted), wanted, target)

    def open_file(file: File, offset: int) -> BinaryIO:
        return place.open(wanted, file, offset)

    size = chosen.entry.size
    steps = 2 if as_ == "png" else 1
    folder = Store().pull(
        manifest,
        open_file,
        to=Path(to) if to is not None and as_ == "parquet" else None,
        progress=share(progress, 0, size, steps * size),
    )
    if to is None or as_ == "parquet":
        return folder
    maps = open_entry(folder, manifest, chosen)
    return write_pngs(maps, Path(to), progress=share(progress, size, size, 2 * size))


def _check_form(key: Key, as_: str, to: str | Path | None) -> None:
    if as_ not in ("parquet", "png"):
        raise UsageError(f"as {as_!r}: an artifact comes as parquet or as png.")
    if as_ == "png" and to is None:
        raise UsageError("PNGs are written to a folder of yours: say where (to=, --to).")
    if as_ == "png" and key.kind == "weights":
        raise UsageError(f"{key} holds weights: they do not come as png.")


def _narrow(manifest: Manifest, key: Key, target: str | None) -> tuple[Manifest, Chosen]:
    """The manifest with just the entry that is meant: a key folder holds all its manifest lists."""
    chosen = manifest.choose(target, key.version)
    if not chosen.entry.files:
        raise HubError(
            f"{key} over {chosen.target} is not in this registry, only where it comes from: "
            f"{chosen.entry.source}."
        )
    return manifest.with_entries([chosen]), chosen


def verify(
    what: str | Path,
    target: str | None = None,
    *,
    registry: Registry | str | Path | None = None,
    progress: Progress | None = None,
) -> list[Verified]:
    """Recomputes everything that a manifest states of its files, for a key or a key folder.

    A key is pulled first. Raises HubError at the first claim that does not hold (see
    ``keyfolder.verify_folder``), UsageError for what is neither.
    """
    if isinstance(what, str) and looks_like_key(what):
        what = pull(what, target, registry=registry)
    if not Path(what).is_dir():
        raise UsageError(f"{what} is neither a key nor a folder.")
    return verify_folder(Path(what), progress=progress)


def load_dataset(
    key: str | Path, target: str | None = None, *, registry: Registry | str | Path | None = None
) -> datasets.Dataset:
    """The maps of a key (pulled and verified) or of a key folder as a Hugging Face dataset.

    Its columns are ``image_id`` and then ``saliency``, ``label``, or ``class_ids`` and
    ``activations``; the maps decode to Pillow images. Raises as ``pull`` does.
    """
    from datasets import Dataset

    if isinstance(key, str) and looks_like_key(key):
        key = pull(key, target, registry=registry)
    folder = Path(key)
    manifest = read_manifest(folder)
    chosen = manifest.choose(target)
    open_entry(folder, manifest, chosen)  # what `datasets` would say of damaged files is no help
    paths = [str(folder / file.path) for file in chosen.entry.files]
    return Dataset.from_parquet(paths, cache_dir=str(Store().root / "datasets"))
