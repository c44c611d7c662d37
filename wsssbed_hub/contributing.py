"""From a key folder to a manifest in the index: publish the files, then say where they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsssbed_hub.checking import check_manifest
from wsssbed_hub.checking import read as read_file
from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.files import Progress, expect_trouble, write_whole
from wsssbed_hub.keyfolder import read_manifest
from wsssbed_hub.manifest import HubSource, Manifest

if TYPE_CHECKING:
    from wsssbed_hub.hub import HubRegistry

_PLACEHOLDER = HubSource(repo="a/b", commit="0" * 40)  # where the files will be is not known yet


def contribute(
    folder: Path, registry: HubRegistry, index: Path, *, progress: Progress | None = None
) -> Path:
    """Publishes the key folder and writes its manifest below ``index``; the path of that.

    The rules of the index are checked before anything is published. A manifest that the index has
    keeps its versions. Run again, it changes nothing.

    Raises UsageError if ``index`` is not there; HubError for a manifest that breaks a rule, and as
    ``publish`` does.
    """
    if not index.is_dir():
        raise UsageError(
            f"{index} is not there. Clone the project, or name the folder of its manifests."
        )
    own = read_manifest(folder)
    path = index / f"{own.key}.yaml"
    old = read_file(path) if path.is_file() else None
    _check(path, _with_source(own, _PLACEHOLDER))
    registry.publish(folder, progress=progress)
    repository = registry.repository(own.parsed_key)
    new = _with_source(own, HubSource(repo=repository.name, commit=repository.head("main")))
    merged = new if old is None else old.merged(new)
    with expect_trouble(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, merged.dump().encode())
    return path


def _check(path: Path, manifest: Manifest) -> None:
    problems = check_manifest(path, manifest)
    if problems:
        what = "\n".join(f"  {problem}" for problem in problems)
        raise HubError(f"{manifest.key} is not ready for the index; nothing was published:\n{what}")


def _with_source(manifest: Manifest, source: HubSource) -> Manifest:
    """``manifest`` as it stands in the index: with the place of its files."""
    return manifest.with_entries(
        chosen._replace(entry=chosen.entry.model_copy(update={"source": source}))
        for chosen in manifest.entries()
    )
