"""What the commands share: option types, tables, progress bars."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    from wsssbed_hub.maps import Maps

Registry = Annotated[
    str | None,
    typer.Option(
        envvar="WSSSBED_REGISTRY",
        help="Where artifacts are found and published: a folder, hf:NAMESPACE, or a URL to read.",
        show_default="~/.local/share/wsssbed-hub/registry",
    ),
]
DataRoot = Annotated[
    Path, typer.Option(envvar="WSSSBED_DATA", help="Folder with the datasets, as distributed.")
]
DATA_ROOT = Path("/data")
Target = Annotated[
    str | None,
    typer.Option(help="Dataset whose images the maps are for.", show_default="the only one"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Where = "KEY[@VERSION], or a folder or zip of maps"


class Progress(Protocol):
    def __call__(self, done: int, total: int) -> None: ...


def print_table(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Rows that share their columns, as an aligned table or as JSON. Numbers stand right."""
    if as_json:
        typer.echo(json.dumps(list(rows), indent=2, default=str))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0] if rows else ():
        numbers = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # nobody's window: names stay in one piece
    console.print(table)


@contextmanager
def progress_bar(title: str, *, unit: str = "bytes") -> Iterator[Progress]:
    """A bar on the terminal with rate and time left; nothing where stderr is a file."""
    from rich import progress
    from rich.console import Console

    amount = (
        [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        if unit == "bytes"
        else [progress.MofNCompleteColumn()]
    )
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), *amount]
    console = Console(stderr=True)
    with progress.Progress(
        *columns, progress.TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(title, total=None)

        def show(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield show


def human(size: float) -> str:
    """``31457280`` bytes as ``31.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def open_maps(where: str, target: str | None, registry: str | None, kind: str) -> Maps:
    """The maps that a person names on the command line; another kind is a usage error."""
    from wsssbed_hub.errors import UsageError
    from wsssbed_hub.maps import open_artifact

    maps = open_artifact(where, target, registry=registry)
    if maps.kind != kind:
        raise UsageError(f"{where} holds maps of kind {maps.kind}, and {kind} was asked for.")
    return maps


def note(text: str) -> None:
    """A remark for the person at the terminal; standard output stays for the result."""
    typer.echo(text, err=True)
