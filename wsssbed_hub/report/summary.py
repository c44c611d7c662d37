"""The numbers of a demo run, small enough to be committed, and the table that the README shows.

    python -m wsssbed_hub.report.summary docs/demo.json README.md            writes the table
    python -m wsssbed_hub.report.summary --check docs/demo.json README.md    says if it is another

The demo writes ``summary.json`` beside its report; the README's table is made from the committed
copy, between the two lines that ``_BEGIN`` and ``_END`` name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from wsssbed_hub.artifacts.manifest import Environment, Model
from wsssbed_hub.report.data import Maybe, Report, ResultRow
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.text import Printable

_BEGIN, _END = "<!-- the table of docs/demo.json -->", "<!-- end of the table -->"
_NAMES = {
    "sal/poolnet-shapes-small": "PoolNet trained on `shapes-small`, 24 images",
    "sal/poolnet-shapes": "PoolNet trained on `shapes`, 300 images",
    "sal/ssnet-shapes": "SSNet trained on `shapes` and image-level labels",
    "label/ssnet-shapes": "SSNet's own pseudo labels, without tau",
    "ground truth": "ground truth instead of labels",
}


class SummaryRow(Model):
    """The numbers of one row of a report; ratios are fractions."""

    name: Printable
    mae: Maybe = None
    max_f: Maybe = None
    published_tau: Maybe = None
    published_miou: Maybe = None
    best_tau: Maybe = None
    best_miou: Maybe = None
    own_miou: Maybe = None
    segmentation_miou: Maybe = None


class Summary(Model):
    """The command, where it ran, and its numbers. ``minutes`` only if it ran through at once."""

    command: Printable
    environment: Environment
    minutes: float | None = None
    rows: list[SummaryRow]

    def dump(self) -> str:
        """As JSON."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def summarise(
    report: Report, command: str, environment: Environment, minutes: float | None = None
) -> Summary:
    """The summary of a report that ``command`` made."""
    rows = [_row(row) for row in report.rows]
    took = None if minutes is None else round(minutes, 1)
    return Summary(command=command, environment=environment, minutes=took, rows=rows)


def _row(row: ResultRow) -> SummaryRow:
    return SummaryRow(
        name=row.name.partition("@")[0],
        mae=row.saliency.mae if row.saliency else None,
        max_f=row.saliency.max_f if row.saliency else None,
        published_tau=row.fixed.threshold.tau if row.fixed else None,
        published_miou=row.fixed.miou_ignored_missed if row.fixed else None,
        best_tau=row.best.threshold.tau if row.best else None,
        best_miou=row.best.miou_ignored_missed if row.best else None,
        own_miou=row.own.miou_ignored_missed if row.own else None,
        segmentation_miou=row.segmentation.miou if row.segmentation else None,
    )


def summary_table(summary: Summary) -> str:
    """The numbers as a Markdown table, and below it what they were measured with."""
    taus = {row.published_tau for row in summary.rows if row.published_tau is not None}
    tau = f" {taus.pop():g}" if len(taus) == 1 else ""
    heads = ("MAE", "max F", f"label mIoU, published tau{tau}", "label mIoU, best tau")
    lines = [
        f"| saliency maps from | {' | '.join(heads)} | segmentation mIoU |",
        "| --- |" + " --: |" * (len(heads) + 1),
    ]
    for row in summary.rows:
        label = row.published_miou if row.own_miou is None else row.own_miou
        best = "" if row.best_tau is None else f" (tau {row.best_tau:.3f})"
        cells = (
            *("" if value is None else f"{value:.3f}" for value in (row.mae, row.max_f)),
            _percent(label),
            _percent(row.best_miou) + best,
            _percent(row.segmentation_miou),
        )
        lines.append(f"| {' | '.join((_NAMES.get(row.name, f'`{row.name}`'), *cells))} |")
    return "\n".join([*lines, "", _measured_with(summary)])


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


def with_table(text: str, summary: Summary) -> str:
    """``text`` with the table of ``summary`` in its place. Raises HubError if it has none."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise HubError(f"There are no lines {_BEGIN} and {_END}, between which the table stands.")
    return f"{before}{begin}\n\n{summary_table(summary)}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Write the table into a Markdown file; with ``--check`` say (exit code 1) if it is another."""
    source, page = (Path(name) for name in arguments[-2:])
    text = page.read_text()
    wanted = with_table(text, Summary.model_validate_json(source.read_text()))
    if arguments[0] != "--check":
        page.write_text(wanted)
    elif text != wanted:
        print(f"{page} has another table than {source}. Run `make demo-table`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
