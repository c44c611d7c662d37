"""The results as a table of words: formatted once here, for HTML, terminal and Markdown alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wsssbed_hub.report.data import Report, ResultRow
from wsssbed_hub.report.notes import Notes
from wsssbed_hub.report.pairs import SALIENCY, Compared, Finding, fixed_words

NOTHING = "–"
ROLES = {"ground truth": "upper bound", "labels": "own labels", "network": "network"}
"""What a row is, where its name does not say it."""


@dataclass(frozen=True)
class Cell:
    """One number as text, ``error`` the part after ±; ``best`` of its column; footnote ``mark``."""

    text: str = NOTHING
    error: str = ""
    best: bool = False
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.text} ± {self.error}" if self.error else self.text


@dataclass(frozen=True)
class Column:
    """A column's group and title; ``arrow`` says which direction is better, if one is."""

    group: str
    title: str
    arrow: str = ""
    unit: str = ""
    mark: str = ""

    @property
    def head(self) -> str:
        return " ".join(filter(None, (self.title, self.unit, self.arrow)))


@dataclass(frozen=True)
class Line:
    """A row: its name, what it is if that needs words, its cells."""

    name: str
    role: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Section:
    """Rows that share their activation map."""

    heading: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """Columns, sections of lines, and footnotes as (mark, text)."""

    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def headed(self) -> bool:
        """Whether the sections need their headings to be told apart."""
        return sum(bool(section.heading) for section in self.sections) > 1

    def begins(self, index: int) -> bool:
        """Whether a group begins with column ``index``."""
        return index == 0 or self.columns[index - 1].group != self.columns[index].group

    @property
    def groups(self) -> list[tuple[str, int, str]]:
        """Neighbouring columns of one group: its title, how many columns, its footnote mark."""
        groups: list[tuple[str, int, str]] = []
        for index, column in enumerate(self.columns):
            if self.begins(index):
                groups.append((column.group, 1, column.mark))
            else:
                groups[-1] = (column.group, groups[-1][1] + 1, column.mark)
        return groups


@dataclass(frozen=True)
class _Quantity:
    """A column before formatting. ``part`` is the score of a row that its value comes from."""

    column: Column
    part: str
    field: str
    scale: float = 1.0
    decimals: int = 3

    def value(self, row: ResultRow) -> float | None:
        score = getattr(row, self.part)
        if score is None:
            return None
        return score.threshold.tau if self.field == "tau" else getattr(score, self.field)

    def text(self, value: float | None) -> str:
        return NOTHING if value is None else f"{self.scale * value:.{self.decimals}f}"


def results_table(report: Report) -> Table:
    """One line per row of the report, without the columns of which nothing is known."""
    rows = report.rows
    quantities = [
        quantity
        for quantity in _quantities(rows)
        if any(quantity.value(row) is not None for row in rows)
    ]
    notes = Notes(report)
    columns = tuple(replace(q.column, mark=notes.of_group(q.part)) for q in quantities)
    bests = [_best(quantity, rows) for quantity in quantities]
    plan = [(quantity, best, notes) for quantity, best in zip(quantities, bests, strict=True)]
    sections = [
        Section(heading, tuple(_line(row, plan) for row in members))
        for heading, members in _by_activations(rows)
    ]
    return Table(columns, tuple(sections), tuple(notes.texts))


def _quantities(rows: Sequence[ResultRow]) -> list[_Quantity]:
    saliency, segmentation = "Saliency", "Segmentation"
    fixed = f"Labels, {fixed_words(rows)}"
    taus = {row.fixed.threshold.tau for row in rows if row.fixed}
    one_tau = len(taus) == 1
    if one_tau:  # better said once than in every line
        fixed += f" {taus.pop():.3f}"
    quantities = [
        _Quantity(Column(saliency, "MAE", "↓"), "saliency", "mae"),
        _Quantity(Column(saliency, "max F", "↑"), "saliency", "max_f"),
        _Quantity(Column(saliency, "S", "↑"), "saliency", "s_measure"),
    ]
    for group, part in ((fixed, "fixed"), ("Labels, best tau", "best")):
        if part == "best" or not one_tau:
            quantities.append(_Quantity(Column(group, "tau"), part, "tau"))
        quantities += [
            _Quantity(Column(group, "mIoU", "↑", "%"), part, "miou_ignored_missed", 100, 1),
            _Quantity(Column(group, "labelled", unit="%"), part, "miou", 100, 1),
            _Quantity(Column(group, "coverage", unit="%"), part, "coverage", 100, 1),
        ]
    own = "Labels, own"
    quantities.append(
        _Quantity(Column(own, "mIoU", "↑", "%"), "own", "miou_ignored_missed", 100, 1)
    )
    if any(row.own and row.own.coverage != 1 for row in rows):
        quantities += [
            _Quantity(Column(own, "labelled", unit="%"), "own", "miou", 100, 1),
            _Quantity(Column(own, "coverage", unit="%"), "own", "coverage", 100, 1),
        ]
    return [
        *quantities,
        _Quantity(Column(segmentation, "mIoU", "↑", "%"), "segmentation", "miou", 100, 1),
    ]


def _best(quantity: _Quantity, rows: Sequence[ResultRow]) -> str | None:
    """The text of the best value of a column; equal texts are all best, a lone value is not."""
    if not quantity.column.arrow:
        return None
    values = [quantity.value(row) for row in rows if row.role != "ground truth"]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return quantity.text(min(known) if quantity.column.arrow == "↓" else max(known))


def _line(row: ResultRow, plan: Iterable[tuple[_Quantity, str | None, Notes]]) -> Line:
    cells = []
    for quantity, best, notes in plan:
        text = quantity.text(quantity.value(row))
        error = ""
        if quantity.part == "segmentation" and row.segmentation:
            spread = row.segmentation.standard_error
            error = "" if spread is None or text == NOTHING else f"{100 * spread:.1f}"
        marked = text == best and row.role != "ground truth"
        mark = notes.of_cell(quantity.part, row) if text != NOTHING else ""
        cells.append(Cell(text, error, marked, mark))
    return Line(row.name, ROLES.get(row.role, ""), tuple(cells))


def _by_activations(rows: Sequence[ResultRow]) -> list[tuple[str, list[ResultRow]]]:
    """Rows by activation map in order of appearance, those without one at the end."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.activations, []).append(row)
    without = groups.pop("", [])
    sections = list(groups.items())
    return sections + ([("", without)] if without else [])


def pairs_table(report: Report, finding: Finding) -> Table | None:
    """Each pair of rows, what is of the better saliency map first; None if there are no pairs."""
    if not finding.pairs:
        return None
    heads = [(Column("Saliency", title), 1, 3) for title, _, _ in SALIENCY]
    fixed = f"Labels, {fixed_words(report.rows)}"
    groups = (fixed, "Labels, best tau", "Segmentation")
    heads += [(Column(group, "mIoU", unit="%"), 100, 1) for group in groups]
    found = [(pair, (*pair.saliency, *pair.outcomes)) for pair in finding.pairs]
    kept = [n for n in range(len(heads)) if any(numbers[n] for _, numbers in found)]
    lines = []
    for pair, numbers in found:
        cells = (_against(numbers[n], *heads[n][1:]) for n in kept)
        lines.append(Line(f"{pair.better.name} against {pair.worse.name}", "", tuple(cells)))
    return Table(tuple(heads[n][0] for n in kept), (Section("", tuple(lines)),))


def _against(compared: Compared | None, scale: float, decimals: int) -> Cell:
    """``0.030 : 0.090``, in bold if the first is better; ``≈`` between what is tied."""
    if compared is None:
        return Cell()
    one, other = (f"{scale * value:.{decimals}f}" for value in compared[:2])
    return Cell(f"{one} {':' if compared.sign else '≈'} {other}", best=compared.sign > 0)


def class_table(report: Report) -> Table | None:
    """IoU per class of every row that has it, background first; None if no row has."""
    names = ["background", *report.classes]
    columns: list[Column] = []
    values: list[list[float | None]] = []
    parts = (
        (f"Labels, {fixed_words(report.rows)}", "fixed"),
        ("Labels, best tau", "best"),
        ("Labels, own", "own"),
        ("Segmentation", "segmentation"),
    )
    several = len({row.activations for row in report.rows} - {""}) > 1
    for group, part in parts:
        for row in report.rows:
            score = getattr(row, part)
            if score is not None and len(score.per_class) == len(names):
                title = f"{row.name} {row.activations}" if several else row.name
                columns.append(Column(group, title.strip()))
                mean = score.miou if part == "segmentation" else score.miou_ignored_missed
                values.append([*score.per_class, mean])
    if not columns:
        return None
    lines = []
    for index, name in enumerate([*names, "mean"]):
        cells = tuple(_percent(column[index]) for column in values)
        lines.append(Line(name, "mean" if index == len(names) else "", cells))
    return Table(tuple(columns), (Section("", tuple(lines)),))


def _percent(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{100 * value:.1f}")
