"""Find, fetch, check and publish artifacts: list, show, pull, push, verify."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
                "trained on": ", ".join(item.dataset for item in manifest.trained_on),
                "images": entry.images,
                "size": human(sum(file.size for file in entry.files)) if entry.files else None,
            }
        )
    return rows


def show(
    key: Annotated[str, typer.Argument(help="KEY or KEY@VERSION.")],
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Show what a manifest says: versions, files, how they were made and from what."""
    from wsssbed_hub.keys import Key
    from wsssbed_hub.registry import open_registry

    wanted = Key.parse(key)
    manifest = open_registry(registry).find(wanted)
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
    key: Annotated[str, typer.Argument(help="KEY or KEY@VERSION.")],
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
    registry: Registry = None,
) -> None:
    """Publish an artifact, whole or not at all. A published version never changes."""
    from wsssbed_hub.registry import open_registry

    place = open_registry(registry, create=True)
    with progress_bar(f"push {folder}") as progress:
        for key in place.publish(folder, version=version, progress=progress):
            typer.echo(f"{key} is in {place}")


def verify(
    what: Annotated[str, typer.Argument(help="KEY[@VERSION], or a folder with a manifest.yaml.")],
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
    app.command("list")(list_)
    for command in (show, pull, push, verify):
        app.command()(command)
