"""Tables 5 and 6 of the paper, measured: every setting trained, beside the paper's numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime import distributed
from stages.runtime.measuring import CRF, RAW, VAL, Score, Seed, Spread, mean_and_error
from stages.runtime.study import read_json, write_json
from stages.ssnet.ssnet import SETTINGS
from wsssbed_hub.utils.files import disk_errors, write_whole

# Zeng et al., ICCV 2019, with DenseNet-169: Table 5, mIoU in percent on VOC 2012 val …
PAPER_MIOU = {"S": 33.1, "M": 57.1, "SS": 47.1, "MS": 62.7, "MM": 63.3}


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 6: MAE and max F on ECSSD."""

    setting: str
    kind: str
    mae: float
    max_f: float


# … and Table 6.
PAPER_SALIENCY = (
    PaperRow("2S", RAW, 0.046, 0.899),
    PaperRow("MM", RAW, 0.047, 0.912),
    PaperRow("MM", CRF, 0.045, 0.919),
)
IN_TABLE_6 = {row.setting for row in PAPER_SALIENCY}
JSON, MARKDOWN = "tables.json", "tables.md"
NOTHING = "–"

Scores = Mapping[Seed, Mapping[str, Score]]
"""By seed and benchmark."""


def finished_tables(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tables that an earlier command left in ``folder`` with the same settings."""
    known = distributed.on_main(lambda: read_json(folder / JSON))
    return known if known.get("settings") == json.loads(json.dumps(settings)) else None


def tables_of(settings: Mapping[str, Any], scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The tables as JSON, with means over the seeds.

    ``settings`` are all that they depend on; ``scores`` are by setting.
    """
    rows6 = [
        _table6_row(row, scores[row.setting], settings["benchmarks"]) for row in PAPER_SALIENCY
    ]
    return {
        "settings": settings,
        "table5": [_table5_row(name, scores[name], paper) for name, paper in PAPER_MIOU.items()],
        "table6": rows6,
    }


def _table5_row(name: str, scores: Scores, paper: float) -> dict[str, Any]:
    values = {str(seed): score["segmentation"]["miou"] for seed, score in scores.items()}
    return {
        "setting": name,
        "paper": {"miou": round(paper / 100, 3)},
        "miou": mean_and_error(values.values()) | {"seeds": values},
    }


def _table6_row(row: PaperRow, scores: Scores, benchmarks: Iterable[str]) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    for name in benchmarks:
        found = {str(s): score[f"saliency {name}"][row.kind] for s, score in scores.items()}
        measured[name] = {
            field: mean_and_error(one[field] for one in found.values())
            | {"seeds": {seed: one[field] for seed, one in found.items()}}
            for field in ("mae", "max_f")
        }
    return {
        "setting": row.setting,
        "crf": row.kind == CRF,
        "paper": {"ecssd": {"mae": row.mae, "max_f": row.max_f}},
        "measured": measured,
    }


def write_tables(folder: Path, tables: Mapping[str, Any]) -> None:
    """Keep them as ``tables.json`` and ``tables.md``; by the first process."""

    def write() -> None:
        with disk_errors(folder):
            write_whole(folder / MARKDOWN, _markdown(tables).encode())
        write_json(folder / JSON, tables)  # last: what has it is finished

    distributed.on_main(write)


@dataclass(frozen=True)
class _Table:
    """A table as words."""

    title: str
    head: list[str]
    rows: list[list[str]]


def _tables(tables: Mapping[str, Any]) -> Iterator[_Table]:
    settings = tables["settings"]
    target = settings["target"]
    where = f"{settings['val']['images']:,} images of {target} {VAL}"
    seeds = f"{len(settings['seeds'])} seed" + ("s" if len(settings["seeds"]) > 1 else "")
    yield _Table(
        f"Table 5: mIoU in percent, {where}, {seeds}",
        ["setting", "network", "losses", "labels from", f"{target} {VAL}", "paper, voc12 val"],
        [
            [
                *_setting_cells(row["setting"]),
                _number(row["miou"], 100, 1),
                f"{100 * row['paper']['miou']:.1f}",
            ]
            for row in tables["table5"]
        ],
    )
    names = list(settings["benchmarks"])
    images = ", ".join(f"{b['images']:,} of {n}" for n, b in settings["benchmarks"].items())
    measures = [(name, field) for name in names for field in ("mae", "max_f")]
    titles = {"mae": "MAE", "max_f": "max F"}
    yield _Table(
        f"Table 6: saliency, {f'images: {images}' if images else 'no benchmark at hand'}, {seeds}",
        [
            "setting",
            *(f"{name} {titles[field]}" for name, field in measures),
            "paper, ecssd MAE",
            "paper, ecssd max F",
        ],
        [
            [
                row["setting"] + (" + CRF" if row["crf"] else ""),
                *(_number(row["measured"][name][field], 1, 3) for name, field in measures),
                *(f"{row['paper']['ecssd'][field]:.3f}" for field in titles),
            ]
            for row in tables["table6"]
        ],
    )


def _setting_cells(name: str) -> list[str]:
    setting = SETTINGS[name]
    return [name, f"SSNet-{setting.network}", " + ".join(setting.losses), setting.labels_from or ""]


def _number(found: Spread, scale: float, decimals: int) -> str:
    if found["mean"] is None:
        return NOTHING
    error = found["standard_error"]
    text = f"{scale * found['mean']:.{decimals}f}"
    return text + (f" ± {scale * error:.{decimals}f}" if error is not None else "")


def _markdown(tables: Mapping[str, Any]) -> str:
    pieces = []
    for table in _tables(tables):
        lines = [table.head, ["---"] * len(table.head), *table.rows]
        pieces.append(f"{table.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in lines))
    return "\n\n".join(pieces) + "\n"


def show_tables(tables: Mapping[str, Any]) -> None:
    """Print them; by the first process."""
    if not distributed.is_main():
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        console.width = 200  # nobody's window: names stay in one piece
    console.print(Markdown(_markdown(tables)))
