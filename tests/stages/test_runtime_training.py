"""The folder of a training belongs to its settings and to one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from stages.runtime.training import RunFolder, locked
from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.manifest import Ingredient
from wsssbed_hub.utils.errors import HubError

SETTINGS = {"recipe": {"rate": 0.1, "scales": (1, 2)}, "seed": 0}


def test_the_same_settings_open_the_folder_again(tmp_path: Path) -> None:
    RunFolder(tmp_path, SETTINGS)
    assert RunFolder(tmp_path, SETTINGS).weights_digest is None


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    RunFolder(tmp_path, SETTINGS)
    other = {"recipe": {"rate": 0.2, "scales": (1, 2)}, "limit": 3, "seed": 0}
    with pytest.raises(HubError) as error:
        RunFolder(tmp_path, other)
    assert "recipe.rate: 0.1 there, 0.2 now" in str(error.value)
    assert "limit: not set there, 3 now" in str(error.value)
    assert "scales" not in str(error.value)
    assert "--fresh" in str(error.value)


def test_fresh_discards_everything_but_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        first = RunFolder(tmp_path, SETTINGS)
        first.finish(nn.Linear(2, 2), 1.0, [])
        (tmp_path / "log.jsonl").write_text("old")
        fresh = RunFolder(tmp_path, {"seed": 1}, fresh=True)
        assert fresh.weights_digest is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "run.json", "scratch"]


def test_a_finished_run_knows_its_weights_and_what_they_were_made_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"no longer needed")
    start = Ingredient(role="initial-weights", file="a.pth", digest="sha256:" + "0" * 64)
    RunFolder(tmp_path, SETTINGS).finish(nn.Linear(2, 2), 12.34, [start])
    run = RunFolder(tmp_path, SETTINGS)
    assert run.weights_digest == file_digest(run.weights)
    assert [item.role for item in run.made_from] == ["initial-weights", "weights"]
    assert run.made_from[0] == start
    assert not (tmp_path / "checkpoint.pt").exists()
    run.check_weights()
    run.weights.write_bytes(b"changed")
    with pytest.raises(HubError, match="was changed"):
        run.check_weights()


def test_a_damaged_record_says_how_to_begin_again(tmp_path: Path) -> None:
    for text in ("", "[]", json.dumps({"x": 1})):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(HubError, match=r"run\.json is damaged.*--fresh"):
            RunFolder(tmp_path, SETTINGS)


def test_a_second_process_is_turned_away_until_the_first_is_gone(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from stages.runtime.training import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(HubError, match="Another process is at work"), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):
        pass
