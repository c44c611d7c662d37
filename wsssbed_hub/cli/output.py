"""Tables and remarks on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table


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


def note(text: str) -> None:
    """A remark for the person at the terminal; standard output stays for the result."""
    typer.echo(text, err=True)
