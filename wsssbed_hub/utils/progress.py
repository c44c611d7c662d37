"""Progress of long work: the one type of callback, and the bars that show it, which the library and
the stages share; rich is imported where one is shown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from wsssbed_hub.utils.units import human

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, Task, TaskID

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all, in bytes, images, files, …"""

BYTES = "bytes"
_shown: list[Bars] = []  # the bars on the terminal now: a terminal has one place for them


def share(progress: Progress | None, before: int, size: int, total: int) -> Progress | None:
    """Turns steps of any kind, such as images, into ``size`` of ``total`` bytes."""
    if progress is None:
        return None
    return lambda done, steps: progress(before + size * done // steps, total)


def adding(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function that takes the steps just done, from any thread, and tells their sum."""
    done = 0
    lock = threading.Lock()

    def advance(steps: int) -> None:
        nonlocal done
        with lock:
            done += steps
            if progress is not None:
                progress(done, total)

    return advance


class ProgressWithNews(Protocol):
    """A ``Progress`` that shows a few words of news behind the figures."""

    def __call__(self, done: int, total: int, news: str = "") -> None: ...


@contextmanager
def progress_bar(title: str, *, unit: str = BYTES, done: int = 0) -> Iterator[ProgressWithNews]:
    """A bar on the terminal with amount, rate and time left; gone when it is left.

    ``unit`` is a plural; ``done`` was done before, and says nothing of the rate. Inside another
    one it is a line below it. Any thread may call what this gives. Nothing is shown where stderr
    is not a terminal.
    """
    if _shown:
        task = _shown[0].add_task(title, total=None, completed=done, unit=unit, news="")
        try:
            yield _advancing(_shown[0], task)
        finally:
            _shown[0].remove_task(task)
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    with Bars(*_columns(), console=console, disable=not console.is_terminal) as bars:
        _shown.append(bars)
        try:
            task = bars.add_task(title, total=None, completed=done, unit=unit, news="")
            yield _advancing(bars, task)
        finally:
            _shown.clear()


def _advancing(bars: Bars, task: TaskID) -> ProgressWithNews:
    def show(done: int, total: int, news: str = "") -> None:
        bars.update(task, completed=done, total=total, news=news)

    return show


def _columns() -> tuple[ProgressColumn, ...]:
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Figure(ProgressColumn):
        def __init__(self, words: Callable[[Task], str]) -> None:
            super().__init__()
            self._words = words

        def render(self, task: Task) -> Text:
            return Text(self._words(task))

    title, news = (
        TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[news]}")
    )
    return title, BarColumn(), Figure(_amount), Figure(_rate), TimeRemainingColumn(), news


def _amount(task: Task) -> str:
    total = f"/{_count(task, task.total)}" if task.total else ""
    return _count(task, task.completed) + total


def _rate(task: Task) -> str:
    speed = task.finished_speed or task.speed
    if speed is None:
        return ""
    unit = str(task.fields["unit"])
    if unit == BYTES:
        return f"{human(speed)}/s"
    return rate(speed, unit)


def rate(speed: float, unit: str) -> str:
    """So many things a second, or so many seconds for one: ``12.5 images/s``, ``4.0 s/image``."""
    if speed >= 1 or speed == 0:
        return f"{speed:,.1f} {unit}/s"
    return f"{1 / speed:,.1f} s/{unit.removesuffix('s')}"


def _count(task: Task, number: float) -> str:
    return human(number) if task.fields["unit"] == BYTES else f"{number:,.0f}"
