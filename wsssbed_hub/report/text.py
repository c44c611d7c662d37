"""The results as text: for the terminal, and as Markdown for a README or a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from wsssbed_hub.report.data import Report
from wsssbed_hub.report.pairs import find
from wsssbed_hub.report.table import NOTHING, Cell, Column, Table, pairs_table, results_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

# Columns that the terminal's table leaves out, by title, and by part of their group and title where
# even the names of the rows do not fit, then by title alone: 80 columns have to do.
LEFT_OUT = ("labelled",)
LEFT_OUT_NARROW = ("published tau", "authors' tau", "given tau"), ("coverage",)
NARROWEST = 2
JOINER = "\u2060"


def terminal_table(report: Report) -> TerminalTable:
    """The results and the finding, to be printed by a ``rich`` console."""
    return TerminalTable(report)


class TerminalTable:
    """The results at the width that the console has: where the names of the rows do not fit beside
    the numbers they are listed below them."""

    def __init__(self, report: Report) -> None:
        self._finding = find(report.rows)
        self._pairs = pairs_table(report, self._finding)
        self._results = results_table(report)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.measure import Measurement
        from rich.text import Text

        for narrow in range(NARROWEST + 1):
            table = self._table(narrow)
            measured = Measurement.get(console, options.update(max_width=1000), table)
            if measured.maximum <= options.max_width:
                break
        yield table
        if narrow:
            names = self._names()
            for number, name in enumerate(names, 1):
                yield Text(f"{number:>{len(str(len(names)))}}  {name}")
            yield ""
        yield Text(self._finding.sentence, style="bold")
        yield from map(Text, _pair_lines(self._pairs))
        yield from map(Text, self._finding.remarks)

    def _names(self) -> list[str]:
        """Of each row, with its activation map where there are several."""
        headed = self._results.headed
        return [
            line.name + (f" with {section.heading}" if headed and section.heading else "")
            for section in self._results.sections
            for line in section.lines
        ]

    def _table(self, narrow: int) -> RichTable:
        """The rows by name, or if ``narrow``, by number: 1 or 2, the narrower."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        results = self._results
        kept = [i for i, column in enumerate(results.columns) if _shown(column, narrow)]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(Text("" if narrow else "saliency map"), vertical="bottom")
        for column in (results.columns[i] for i in kept):
            table.add_column(Text(_stacked(column)), justify="right", vertical="bottom")
        numbers = count(1)
        for section in results.sections:
            if section.heading and results.headed and not narrow:
                table.add_row(Text(f"labels from {section.heading}", style="italic"))
            for line in section.lines:
                name = str(next(numbers)) if narrow else line.name
                table.add_row(Text(name), *(_terminal_cell(line.cells[i]) for i in kept))
        return table


def _shown(column: Column, narrow: int) -> bool:
    if column.title in LEFT_OUT:
        return False
    groups, titles = LEFT_OUT_NARROW
    fixed = any(group in column.group for group in groups)
    return not (column.title in titles and (narrow == NARROWEST or (narrow and fixed)))


def _stacked(column: Column) -> str:
    """``labels / published / tau 0.100 / mIoU %``, one under the other."""
    if column.group == "Saliency":
        return column.head
    group = column.group.lower().replace("segmentation", "segmen-\ntation")
    lines = re.split(r", | (?=tau)", group)
    return "\n".join([*lines, f"{column.title} {column.unit}".strip()])


def _terminal_cell(cell: Cell) -> Text:
    from rich.text import Text

    return Text(str(cell), style="bold" if cell.best else "")


def markdown(report: Report) -> str:
    """The finding, the table and its footnotes as GitHub's Markdown; best values in bold.

    Names stand as code, other words are escaped, so that nothing of them becomes a link, HTML or
    a mention of a person.
    """
    finding, results = find(report.rows), results_table(report)
    lines = [f"**{plain(finding.sentence)}**", ""]
    said = (*_pair_lines(pairs_table(report, finding)), *finding.remarks)
    lines += [line for text in said for line in (plain(text), "")]
    heads = (f"{c.group}: {c.head}{_mark(c.mark)}" for c in results.columns)
    lines.append("| Saliency map | " + " | ".join(heads) + " |")
    lines.append("| :-- |" + " --: |" * len(results.columns))
    for section in results.sections:
        for line in section.lines:
            of = f" with {code(section.heading)}" if section.heading and results.headed else ""
            cells = " | ".join(_markdown_cell(cell) for cell in line.cells)
            lines.append(f"| {code(line.name)}{of} | {cells} |")
    lines.append("")
    lines += [f"{_mark(letter)} {plain(text)}<br>" for letter, text in results.notes]
    return "\n".join(lines).rstrip() + "\n"


def _pair_lines(pairs: Table | None) -> Iterator[str]:
    """A line for each pair: what is of the better saliency map, then that of the other."""
    for line in pairs.sections[0].lines if pairs else ():
        parts = [
            f"{column.group.lower()} " * (column.group != "Saliency")
            + f"{column.title} {cell}"
            + f" {column.unit}" * bool(column.unit)
            for column, cell in zip(pairs.columns if pairs else (), line.cells, strict=True)
            if cell.text != NOTHING
        ]
        yield f"{line.name}: {'; '.join(parts)}."


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell}**" if cell.best else str(cell)
    return text + _mark(cell.mark)


def _mark(letter: str) -> str:
    return f"<sup>{letter}</sup>" if letter else ""


def code(text: str) -> str:
    """``text`` as code; what would end the code or the cell is replaced."""
    return f"`{re.sub(r'[`|]', '·', text) or ' '}`"


def plain(text: str) -> str:
    """``text`` as words: whatever Markdown, HTML or GitHub would read as more is disarmed."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)
    # A word joiner (U+2060, not to be seen) keeps people and issues from being mentioned, addresses
    # from becoming links, and a line from beginning with a sign that makes it a list.
    text = re.sub(r"(?<!\w)@|#|://|www(?=\.)", lambda match: match[0] + JOINER, text)
    return re.sub(r"^(?=[-+=:]|\d+[.)])", JOINER, text)
