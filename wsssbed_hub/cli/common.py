"""What the commands share: option types, tables, progress bars."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

    from wsssbed_hub.registry.open_artifact import Maps

Registry = Annotated[
    str | None,
    typer.Option(
        help="Where artifacts are found: a folder, hf:NAMESPACE or a URL; several with commas.",
        show_default="those of `wsssbed-hub registry list`",
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
Where = "KEY[@VERSION], hf:NAMESPACE/REPOSITORY[@REVISION], or a folder or zip of maps"
WHICH = "KEY[@VERSION], or hf:NAMESPACE/REPOSITORY[@REVISION] on the Hub."


class Progress(Protocol):
    def __call__(self, done: int, total: int) -> None: ...


def print_table(
    rows: Sequence[Mapping[str, Any]], *, as_json: bool, spare: Sequence[str] = ()
) -> None:
    """Rows that share their columns, as an aligned table or as JSON. Numbers stand right.

    Where the window is too narrow the columns of ``spare`` are left out one after the other, those
    with nothing in them first, and a remark says which.
    """
    if as_json:
        typer.echo(json.dumps(list(rows), indent=2, default=str))
        return
    console = window()
    columns = list(rows[0]) if rows else []
    order = sorted(spare, key=lambda name: any(row[name] not in (None, "") for row in rows))
    left_out = []
    table = _table(rows, columns)
    while order and console.width < console.measure(table, options=_endless(console)).maximum:
        left_out.append(order.pop(0))
        table = _table(rows, [name for name in columns if name not in left_out])
    console.print(table)
    if left_out:
        note(f"Left out for want of room: {', '.join(left_out)}. --json has everything.")


def window(*, highlight: bool = True) -> Console:
    """Where tables and trees are printed; without a terminal it is wide, so that names, digests
    and commands stay in one piece."""
    from rich.console import Console

    console = Console(highlight=highlight)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = 200
    return console


def _endless(console: Console) -> ConsoleOptions:
    """A window of any width."""
    return console.options.update(max_width=1 << 20)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from wsssbed_hub.utils.text import printable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numbers = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        cells = ("" if row[name] is None else str(row[name]) for name in columns)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


@contextmanager
def progress_bar(title: str, *, unit: str = "bytes") -> Iterator[Progress]:
    """A bar on the terminal with amount, rate and time left; nothing where stderr is a file.

    Inside another one it is a line below it, for as long as it lasts.
    """
    from wsssbed_hub.cli.progress import bar

    with bar(title, unit) as show:
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
    from wsssbed_hub.registry.open_artifact import open_artifact
    from wsssbed_hub.utils.errors import UsageError

    maps = open_artifact(where, target, registry=registry)
    if maps.kind != kind:
        raise UsageError(f"{where} holds maps of kind {maps.kind}, and {kind} was asked for.")
    return maps


def note(text: str) -> None:
    """A remark for the person at the terminal; standard output stays for the result."""
    typer.echo(text, err=True)
