"""Checks of a pull request that adds or changes manifests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wsssbed_hub.artifacts.keys import KINDS, Key
from wsssbed_hub.artifacts.manifest import (
    MAX_BYTES,
    Chosen,
    Entry,
    File,
    HubSource,
    Manifest,
    UrlSource,
    parse_manifest,
)
from wsssbed_hub.evaluation.inspect import Problem
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.release.manifests import BASE, RELEASE
from wsssbed_hub.utils.errors import HubError, UsageError

_FIXED = ("content", "images", "image_list", "files", "provenance")


def manifest_paths(given: Sequence[Path]) -> list[Path]:
    """The manifests that are meant: files as they are, folders with all that lie in their
    ``<kind>/`` folders. Raises UsageError for what is not there."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += (one for kind in KINDS for one in sorted((path / kind).glob("*.yaml")))
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{path} is not there.")
    return found


def read(path: Path) -> Manifest:
    """The manifest at ``path``. Raises HubError if it is not valid."""
    try:
        with open(path, "rb") as file:
            return parse_manifest(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None


def check_manifest(path: Path, manifest: Manifest) -> list[Problem]:
    """The rules for a manifest of the index: its place, its key, and what it has to state."""
    return [Problem("error", what) for what in _broken_rules(path, manifest)]


def _broken_rules(path: Path, manifest: Manifest) -> Iterator[str]:
    key = manifest.parsed_key
    if (path.parent.name, path.stem) != (key.kind, key.name):
        yield f"the place of {key} is {key}.yaml"
    if manifest.licence is None:
        yield "licence: the licence of the maps is not stated"
    if not manifest.trained_on and manifest.kind in ("sal", "cam"):
        yield "trained_on: what the method was trained on, and its supervision, is not stated"
    yield from _broken_key_rules(key, manifest)
    for version, target, entry in manifest.entries():
        for what in _broken_entry_rules(entry):
            yield f"{version}/{target}: {what}"


def _broken_key_rules(key: Key, manifest: Manifest) -> Iterator[str]:
    """A saliency model's key ends with its dataset, an activation method's with its saliency."""
    if key.kind == "sal" and not key.name.startswith("paper-"):
        for item in manifest.trained_on:
            supervised = item.supervision == "pixel masks" and item.dataset
            if supervised and not key.name.endswith(f"-{item.dataset}"):
                yield f"key: trained on the masks of {item.dataset}, it ends with -{item.dataset}"
    if key.kind == "cam":
        for other in manifest.trained_with:
            name = Key.parse(other).name
            if not key.name.endswith(f"-{name}"):
                yield f"key: trained with {other}, it ends with -{name}"


def _broken_entry_rules(entry: Entry) -> Iterator[str]:
    source = entry.source
    if source is None:
        yield "source: it is not said where the files can be had"
    elif isinstance(source, UrlSource):
        if source.release is not None and source.release != RELEASE:
            yield f"source: {source.release!r} is no release that is known; state a sha256"
        elif source.release is not None and not source.url.startswith(f"{BASE}/"):
            yield f"source: what is of {RELEASE} begins with {BASE}/"
        elif source.release is None and (source.sha256 is None or source.size is None):
            yield "source: a url without its sha256 and size"


def read_base(base: str, key: Key, beside: Path) -> Manifest | None:
    """The manifest of ``key`` before a change: below the folder ``base``, or in the git commit or
    branch ``base`` of the repository that ``beside`` lies in. None if it was not there.

    Raises UsageError for a base that is neither, HubError for a manifest that is not valid.
    """
    if Path(base).is_dir():
        path = Path(base) / f"{key.unversioned}.yaml"
        return read(path) if path.is_file() else None
    text = _git(beside, "show", f"{_commit(base, beside)}:{_in_repository(beside, key)}")
    return None if text is None else parse_manifest(text, f"{key}.yaml in {base}")


def base_keys(base: str, root: Path) -> list[Key]:
    """The keys that the index had before a change, ``root`` being its folder now."""
    if Path(base).is_dir():
        return IndexRegistry(Path(base)).keys()
    listed = _git(root, "ls-tree", "-r", "--name-only", _commit(base, root), ".") or ""
    names = (Path(line) for line in listed.splitlines() if line.endswith(".yaml"))
    keys = (f"{name.parent.name}/{name.stem}" for name in names)
    return [Key.parse(key) for key in keys if key.partition("/")[0] in KINDS]


def _commit(base: str, beside: Path) -> str:
    # A ref is looked up before it is used, and never taken for an option.
    found = _git(
        beside, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}"
    )
    if found is None:
        raise UsageError(f"{base} is neither a folder nor a commit or branch of git.")
    return found.strip()


def _in_repository(beside: Path, key: Key) -> str:
    """Path of the key's manifest in the repository, from that of the file that is checked."""
    folder = beside.parent.parent if beside.suffix == ".yaml" else beside
    prefix = (_git(folder, "rev-parse", "--show-prefix") or "").strip()
    return f"{prefix}{key.unversioned}.yaml"


def _git(beside: Path, *arguments: str) -> str | None:
    folder = beside if beside.is_dir() else beside.parent
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def check_against(old: Manifest, new: Manifest) -> list[Problem]:
    """Problems with what was published and is not as it was: a version never changes."""
    entries = {chosen[:2]: chosen.entry for chosen in new.entries()}
    found = []
    for version, target, entry in old.entries():
        now = entries.get((version, target))
        where = f"{version}/{target}"
        if now is None:
            found.append(f"{where} is published and was removed")
            continue
        fixed = [name for name in _FIXED if getattr(entry, name) != getattr(now, name)]
        if _address(entry) != _address(now):
            fixed.append("source")
        if any(result not in now.results for result in entry.results):
            fixed.append("results")
        if fixed:
            found.append(f"{where} is published and never changes; {', '.join(fixed)} did")
    return [Problem("error", what) for what in found]


def _address(entry: Entry) -> object:
    """The fixed part of a source: all of it, unless a digest says what has to be found there."""
    stated = entry.content is not None or getattr(entry.source, "sha256", None) is not None
    return getattr(entry.source, "sha256", None) if stated else entry.source


def check_source(manifest: Manifest, chosen: Chosen) -> Problem | None:
    """Asks where the files of an entry are whether they are there, without fetching them."""
    try:
        source = chosen.entry.source
        if isinstance(source, UrlSource):
            from wsssbed_hub.registry.release.download import remote_size

            size = remote_size(source.url)
            if None not in (size, source.size) and size != source.size:
                raise HubError(f"{source.url} has {size:,} bytes, not {source.size:,}.")
        elif isinstance(source, HubSource):
            _check_hub_files(source, manifest, chosen.entry.files)
    except HubError as error:
        return Problem("error", f"{chosen.version}/{chosen.target}: {error}")
    return None


def _check_hub_files(source: HubSource, manifest: Manifest, files: Iterable[File]) -> None:
    from wsssbed_hub.registry.hub.registry import open_repository

    registry, key = open_repository(f"hf:{source.repo}@{source.commit}")
    if not registry.repository(key).is_on("main", source.commit):
        raise HubError(
            f"{source.commit[:12]} is not on the main branch of {source.repo}: what is only in a "
            "pull request may go away. State the commit after it was merged."
        )
    there = {file for c in registry.find(manifest.parsed_key).entries() for file in c.entry.files}
    missing = [file.path for file in files if file not in there]
    if missing:
        raise HubError(
            f"{source.repo} at {source.commit[:12]} does not have {missing[0]} like that."
        )
