"""From a key folder to a manifest in the index: publish the files, then say where they are."""

from __future__ import annotations

from pathlib import Path

from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.artifacts.manifest import HubSource, Manifest
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.registry.hub.errors import Missing
from wsssbed_hub.registry.hub.registry import HubRegistry, Proposed
from wsssbed_hub.registry.hub.repository import MAIN
from wsssbed_hub.review.check_manifest import check_manifest
from wsssbed_hub.review.check_manifest import read as read_file
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import disk_errors, write_whole
from wsssbed_hub.utils.progress import Progress

_PLACEHOLDER = HubSource(repo="a/b", commit="0" * 40)  # where the files will be is not known yet


def contribute(
    folder: Path,
    registry: HubRegistry,
    index: Path,
    *,
    pull_request: bool = False,
    progress: Progress | None = None,
) -> Path | Proposed:
    """Publishes the key folder and writes its manifest below ``index``; gives the path of that, or
    the Hub's pull request that has to be merged first.

    With ``pull_request`` the Hub's owners of the repository decide: the first call opens a pull
    request there, and once they have merged it another call finds the files on ``main`` and writes
    the manifest. No manifest ever names the commit of a pull request. The rules of the index are
    checked before anything is published. A manifest that the index has keeps its versions. Run
    again, it changes nothing.

    Raises UsageError if ``index`` is not there; HubError for a manifest that breaks a rule, and as
    ``publish`` and ``propose`` do.
    """
    if not index.is_dir():
        raise UsageError(
            f"{index} is not there. Clone the project, or name the folder of its manifests."
        )
    own = read_manifest(folder)
    path = index / f"{own.key}.yaml"
    old = read_file(path) if path.is_file() else None
    _check(path, _with_source(own, _PLACEHOLDER), folder)
    if pull_request:
        request = _request(folder, own, registry, progress)
        if request is not None:
            return request
    else:
        registry.publish(folder, progress=progress)
    new = _as_published(own, registry)
    merged = merge(old, new)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, merged.dump().encode())
    return path


def _request(
    folder: Path, own: Manifest, registry: HubRegistry, progress: Progress | None
) -> Proposed | None:
    """The pull request on the Hub, opened now or before; None once it is merged."""
    repository = registry.repository(own.parsed_key)
    try:
        if registry.holds(own, repository.head(MAIN)):
            return None
        return registry.propose(folder, progress=progress)
    except Missing as error:
        raise Missing(
            f"{error} A pull request needs a repository that is there: ask its owners for an empty "
            "one of that name, or publish in a namespace of your own, without --pr."
        ) from None


def _as_published(own: Manifest, registry: HubRegistry) -> Manifest:
    """``own`` as it is on the Hub: the same maps may lie there in other files."""
    repository = registry.repository(own.parsed_key)
    commit = repository.head(MAIN)
    name = own.parsed_key.repository
    place = HubRegistry(registry.namespace, repository=name, revision=commit)
    there = {chosen[:2]: chosen for chosen in place.find(own.parsed_key).entries()}
    mine = own.with_entries(there[chosen[:2]] for chosen in own.entries())
    return _with_source(mine, HubSource(repo=repository.name, commit=commit))


def _check(path: Path, manifest: Manifest, folder: Path) -> None:
    problems = check_manifest(path, manifest)
    if problems:
        what = "\n".join(f"  {problem}" for problem in problems)
        raise HubError(
            f"{manifest.key} is not ready for the index; nothing was published:\n{what}\n"
            f"Mend {folder / MANIFEST} and run it again."
        )


def _with_source(manifest: Manifest, source: HubSource) -> Manifest:
    """``manifest`` as it stands in the index: with the place of its files."""
    return manifest.with_entries(
        chosen._replace(entry=chosen.entry.model_copy(update={"source": source}))
        for chosen in manifest.entries()
    )
