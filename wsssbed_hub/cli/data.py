"""Datasets on this machine: data list|check|make."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from wsssbed_hub.cli.options import DATA_ROOT, AsJson, DataRoot
from wsssbed_hub.cli.output import note, print_table
from wsssbed_hub.utils.progress import progress_bar

if TYPE_CHECKING:
    from wsssbed_hub.datasets import FileFinding

data = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Datasets: which are known, there, complete."
)


class Drawn(StrEnum):
    shapes = "shapes"


@data.command("list")
def list_(data_root: DataRoot = DATA_ROOT, as_json: AsJson = False) -> None:
    """List the targets and SOD datasets that are known, and which of them are there."""
    from wsssbed_hub.datasets import SOD_DATASETS, TARGETS, own_targets

    targets = [*TARGETS.values(), *own_targets(data_root)]
    rows = []
    for use, specs in (("target", targets), ("SOD dataset", SOD_DATASETS.values())):
        for spec in specs:
            rows.append(
                {
                    "name": spec.name,
                    "used as": use,
                    "images": spec.published,
                    "there": "yes" if spec.is_there(data_root) else "no",
                    "title": spec.title,
                }
            )
    print_table(rows, as_json=as_json)
    note(f"below {data_root}")


@data.command()
def check(
    name: Annotated[str, typer.Argument(help="A target or SOD dataset, such as voc12 or duts.")],
    data_root: DataRoot = DATA_ROOT,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also open every file and compare sizes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what of a dataset is there, what is missing and where to get it, and count the images.

    The exit code is 1 if anything is missing or wrong.
    """
    from wsssbed_hub.datasets import check as inspect

    with progress_bar(f"check {name}", unit="files") as progress:
        report = inspect(name, data_root, deep=deep, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2, default=str))
    else:
        typer.echo(f"{report.name}: {report.title}, below {report.data_root}")
        for finding in report.findings:
            typer.echo(_line(finding))
        if not report.ok:
            typer.echo("Where to get it:")
            for source in report.sources:
                typer.echo(f"  {source.what}: {source.where}")
            typer.echo(f"  licence: {report.licence}")
        if report.paper is not None:
            typer.echo(f"Paper to cite: {report.paper}")
    if not report.ok:
        raise typer.Exit(1)


def _line(finding: FileFinding) -> str:
    counts = "" if finding.found is None else f"  {finding.found:,}"
    if finding.expected is not None and finding.expected != finding.found:
        counts += f" of {finding.expected:,}"
    rest = "  ".join(part for part in (finding.detail, finding.path) if part)
    return f"  {'ok     ' if finding.ok else 'MISSING'}  {finding.what}{counts}  {rest}".rstrip()


@data.command()
def make(
    name: Annotated[Drawn, typer.Argument(help="The dataset to draw.")],
    data_root: DataRoot = DATA_ROOT,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.", min=0)] = 0,
    train: Annotated[int, typer.Option(help="Images of train_aug.", min=3)] = 300,
    val: Annotated[int, typer.Option(help="Images of val.", min=1)] = 100,
    sod: Annotated[int, typer.Option(help="Images for training saliency.", min=1)] = 300,
) -> None:
    """Draw the synthetic dataset in the layouts of VOC 2012, COCO 2014 and DUTS."""
    from wsssbed_hub.datasets import make_shapes

    with progress_bar(f"draw {name.value}", unit="images") as progress:
        make_shapes(data_root, seed, train=train, val=val, sod=sod, progress=progress)
    typer.echo(data_root / name.value)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.add_typer(data, name="data")
