"""Two tables of the benchmark: activation methods with saliency maps, and networks on labels.

The first is Table 1 of WSSS-BED before segmentation: what the labels are worth, at the published
tau and at the best one. The second is its Table 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from wsssbed_hub.artifacts.manifest import Model
from wsssbed_hub.report.data import Maybe
from wsssbed_hub.utils.text import Printable


class LabelScore(Model):
    """Labels at one tau: mIoU with ignored pixels as misses, and the share that is labelled."""

    tau: float
    miou: Maybe
    coverage: Maybe


class MatrixCell(Model):
    """An activation method with saliency maps; ``saliency`` is their key.

    ``at_label_time`` says whether they took part in making the labels, else the method was trained
    with them. ``published`` is None of a method about whose labels nothing was published.
    """

    method: Printable
    saliency: Printable
    at_label_time: bool
    published: LabelScore | None
    best: LabelScore


class NetworkCell(Model):
    """A segmentation network (its stage) on labels: mIoU on val, the mean over ``seeds`` seeds.

    ``labels`` is the key of the saliency maps that the labels of CAM come of, or "ground truth".
    """

    network: Printable
    labels: Printable
    miou: Maybe
    standard_error: Maybe = None
    seeds: Annotated[int, Field(ge=1)]


NameRow = Callable[[str], str]


def matrix_table(cells: Sequence[MatrixCell], name: NameRow) -> str:
    """Two Markdown tables, at the published and at the best tau; ``name`` says a row in words."""
    if not cells:
        return "This run has one activation method, and no matrix."
    heads = {cell.method: f"{cell.method.upper()}{_published_tau(cell)}" for cell in cells}
    at_published = _grid(
        "saliency maps from",
        heads,
        {(cell.saliency, cell.method): _at_published(cell) for cell in cells},
        name,
    )
    at_best = _grid(
        "saliency maps from",
        {method: method.upper() for method in heads},
        {(cell.saliency, cell.method): _at_best(cell) for cell in cells},
        name,
    )
    return "\n\n".join(
        [
            "Label mIoU (share of pixels that are labelled) at the published tau, which stands "
            "above each column:",
            at_published,
            "The same at the best tau, which stands in each cell:",
            at_best,
            *_notes(cells),
        ]
    )


def network_table(cells: Sequence[NetworkCell], name: NameRow) -> str:
    """A Markdown table, labels by networks: mIoU on val; ``name`` says a row in words."""
    if not cells:
        return "This run trained no segmentation networks."
    return _grid(
        "labels of CAM and",
        {cell.network: f"`{cell.network}`" for cell in cells},
        {(cell.labels, cell.network): _mean(cell) for cell in cells},
        name,
    )


def _grid(
    corner: str, heads: dict[str, str], cells: dict[tuple[str, str], str], name: NameRow
) -> str:
    rows = list(dict.fromkeys(row for row, _ in cells))
    lines = [f"| {corner} | {' | '.join(heads.values())} |", "| --- |" + " --: |" * len(heads)]
    for row in rows:
        shown = (cells.get((row, column), "") for column in heads)
        lines.append(f"| {' | '.join((name(row), *shown))} |")
    return "\n".join(lines)


def _published_tau(cell: MatrixCell) -> str:
    return f" ({cell.published.tau:g})" if cell.published else ""


def _notes(cells: Sequence[MatrixCell]) -> list[str]:
    """Which methods saw saliency in training instead, if any."""
    trained = dict.fromkeys(cell.method.upper() for cell in cells if not cell.at_label_time)
    names = ", ".join(trained)
    return [f"Trained with the saliency maps, and labelled without: {names}."] if names else []


def _at_published(cell: MatrixCell) -> str:
    one = cell.published
    return f"{_percent(one.miou)} ({_share(one.coverage)})" if one else ""


def _at_best(cell: MatrixCell) -> str:
    one = cell.best
    return f"{_percent(one.miou)} ({_share(one.coverage)}, {one.tau:.2f})"


def _mean(cell: NetworkCell) -> str:
    error = f" ± {100 * cell.standard_error:.1f}" if cell.standard_error is not None else ""
    return f"{_percent(cell.miou)}{error}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
