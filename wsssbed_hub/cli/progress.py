"""Progress bars: how much of how much, how fast, how long still. Imported where one is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from wsssbed_hub.cli import common

_shown: list[Progress] = []  # the bars on the terminal now: a terminal has one place for them


@contextmanager
def bar(title: str, unit: str) -> Iterator[common.Progress]:
    """A bar of its own, or a line below the bars that are shown already; gone when it is left.

    Any thread may call what this gives. Nothing is shown where stderr is not a terminal.
    """
    if _shown:
        task = _shown[0].add_task(title, total=None, unit=unit)
        try:
            yield _advancing(_shown[0], task)
        finally:
            _shown[0].remove_task(task)
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Amount(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        _shown.append(bars)
        try:
            yield _advancing(bars, bars.add_task(title, total=None, unit=unit))
        finally:
            _shown.clear()


def _advancing(bars: Progress, task: int) -> common.Progress:
    def show(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)  # type: ignore[arg-type]  # a TaskID

    return show


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = None if task.total is None else _amount(task, task.total)
        return Text(_amount(task, task.completed) + (f"/{total}" if total else ""))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        return Text(f"{_amount(task, speed)}{'' if _is_bytes(task) else ' ' + _unit(task)}/s")


def _amount(task: Task, number: float) -> str:
    return common.human(number) if _is_bytes(task) else f"{number:,.0f}"


def _is_bytes(task: Task) -> bool:
    return _unit(task) == "bytes"


def _unit(task: Task) -> str:
    return str(task.fields["unit"])
