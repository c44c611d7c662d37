"""What the first process says on stderr: news, and how far the work is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stages.runtime import distributed

EVERY = 10.0  # seconds between lines where stderr is no terminal

Show = Callable[[int, str], None]


def say(text: str) -> None:
    """One line on stderr, from the first process only."""
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``4000`` seconds as ``1 h 06 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Show]:
    """Shows how far the work is: ``show(done, details)``.

    A bar on a terminal, else a line now and then; nothing in other processes than the first, and
    nothing for a ``total`` of 0.
    """
    if total == 0 or not distributed.is_main():
        yield lambda done, details: None
    elif sys.stderr.isatty():
        with _bar(title, total, done) as show:
            yield show
    else:
        yield _lines(title, total, unit, done)


@contextmanager
def _bar(title: str, total: int, first: int) -> Iterator[Show]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[details]}"),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, completed=first, details="")
        yield lambda done, details: bars.update(task, completed=done, details=details)


def _lines(title: str, total: int, unit: str, first: int) -> Show:
    begin = time.monotonic()
    last = begin

    def show(done: int, details: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY and done < total:
            return
        last = now
        rate = (done - first) / max(now - begin, 1e-9)
        left = f", {duration((total - done) / rate)} left" if rate > 0 and done < total else ""
        speed = f"{rate:.1f} {unit}s/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{unit}"
        news = f", {details}" if details else ""
        say(f"{title}: {unit} {done:,} of {total:,}{news}, {speed}{left}")

    return show
