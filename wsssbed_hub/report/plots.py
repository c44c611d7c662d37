"""Curves against tau: SVG that takes on the page's fonts and colours, and PNG for files.

The same curves give the same bytes: no dates, no random ids, fonts that come with matplotlib.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from wsssbed_hub.report.data import Curve, Maybe, Row

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

    row: Row
    curve: Curve
    place: int

    @property
    def colour(self) -> str:
        return COLOURS[self.place % len(COLOURS)]

    @property
    def variable(self) -> str:
        """The colour as the page's style sheet knows it."""
        return _VARIABLES[self.colour]

    @property
    def dashes(self) -> str:
        """The line's pattern for SVG's ``stroke-dasharray``."""
        pattern = DASHES[self.place % len(DASHES)]
        return "none" if isinstance(pattern, str) else " ".join(str(2 * n) for n in pattern[1])


def by_activations(rows: Sequence[Row]) -> dict[str, list[Series]]:
    """The curves of each activation map; a saliency map's colour is the same in all of them."""
    drawn = [(row, row.curve) for row in rows if row.curve is not None]
    names = list(dict.fromkeys(row.name for row, _ in drawn))
    groups: dict[str, list[Series]] = {}
    for row, curve in drawn:
        groups.setdefault(row.activations, []).append(Series(row, curve, names.index(row.name)))
    return groups


def panel_svg(series: Sequence[Series], panel: Panel) -> str:
    """One diagram as an ``<svg>`` element to be put into HTML.

    Text and grid take their colours from the CSS variables ``--ink`` and ``--grid``, series from
    ``--series-0``…, so that the page's dark scheme reaches them.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        _draw(figure.subplots(), series, panel)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator"), None))
    salt = hashlib.sha256(file.getvalue().encode()).hexdigest()[:8]
    return _for_html(file.getvalue(), salt, f"{panel.title} against tau")


def curves_png(rows: Sequence[Row], *, dpi: int = 160) -> bytes:
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
        "svg.fonttype": "none",
        "svg.hashsalt": "wsssbed-hub",
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
    axis.set_ylim(*_range(series, panel))
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


def _range(series: Sequence[Series], panel: Panel) -> tuple[float, float]:
    """0 to 100 for coverage; for both mIoU from 0 to the next ten above their highest value."""
    if panel.field == "coverage":
        return 0, 100
    both = [item.curve.miou + item.curve.miou_ignored_missed for item in series]
    values = [value for curve in both for value in curve if value is not None]
    return 0, min(100.0, 10 * math.ceil(10 * max(values, default=1) + 0.3))


_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)", _PAPER: "var(--paper)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(COLOURS)
}


def _for_html(svg: str, salt: str, title: str) -> str:
    """The ``<svg>`` element alone, ids unique in the page, colours as variables, no metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]+; ", "", svg)
    svg = re.sub(
        r'<g id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick)_\d+"', "<g", svg
    )
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{salt}-", svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub("#[0-9a-f]{6}", lambda m: _VARIABLES.get(m[0], m[0]), svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}" stroke-linejoin="round"', 1)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
