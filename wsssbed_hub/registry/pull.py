"""Opens registries by how they are written; pulls, verifies and loads artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from wsssbed_hub.artifacts.key_folder import Verified, open_entry, read_manifest, verify_folder
from wsssbed_hub.artifacts.keys import HUB, Key, names_artifact
from wsssbed_hub.artifacts.manifest import Chosen, HubSource, Manifest
from wsssbed_hub.artifacts.png_layout import write_pngs
from wsssbed_hub.cache.store import Fetcher, Store
from wsssbed_hub.registry.base import Registry
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.multi import Registries, configured, split
from wsssbed_hub.registry.release.fetch import from_url, is_url_only
from wsssbed_hub.utils import settings
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.parallel import JOBS
from wsssbed_hub.utils.progress import Progress, share

if TYPE_CHECKING:
    import datasets

__all__ = [
    "default_registry",
    "load_dataset",
    "locate",
    "open_registry",
    "pull",
    "verify",
]


def default_registry() -> str:
    """Where is published if nothing else is said: the first that ``$WSSSBED_REGISTRY`` lists, else
    a folder of the user's own."""
    return next(iter(split(settings.registries())), str(settings.own_registry()))


def registries_in_use() -> list[tuple[str, str]]:
    """Registries searched, in order, where none is named, each with its source: those of
    ``WSSSBED_REGISTRY`` if it is set, else the user's own folder and those of the config file. The
    index of record stands behind them."""
    if named := split(settings.registries()):
        return [(where, "WSSSBED_REGISTRY") for where in named]
    listed = [(where, str(settings.registry_list())) for where in configured()]
    return [(default_registry(), "your own folder"), *listed]


def open_registry(where: Registry | str | Path | None = None, *, create: bool = False) -> Registry:
    """The registry at ``where``: a folder, ``hf:<namespace>``, a URL that fsspec reads, or several
    of these in order with commas between them, and nothing else; if it is None or empty
    ``registries_in_use``, and behind them the index of record.

    Raises UsageError for what is no registry, for a folder that is not there unless nobody named it
    or the caller means to ``create`` it by publishing, and for several of which one is to be.
    """
    if where is not None and not isinstance(where, str | Path):
        return where
    texts = [str(where)] if isinstance(where, Path) else split(where or "")
    if not texts:
        places = [_place(text, may_be_missing=True) for text, _ in registries_in_use()]
        return Registries(places, IndexRegistry())
    if create and len(texts) > 1:
        raise UsageError(f"{where}: publish to one registry at a time.")
    places = [_place(text, may_be_missing=create) for text in texts]
    return places[0] if len(places) == 1 else Registries(places)


def check_address(text: str) -> str:
    """The address to write down for a registry: ``text``, or the whole path of a folder.

    Raises UsageError if it is no registry or holds a password, HubError if a package is missing
    that reads it.
    """
    place = _place(text, may_be_missing=False)
    if "://" in text and urlsplit(text).password:
        raise UsageError(
            f"{place}: a password is not written down. Sign in as the driver of such URLs has it."
        )
    return str(place) if isinstance(place, FolderRegistry) else text


def _place(text: str, *, may_be_missing: bool) -> Registry:
    """The registry that ``text`` spells."""
    if text.startswith(HUB):
        from wsssbed_hub.registry.hub.registry import HubRegistry

        return HubRegistry(text.removeprefix(HUB))
    _, separator, _ = text.partition("://")
    if separator and not text.startswith("file://"):
        from wsssbed_hub.registry.url.registry import UrlRegistry

        return UrlRegistry(text)
    if separator and urlsplit(text).netloc not in ("", "localhost"):
        raise UsageError(f"{text}: write a folder of this machine as file:///path.")
    root = Path(unquote(urlsplit(text).path) if separator else text)
    if not may_be_missing and not root.is_dir():
        raise UsageError(f"There is no registry at {root}. `wsssbed-hub push` makes one.")
    return FolderRegistry(root)


def locate(what: str | Key, registry: Registry | str | Path | None = None) -> tuple[Registry, Key]:
    """Where an artifact is, and its key: one of ``registry``, or whatever the repository that
    ``hf:<namespace>/<repository>[@revision]`` names on the Hub holds."""
    if isinstance(what, str) and what.startswith(HUB):
        from wsssbed_hub.registry.hub.registry import open_repository

        return open_repository(what)
    key = Key.parse(what) if isinstance(what, str) else what
    return open_registry(registry), key


def pull(
    key: str | Key,
    target: str | None = None,
    *,
    registry: Registry | str | Path | None = None,
    to: str | Path | None = None,
    as_: str = "parquet",
    jobs: int | None = None,
    data_root: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetches one entry of ``key`` and gives the key folder it lies in, whole and verified.

    ``key`` is a key, or a repository on the Hub (see ``locate``). Without a version it is the
    highest that covers ``target``, which may be left out if the key covers one only. The folder is
    ``to``, or one in the cache; ``as_="png"`` writes ``to`` as PNGs in the layout of the release.
    Interrupted or killed, it goes on when it is called again. ``progress(bytes, of)`` as it goes.

    ``jobs`` files are fetched at once (4 if it is not given), and as many processes convert the
    maps of a release (one for each of up to 8 cores). These are compared with the lists of their
    target, if they are below ``data_root`` (``$WSSSBED_DATA``, else ``/data``).

    Raises UsageError for an unknown key, version or target; HubError for wrong bytes, a full disk,
    or if ``to`` is something else already.
    """
    place, wanted = locate(key, registry)
    _check_form(wanted, as_, to)
    manifest, chosen = _narrow(place.find(wanted), wanted, target)

    store = Store()
    fetch = _fetcher(place, wanted, chosen)
    if is_url_only(chosen.entry):
        manifest, fetch = from_url(
            manifest,
            chosen,
            store=store,
            data_root=data_root,
            processes=jobs,
            progress=progress,
        )
        (chosen,) = manifest.entries()
    size = chosen.entry.size
    steps = 2 if as_ == "png" else 1
    folder = store.pull(
        manifest,
        fetch,
        to=Path(to) if to is not None and as_ == "parquet" else None,
        progress=share(progress, 0, size, steps * size),
        jobs=jobs or JOBS,
    )
    if to is None or as_ == "parquet":
        return folder
    maps = open_entry(folder, manifest, chosen)
    return write_pngs(maps, Path(to), progress=share(progress, size, size, 2 * size))


def _fetcher(place: Registry, key: Key, chosen: Chosen) -> Fetcher:
    """Fetches the files of an entry: from beside the manifest, or from the Hub at a commit."""
    source = chosen.entry.source
    if isinstance(source, HubSource):
        from wsssbed_hub.registry.hub.repository import HubRepository

        repository, commit = HubRepository(source.repo), source.commit
        return lambda file, out: repository.fetch(file.path, commit, out)
    return lambda file, out: place.fetch(key, file, out)


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
    if not chosen.entry.files and not is_url_only(chosen.entry):
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
    ``key_folder.verify_folder``), UsageError for what is neither.
    """
    if isinstance(what, str) and names_artifact(what):
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

    if isinstance(key, str) and names_artifact(key):
        key = pull(key, target, registry=registry)
    folder = Path(key)
    manifest = read_manifest(folder)
    chosen = manifest.choose(target)
    open_entry(folder, manifest, chosen)  # what `datasets` would say of damaged files is no help
    paths = [str(folder / file.path) for file in chosen.entry.files]
    return Dataset.from_parquet(paths, cache_dir=str(Store().root / "datasets"))
