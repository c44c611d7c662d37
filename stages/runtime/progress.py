"""What the first process says on stderr: news, and how far the work is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stages.runtime import distributed
from wsssbed_hub.utils.progress import progress_bar, rate

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
        with progress_bar(title, unit=f"{unit}s", done=done) as show:
            show(done, total)
            yield lambda done, details: show(done, total, details)
    else:
        yield _lines(title, total, unit, done)


def _lines(title: str, total: int, unit: str, first: int) -> Show:
    begin = time.monotonic()
    last = begin

    def show(done: int, details: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY and done < total:
            return
        last = now
        speed = (done - first) / max(now - begin, 1e-9)
        left = f", {duration((total - done) / speed)} left" if speed > 0 and done < total else ""
        news = f", {details}" if details else ""
        say(f"{title}: {unit} {done:,} of {total:,}{news}, {rate(speed, f'{unit}s')}{left}")

    return show
