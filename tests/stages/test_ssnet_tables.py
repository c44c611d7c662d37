"""The stage ``ssnet`` with all settings: Tables 5 and 6 of the paper."""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

import pytest
from ssnet_bench import MADE, Bench

PAPER = {"S": 33.1, "M": 57.1, "SS": 47.1, "MS": 62.7, "MM": 63.3}  # Table 5
PAPER_SALIENCY = {  # Table 6: MAE, max F
    ("2S", False): (0.046, 0.899),
    ("MM", False): (0.047, 0.912),
    ("MM", True): (0.045, 0.919),
}


def scores(bench: Bench, setting: str, seed: int) -> dict[str, Any]:
    return json.loads((bench.training(setting, seed) / "score.json").read_text())


def test_all_settings_make_the_tables(copied: Bench, capsys: pytest.CaptureFixture) -> None:
    keys = copied.made()
    copied.run("all", seeds="0,1")
    printed = capsys.readouterr()
    assert printed.err.count("training in") == 10  # of 12: M and MM with seed 0 are there
    assert copied.made() == keys
    folder = copied.out / "runs/ssnet-shapes-shapes"
    tables = json.loads((folder / "tables.json").read_text())
    table5 = {row["setting"]: row for row in tables["table5"]}
    assert {name: row["paper"]["miou"] for name, row in table5.items()} == {
        name: pytest.approx(value / 100) for name, value in PAPER.items()
    }
    for name, row in table5.items():
        values = [scores(copied, name, s)["segmentation"]["score"]["miou"] for s in (0, 1)]
        assert row["miou"]["mean"] == pytest.approx(statistics.fmean(values))
        error = statistics.stdev(values) / 2**0.5
        assert row["miou"]["standard_error"] == pytest.approx(error)
    table6 = {(row["setting"], row["crf"]): row for row in tables["table6"]}
    assert {
        key: tuple(row["paper"]["ecssd"].values()) for key, row in table6.items()
    } == PAPER_SALIENCY
    for (name, crf), row in table6.items():
        found = [scores(copied, name, s)["saliency shapes-te"]["score"] for s in (0, 1)]
        maes = [score["crf" if crf else "raw"]["mae"] for score in found]
        assert row["measured"]["shapes-te"]["mae"]["mean"] == pytest.approx(statistics.fmean(maes))
    markdown = (folder / "tables.md").read_text()
    miou = table5["MM"]["miou"]
    text = f"{100 * miou['mean']:.1f} ± {100 * miou['standard_error']:.1f}"
    row = f"| MM | SSNet-2 | saliency + segmentation | M | {text} | 63.3 |"
    assert row in markdown
    assert text in printed.out
    assert "0.919" in printed.out
    assert "0.919" in markdown


def test_finished_tables_are_printed_again_and_their_trainings_taken(
    bench: Bench, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["stages", "ssnet", "--setting", "all"])
    bench.run("all")
    first = capsys.readouterr()
    files = {p: p.stat().st_mtime_ns for p in bench.out.rglob("*") if p.is_file()}
    bench.run("all")
    second = capsys.readouterr()
    assert "The tables are finished" in second.err
    assert second.out == first.out
    assert "±" not in first.out  # one seed has no standard error
    assert {p: p.stat().st_mtime_ns for p in bench.out.rglob("*") if p.is_file()} == files
    monkeypatch.setattr(sys, "argv", ["stages", "ssnet"])
    bench.run()
    said = capsys.readouterr().err
    assert "training in" not in said
    assert "measuring" not in said
    assert bench.made() == set(MADE)
    for entry in map(bench.entry, MADE):  # the command that makes the artifact, not the tables
        assert entry.provenance is not None
        assert entry.provenance.command[3:] == ["ssnet"]
