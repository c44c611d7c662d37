"""Curves against tau as a PNG file; their colours and dashes, which the page (``diagram``) shares.

The same curves give the same bytes: no dates, fonts that come with matplotlib.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from wsssbed_hub.report.data import Curve, Maybe, ResultRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which people with the usual kinds of colour blindness can tell apart;
# dashes tell them apart in grey print too. Yellow is left out: too faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_INK, _GRID, _PAPER = "#1f2328", "#d8dce1", "#fefefd"
_SIZE = (3.7, 2.7)  # inches, of one panel


class Panel(NamedTuple):
    """One of the three diagrams of a group of curves."""

    field: str
    title: str


PANELS = (
    Panel("miou_ignored_missed", "mIoU, ignored pixels as misses, %"),
    Panel("miou", "mIoU over labelled pixels alone, %"),
    Panel("coverage", "coverage, % of pixels"),
)


class Series(NamedTuple):
    """A row's curve with the colour and the dashes it has throughout a report."""

    row: ResultRow
    curve: Curve
    place: int

    @property
    def colour(self) -> str:
        return COLOURS[self.place % len(COLOURS)]


def by_activations(rows: Sequence[ResultRow]) -> dict[str, list[Series]]:
    """The curves of each activation map; a saliency map's colour is the same in all of them."""
    drawn = [(row, row.curve) for row in rows if row.curve is not None]
    names = list(dict.fromkeys(row.name for row, _ in drawn))
    groups: dict[str, list[Series]] = {}
    for row, curve in drawn:
        groups.setdefault(row.activations, []).append(Series(row, curve, names.index(row.name)))
    return groups


def curves_png(rows: Sequence[ResultRow], *, dpi: int = 160) -> bytes:
    """The diagrams of each activation map beside each other, with a legend, as a PNG file.

    Raises ValueError if no row has a curve.
    """
    from matplotlib.figure import Figure

    groups = by_activations(rows)
    if not groups:
        raise ValueError("no curves to draw")
    width, height = _SIZE
    with _style():
        heights = [height + 0.25 + 0.2 * math.ceil(len(series) / 3) for series in groups.values()]
        figure = Figure(figsize=(width * len(PANELS), sum(heights)), layout="constrained")
        parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, (activations, series) in zip(parts, groups.items(), strict=True):
            axes = part.subplots(1, len(PANELS))
            for axis, panel in zip(axes, PANELS, strict=True):
                _draw(axis, series, panel)
            _legend(part, axes[0].get_lines(), activations, series)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _legend(part: SubFigure, lines: Sequence[Line2D], title: str, series: Sequence[Series]) -> None:
    names = [
        # matplotlib does not show a label that begins with an underscore
        f"\u200b{item.row.name}"
        + (f"  (best tau {item.row.best.threshold.tau:.3f})" if item.row.best else "")
        for item in series
    ]
    part.legend(
        lines[: len(series)],
        names,
        loc="outside upper left",
        ncols=3,
        title=f"{title}    ring: published or given tau, dot: best tau",
        alignment="left",
    )


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.parse_math": False,  # names are not formulas
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "axes.linewidth": 0.6,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the person who runs it has set for other plots
        matplotlib.rcParams.update(settings)
        # A letter that the font lacks is drawn as a box; nobody can do anything about it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _draw(axis: Axes, series: Sequence[Series], panel: Panel) -> None:
    """Lines first, in order; then the marks."""
    for item in series:
        values = [math.nan if v is None else 100 * v for v in getattr(item.curve, panel.field)]
        style = DASHES[item.place % len(DASHES)]
        axis.plot(item.curve.taus, values, color=item.colour, linestyle=style)
    for tau in sorted({item.row.fixed.threshold.tau for item in series if item.row.fixed}):
        axis.axvline(tau, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for item in series:
        _mark(axis, item, panel)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, top_of(series, panel))
    axis.set_title(panel.title)
    axis.set_xlabel("tau")


def _mark(axis: Axes, item: Series, panel: Panel) -> None:
    """A ring at the published or given tau, a dot at the best."""
    for score, filled in ((item.row.fixed, False), (item.row.best, True)):
        value: Maybe = getattr(score, panel.field, None)
        if score is None or value is None:
            continue
        axis.plot(
            [score.threshold.tau],
            [100 * value],
            marker="o",
            markersize=6 if filled else 5,
            markerfacecolor=item.colour if filled else _PAPER,
            markeredgecolor=_PAPER if filled else item.colour,
            markeredgewidth=0.8 if filled else 1.3,
            linestyle="none",
            clip_on=False,
            zorder=4,
        )


def top_of(series: Sequence[Series], panel: Panel) -> float:
    """The end of the axis: 100 for coverage; for both mIoU the next ten above their highest."""
    if panel.field == "coverage":
        return 100
    both = [item.curve.miou + item.curve.miou_ignored_missed for item in series]
    values = [value for curve in both for value in curve if value is not None]
    return min(100.0, 10 * math.ceil(10 * max(values, default=1) + 0.3))
