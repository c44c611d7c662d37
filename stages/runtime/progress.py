"""Reports of the first process: news and progress on stderr, the metrics in a log."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stages.runtime import distributed
from wsssbed_hub.utils.files import disk_errors
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


class Course:
    """How far a training of several phases is, and how long it will still take."""

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = steps
        self._phase = self._first = 0
        self._began = self._done = 0.0

    def begin(self, phase: int, name: str, step: int) -> str:
        """Note that a phase begins, at a step; returns what to call it."""
        self._phase, self._first, self._began = phase, step, time.monotonic()
        many = len(self._steps)
        return f"{name} (phase {phase + 1} of {many})" if many > 1 else name

    def left(self, step: int) -> str:
        """The time for this phase and all after it, if they go as this one does, in words."""
        later = sum(self._steps[self._phase + 1 :])
        if not later or step == self._first:
            return ""
        pace = (time.monotonic() - self._began) / (step - self._first)
        return f", all phases: {duration((self._steps[self._phase] - step + later) * pace)} left"


class MetricsLog:
    """One JSON line for each optimiser step, in the file at ``path``, by the first process.

    A resumed training writes the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    @contextmanager
    def opened(self, length: int) -> Iterator[None]:
        """Open the log; what lies beyond ``length`` bytes was written after the checkpoint."""
        if not distributed.is_main():
            yield
            return
        with disk_errors(self._path.parent), open(self._path, "ab") as file:
            file.truncate(min(length, self._path.stat().st_size))
            self._file = file
            try:
                yield
            finally:
                self._file = None

    def step(self, phase: str, step: int, rate: float, terms: Mapping[str, float]) -> None:
        """Note a step, counted from 0 here and from 1 in the log."""
        if self._file is not None:
            entry = {"phase": phase, "step": step + 1, "rate": rate, "loss": sum(terms.values())}
            self._file.write(json.dumps(entry | {"terms": dict(terms)}).encode() + b"\n")
            self._file.flush()

    def flush(self) -> int:
        """Bring the log to the disk; returns its length in bytes."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size
