"""Fetch, check and publish artifacts: pull, push, verify."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsssbed_hub.artifacts.keys import HUB, names_artifact
from wsssbed_hub.cli import registries
from wsssbed_hub.cli.options import DATA_ROOT, WHICH, DataRoot, Registry, Target
from wsssbed_hub.cli.output import note
from wsssbed_hub.utils.options import refuse
from wsssbed_hub.utils.progress import progress_bar
from wsssbed_hub.utils.units import human


class Form(StrEnum):
    parquet = "parquet"
    png = "png"


def pull(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help=WHICH)],
    target: Target = None,
    form: Annotated[
        Form,
        typer.Option("--as", help="Parquet shards, or a folder of PNGs in the release's layout."),
    ] = Form.parquet,
    to: Annotated[
        Path | None,
        typer.Option(help="Folder to make.", show_default="the cache"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Files that are fetched at once, and processes that convert a release.",
            show_default="4 files, a process for each of up to 8 cores",
        ),
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
) -> None:
    """Fetch an artifact, verified against its manifest, and print where it is.

    Interrupted, run it again: it goes on where it was.
    """
    from wsssbed_hub.registry.pull import pull as fetch
    from wsssbed_hub.utils.errors import UsageError

    _refuse_registry(context, key)
    if form is Form.png and to is None:
        raise UsageError("--as png writes a folder: say where with --to.")
    with progress_bar(f"pull {key}") as progress:
        folder = fetch(
            key,
            target,
            registry=registry,
            to=to,
            as_=form.value,
            jobs=jobs,
            data_root=data_root,
            progress=progress,
        )
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
            help="Where to publish: a folder, hf:NAMESPACE on the Hub, or s3://, gs://.",
            show_default="the first of WSSSBED_REGISTRY, else your own folder",
        ),
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pr", help="Open a pull request on the Hub instead of publishing.")
    ] = False,
) -> None:
    """Publish an artifact, whole or not at all. A published version never changes."""
    from wsssbed_hub.registry.hub.registry import HubRegistry
    from wsssbed_hub.registry.pull import default_registry, open_registry
    from wsssbed_hub.utils.errors import UsageError

    place = open_registry(to or default_registry(), create=True)
    if pull_request and not isinstance(place, HubRegistry):
        raise UsageError(f"--pr opens a pull request on the Hub (--to hf:NAMESPACE), not {place}.")
    with progress_bar(f"push {folder}") as progress:
        if isinstance(place, HubRegistry) and pull_request:
            proposed = place.propose(folder, version=version, progress=progress)
            typer.echo(proposed.url)
            if proposed.waiting:
                note("this pull request was opened before and is not merged")
            return
        for key in place.publish(folder, version=version, progress=progress):
            typer.echo(f"{key} is in {place}")


def _refuse_registry(context: typer.Context, what: str) -> None:
    if what.startswith(HUB):
        refuse(context, ["registry"], f"{what} lies on the Hub")


def verify(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="A folder with a manifest.yaml, or " + WHICH)],
    target: Target = None,
    registry: Registry = None,
) -> None:
    """Read everything again and compare it with the manifest: bytes, counts, decoded pixels."""
    from wsssbed_hub.registry.pull import verify as check
    from wsssbed_hub.utils.text import count

    _refuse_registry(context, what)
    if not names_artifact(what):
        refuse(context, ["target", "registry"], "All that a folder holds is verified")
    with progress_bar(f"verify {what}") as progress:
        verified = check(what, target, registry=registry, progress=progress)
    for one in verified:
        images = f"{one.images:,} images, " if one.images else ""
        typer.echo(
            f"ok  {one.key} over {one.target}: {images}{count(one.files, 'file')}, "
            f"{human(one.size)}, "
            f"content {one.content}"
        )


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(registries.app, name="registry")
    for command in (pull, push, verify):
        app.command()(command)
