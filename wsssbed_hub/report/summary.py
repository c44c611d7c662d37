"""The numbers of a demo run, small enough to be committed, and the tables that a page shows.

    python -m wsssbed_hub.report.summary docs/demo.json README.md            writes the tables
    python -m wsssbed_hub.report.summary --check docs/demo.json README.md    says if they are others

The demo writes ``summary.json`` beside its report. A page's tables are made from the committed
copy, each between the two lines that ``_BEGIN``, with what it is and the copy's name, and ``_END``
are. The README shows the table of ``docs/demo.json`` so, and ``docs/zoo.md`` all three of
``docs/zoo.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wsssbed_hub.artifacts.manifest import Environment, Model
from wsssbed_hub.report.data import Maybe, Report, ResultRow
from wsssbed_hub.report.matrices import MatrixCell, NetworkCell, matrix_table, network_table
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.text import Printable

_BEGIN, _END = "<!-- the {} of docs/{} -->", "<!-- end of the {} -->"
_NAMES = {
    "sal/ssnet-shapes": "SSNet trained on `shapes` and image-level labels",
    "label/ssnet-shapes": "SSNet's own pseudo labels, without tau",
    "ground truth": "ground truth instead of labels",
    "sal/deepusps": "DeepUSPS on the images of `shapes`, without masks",
    "sal/move": "MOVE on the images of `shapes`, without masks",
    "mean of the masks": "mean of the 300 masks of `shapes`, for every image",
}
_MODELS = {"poolnet": "PoolNet", "dss": "DSS", "pfan": "PFAN", "vst": "VST"}
_TRAINED_ON = {
    "shapes-small": "trained on `shapes-small`, 24 images",
    "shapes": "trained on `shapes`, 300 images",
}


class SummaryRow(Model):
    """The numbers of one row of a report; ratios are fractions, ``minutes`` those of a training."""

    name: Printable
    mae: Maybe = None
    max_f: Maybe = None
    s_measure: Maybe = None
    published_tau: Maybe = None
    published_miou: Maybe = None
    best_tau: Maybe = None
    best_miou: Maybe = None
    own_miou: Maybe = None
    segmentation_miou: Maybe = None
    minutes: float | None = None


class Summary(Model):
    """The command, where it ran, and its numbers. ``minutes`` only if it ran through at once."""

    command: Printable
    environment: Environment
    minutes: float | None = None
    rows: list[SummaryRow]
    matrix: tuple[MatrixCell, ...] = ()
    networks: tuple[NetworkCell, ...] = ()

    def dump(self) -> str:
        """As JSON."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def summarise(
    report: Report,
    command: str,
    environment: Environment,
    minutes: float | None = None,
    *,
    trained: Mapping[str, float] | None = None,
    more: Sequence[SummaryRow] = (),
) -> Summary:
    """The summary of a report that ``command`` made.

    ``trained`` are the minutes of trainings, by key; ``more`` are rows that the report has not.
    """
    rows = [_row(row, trained or {}) for row in report.rows]
    return Summary(
        command=command, environment=environment, minutes=_tenths(minutes), rows=[*rows, *more]
    )


def _tenths(minutes: float | None) -> float | None:
    return None if minutes is None else round(minutes, 1)


def _row(row: ResultRow, trained: Mapping[str, float]) -> SummaryRow:
    name = row.name.partition("@")[0]
    return SummaryRow(
        name=name,
        mae=row.saliency.mae if row.saliency else None,
        max_f=row.saliency.max_f if row.saliency else None,
        s_measure=row.saliency.s_measure if row.saliency else None,
        published_tau=row.fixed.threshold.tau if row.fixed else None,
        published_miou=row.fixed.miou_ignored_missed if row.fixed else None,
        best_tau=row.best.threshold.tau if row.best else None,
        best_miou=row.best.miou_ignored_missed if row.best else None,
        own_miou=row.own.miou_ignored_missed if row.own else None,
        segmentation_miou=row.segmentation.miou if row.segmentation else None,
        minutes=_tenths(trained.get(name)),
    )


def summary_table(summary: Summary) -> str:
    """The numbers as a Markdown table, and below it what they were measured with.

    Columns of which nothing is known are left out.
    """
    columns = _columns(summary.rows)
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    lines = [
        f"| saliency maps from | {' | '.join(shown)} |",
        "| --- |" + " --: |" * len(shown),
    ]
    for row, *cells in zip(summary.rows, *shown.values(), strict=True):
        lines.append(f"| {' | '.join((_name(row.name), *cells))} |")
    return "\n".join([*lines, "", _measured_with(summary)])


def _columns(rows: Sequence[SummaryRow]) -> dict[str, list[str]]:
    """Every column's head and cells."""
    taus = {row.published_tau for row in rows if row.published_tau is not None}
    tau = f" {taus.pop():g}" if len(taus) == 1 else ""
    best = [
        _percent(row.best_miou) + ("" if row.best_tau is None else f" (tau {row.best_tau:.3f})")
        for row in rows
    ]
    return {
        "MAE": [_number(row.mae, 3) for row in rows],
        "max F": [_number(row.max_f, 3) for row in rows],
        "S-measure": [_number(row.s_measure, 3) for row in rows],
        f"label mIoU, published tau{tau}": [
            _percent(row.published_miou if row.own_miou is None else row.own_miou) for row in rows
        ],
        "label mIoU, best tau": best,
        "segmentation mIoU": [_percent(row.segmentation_miou) for row in rows],
        "minutes of training": [_number(row.minutes, 1) for row in rows],
    }


def _name(name: str) -> str:
    """A row in words: those of its key that are known, else the key."""
    model, _, data = name.removeprefix("sal/").partition("-")
    if name.startswith("sal/") and model in _MODELS and data in _TRAINED_ON:
        return f"{_MODELS[model]} {_TRAINED_ON[data]}"
    return _NAMES.get(name, f"`{name}`")


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _measured_with(summary: Summary) -> str:
    fields = summary.environment.model_dump(exclude_none=True)
    said = [f"torch {fields['torch']}"] if "torch" in fields else []
    said += [str(fields[name]) for name in ("gpu", "processor") if name in fields]
    said += [f"instructions {fields['instructions']}"] if "instructions" in fields else []
    said += [f"{fields['threads']} threads"] if "threads" in fields else []
    time = f", {summary.minutes:.0f} minutes" if summary.minutes is not None else ""
    return f"Measured with `{summary.command}`{time}: {', '.join(said)}."


def _tables(summary: Summary) -> dict[str, str]:
    """Each table in Markdown, by the name that its lines in a page have."""
    return {
        "table": summary_table(summary),
        "matrix": matrix_table(summary.matrix, _name),
        "networks": network_table(summary.networks, _name),
    }


def with_tables(text: str, summary: Summary, name: str) -> str:
    """``text`` with the tables of ``summary``, whose file is called ``name``, in their places.

    Raises HubError if it has no place for any.
    """
    found = 0
    for what, table in _tables(summary).items():
        before, begin, rest = text.partition(_BEGIN.format(what, name))
        _, end, after = rest.partition(_END.format(what))
        if begin and end:
            text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
            found += 1
    if not found:
        begin, end = _BEGIN.format("table", name), _END.format("table")
        raise HubError(f"There are no lines {begin} and {end}, between which the table stands.")
    return text


def main(arguments: list[str]) -> int:
    """Write the tables into a Markdown file; with ``--check`` say (exit code 1) if one differs."""
    source, page = (Path(name) for name in arguments[-2:])
    text = page.read_text()
    wanted = with_tables(text, Summary.model_validate_json(source.read_text()), source.name)
    if arguments[0] != "--check":
        page.write_text(wanted)
    elif text != wanted:
        writing = f"python -m wsssbed_hub.report.summary {source} {page}"
        print(f"{page} has other tables than {source}. Write them: {writing}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
