"""Find, fetch, check and publish artifacts: list, show, pull, push, verify."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsssbed_hub.commands import registries
from wsssbed_hub.commands.common import (
    AsJson,
    Registry,
    Target,
    human,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from wsssbed_hub.manifest import Manifest


_WHICH = "KEY[@VERSION], or hf:NAMESPACE/REPOSITORY[@REVISION] on the Hub."


class Form(StrEnum):
    parquet = "parquet"
    png = "png"


def list_(
    kind: Annotated[
        str | None, typer.Option(help="Only this kind: sal, cam, label or weights.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Only maps over this target.")] = None,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """List the artifacts of a registry."""
    from wsssbed_hub.errors import UsageError
    from wsssbed_hub.keys import KINDS
    from wsssbed_hub.registry import open_registry

    if kind is not None and kind not in KINDS:
        raise UsageError(f"There is no kind {kind!r}. Kinds are {', '.join(KINDS)}.")
    place = open_registry(registry)
    rows = [
        row
        for manifest in place.manifests()
        if kind in (None, manifest.kind)
        for row in _rows(manifest)
        if target in (None, row["target"])
    ]
    if not rows and not as_json:
        typer.echo(f"No such artifacts in {place}.")
        return
    print_table(rows, as_json=as_json)


def _rows(manifest: Manifest) -> list[dict[str, Any]]:
    """One row for each target that the manifest covers, at its latest version."""
    rows = []
    for target in manifest.targets():
        version = manifest.latest(target)
        entry = manifest.entry(version, target)
        rows.append(
            {
                "key": manifest.key,
                "version": str(version),
                "target": target,
                "method": manifest.method.name,
                "trained on": _trained_on(manifest, target),
                "images": entry.images,
                "size": human(sum(file.size for file in entry.files)) if entry.files else None,
            }
        )
    return rows


def _trained_on(manifest: Manifest, target: str) -> str:
    """The datasets that what covers ``target`` was trained on; ``?`` for one that is not known."""
    items = [item for item in manifest.trained_on if item.target in (None, target)]
    return ", ".join(item.dataset or "?" for item in items)


def show(
    key: Annotated[str, typer.Argument(help=_WHICH)],
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Show what a manifest says: versions, files, how they were made and from what."""
    from wsssbed_hub.registry import locate

    place, wanted = locate(key, registry)
    manifest = place.find(wanted)
    if wanted.version is not None:
        for target in manifest.targets():
            manifest.entry(wanted.version, target)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2, exclude_defaults=True))
        return
    from rich.console import Console

    from wsssbed_hub.commands.manifest_tree import manifest_tree

    Console().print(manifest_tree(manifest, wanted.version))


def pull(
    key: Annotated[str, typer.Argument(help=_WHICH)],
    target: Target = None,
    form: Annotated[
        Form,
        typer.Option("--as", help="Parquet shards, or a folder of PNGs in the release's layout."),
    ] = Form.parquet,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder to make.", show_default="the cache"),
    ] = None,
    registry: Registry = None,
) -> None:
    """Fetch an artifact, verified against its manifest, and print where it is.

    Interrupted, run it again: it goes on where it was.
    """
    from wsssbed_hub.errors import UsageError
    from wsssbed_hub.registry import pull as fetch

    if form is Form.png and to is None:
        raise UsageError("--as png writes a folder: say where with --to.")
    with progress_bar(f"pull {key}") as progress:
        folder = fetch(key, target, registry=registry, to=to, as_=form.value, progress=progress)
    typer.echo(folder)


def push(
    folder: Annotated[
        Path, typer.Argument(help="Folder with a manifest.yaml, as a stage writes it.")
    ],
    version: Annotated[
        str | None, typer.Option(help="Publish under this version.", show_default="the folder's")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            "--registry",
            envvar="WSSSBED_REGISTRY",
            help="Where to publish: a folder, or hf:NAMESPACE on the Hub.",
            show_default="~/.local/share/wsssbed-hub/registry",
        ),
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pr", help="Open a pull request on the Hub instead of publishing.")
    ] = False,
) -> None:
    """Publish an artifact, whole or not at all. A published version never changes."""
    from wsssbed_hub.errors import UsageError
    from wsssbed_hub.hub import HubRegistry
    from wsssbed_hub.registry import open_registry

    place = open_registry(to, create=True)
    if pull_request and not isinstance(place, HubRegistry):
        raise UsageError(f"--pr opens a pull request on the Hub (--to hf:NAMESPACE), not {place}.")
    with progress_bar(f"push {folder}") as progress:
        if isinstance(place, HubRegistry) and pull_request:
            typer.echo(place.propose(folder, version=version, progress=progress))
            return
        for key in place.publish(folder, version=version, progress=progress):
            typer.echo(f"{key} is in {place}")


def verify(
    what: Annotated[str, typer.Argument(help="A folder with a manifest.yaml, or " + _WHICH)],
    target: Target = None,
    registry: Registry = None,
) -> None:
    """Read everything again and compare it with the manifest: bytes, counts, decoded pixels."""
    from wsssbed_hub.registry import verify as check

    with progress_bar(f"verify {what}") as progress:
        verified = check(what, target, registry=registry, progress=progress)
    for one in verified:
        images = f"{one.images:,} images, " if one.images else ""
        typer.echo(
            f"ok  {one.key} over {one.target}: {images}{one.files} files, {human(one.size)}, "
            f"content {one.content}"
        )


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(registries.app, name="registry")
    app.command("list")(list_)
    for command in (show, pull, push, verify):
        app.command()(command)
