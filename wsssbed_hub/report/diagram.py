"""Curves against tau as the page draws them: coordinates here, elements in the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wsssbed_hub.report.data import Maybe
from wsssbed_hub.report.plots import COLOURS, DASHES, Panel, Series, top_of

WIDTH, HEIGHT = 266, 194
LEFT, RIGHT, TOP, BOTTOM = 26, 258, 20, 164  # of the axes
_TICKS = 5  # steps at most from bottom to top


class Tick(NamedTuple):
    """Where a grid line is, and the number that stands at it."""

    place: float
    text: str


class CurveLine(NamedTuple):
    """A curve: an SVG path, the CSS variable of its colour, its ``stroke-dasharray``."""

    path: str
    colour: str
    dashes: str


class Mark(NamedTuple):
    """A ring (at the published or given tau) or, ``filled``, a dot (at the best)."""

    x: float
    y: float
    colour: str
    filled: bool


@dataclass(frozen=True)
class Diagram:
    """One panel of a group of curves."""

    title: str
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    lines: tuple[CurveLine, ...]
    rules: tuple[float, ...]
    """Where the published or given taus are."""
    marks: tuple[Mark, ...]


def draw(series: Sequence[Series], panel: Panel) -> Diagram:
    """The diagram of one quantity; values are percent on the page."""
    top = top_of(series, panel)
    step = next(step for step in (1, 2, 5, 10, 20) if top / step <= _TICKS)
    taus = {item.row.fixed.threshold.tau for item in series if item.row.fixed}
    return Diagram(
        panel.title,
        tuple(Tick(_x(n / 5), f"{n / 5:g}") for n in range(6)),
        tuple(Tick(_y(value, top), str(value)) for value in range(0, int(top) + 1, step)),
        tuple(
            CurveLine(
                _path(item.curve.taus, getattr(item.curve, panel.field), top),
                colour_of(item),
                dashes_of(item),
            )
            for item in series
        ),
        tuple(sorted(map(_x, taus))),
        tuple(mark for item in series for mark in _marks(item, panel, top)),
    )


def colour_of(item: Series) -> str:
    """The colour as the page's style sheet knows it."""
    return f"var(--series-{item.place % len(COLOURS)})"


def dashes_of(item: Series) -> str:
    """The line's pattern for SVG's ``stroke-dasharray``."""
    pattern = DASHES[item.place % len(DASHES)]
    return "none" if isinstance(pattern, str) else " ".join(str(2 * n) for n in pattern[1])


def _marks(item: Series, panel: Panel, top: float) -> Iterable[Mark]:
    for score, filled in ((item.row.fixed, False), (item.row.best, True)):
        value: Maybe = getattr(score, panel.field, None)
        if score is not None and value is not None:
            yield Mark(_x(score.threshold.tau), _y(100 * value, top), colour_of(item), filled)


def _path(taus: Sequence[float], values: Sequence[Maybe], top: float) -> str:
    """A line through the values, with a gap where one is not known."""
    words, pen = [], "M"
    for tau, value in zip(taus, values, strict=True):
        if value is not None:
            words.append(f"{pen}{_x(tau)} {_y(100 * value, top)}")
        pen = "M" if value is None else "L"
    return "".join(words)


def _x(tau: float) -> float:
    return round(LEFT + tau * (RIGHT - LEFT), 2)


def _y(percent: float, top: float) -> float:
    return round(BOTTOM - percent / top * (BOTTOM - TOP), 2)
