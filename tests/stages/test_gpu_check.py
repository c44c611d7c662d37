"""gpu-check, with stages that are not run: artifacts are put where stages would leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import gpu_check
from stages.small_runs import TARGET, SmallRun, in_order, small_run
from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.manifest import Environment, MethodCitation, Provenance
from wsssbed_hub.artifacts.maps import Activations
from wsssbed_hub.artifacts.shard_writer import write_maps
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.utils.errors import HubError, UsageError

KEYS = {
    "sod": "sal/x",
    "cam": "cam/x",
    "pseudo": "label/x",
    "seg": "weights/x",
    "ssnet": "sal/ssnet",
}


class Stages:
    """Leaves an artifact of the right kind for every stage; ``spoil`` says which of two runs and
    which stage comes out otherwise, and by how many levels."""

    def __init__(self, gpu: str | None = "NVIDIA Test 1", deterministic: bool = True) -> None:
        self.gpu, self.deterministic = gpu, deterministic
        self.spoil: dict[tuple[str, str], int] = {}
        self.shift = 0
        self.commands: list[SmallRun] = []

    def __call__(self, run: SmallRun, out: Path) -> None:
        self.commands.append(run)
        family = run.stage.partition("-")[0]
        key = f"{KEYS[family]}{run.stage.removeprefix(family)}"
        shift = self.spoil.get((out.parent.name, run.stage), self.shift)
        folder = out / key
        kind = key.partition("/")[0]
        if kind == "weights":
            tensors = {"layer": np.arange(12, dtype=np.float32) + shift}
            written = write_weights(folder, tensors, {}, settings={})
        else:
            written = write_maps(folder, kind, ["a", "b"], lambda i: maps(kind, shift), settings={})
        gpu = None if family == "pseudo" else self.gpu
        environment = Environment(
            python="3.11", torch="2", cuda="13", gpu=gpu, deterministic=self.deterministic
        )
        complete(
            folder,
            written,
            key=key,
            target=TARGET,
            version="1.0.0",
            title="A test",
            method=MethodCitation(name="Test"),
            provenance=Provenance(
                stage=run.stage,
                command=["x"],
                project_version="0.1.0",
                date="2026-01-02T00:00:00Z",  # type: ignore[arg-type]
                environment=environment,
            ),
        )


def maps(kind: str, shift: int) -> Any:
    pixels = np.add.outer(np.arange(24), np.arange(40)).astype(np.uint8) + np.uint8(shift)
    return Activations(np.stack([pixels, pixels]), np.array([1, 3])) if kind == "cam" else pixels


def checked(stages: Stages, work: Path) -> list[str]:
    said: list[str] = []
    found = gpu_check.run_twice(stages, work / "work", (), said.append)
    gpu_check.compare_or_record(found, work / "records", said.append)
    return said


def test_a_new_gpu_gets_a_record_and_is_equal_to_it_afterwards(tmp_path: Path) -> None:
    said = checked(Stages(), tmp_path)
    assert "Commit it" in said[-1]
    (path,) = (tmp_path / "records").iterdir()
    assert path.name == f"nvidia-test-1_{version('wsssbed-hub')}.json"
    artifacts = json.loads(path.read_text())["artifacts"]
    assert {key.partition("/")[0] for key in artifacts} == {"sal", "cam", "label", "weights"}
    said = checked(Stages(), tmp_path)
    assert sum(line.endswith(": equal") for line in said) == len(artifacts)


def test_two_runs_that_differ_are_an_error_that_names_the_stage(tmp_path: Path) -> None:
    stages = Stages()
    stages.spoil["2", "cam-cam"] = 1
    with pytest.raises(HubError, match="cam-cam is not deterministic"):
        checked(stages, tmp_path)
    assert not (tmp_path / "records").exists()


def test_one_level_is_within_tolerance_of_the_record_and_two_are_not(tmp_path: Path) -> None:
    checked(Stages(), tmp_path)
    stages = Stages()
    for number in "12":
        stages.spoil[number, "sod-poolnet"] = 1
    said = checked(stages, tmp_path)
    assert [line for line in said if "within" in line] == [
        "sal/x-poolnet: within tolerance (0.00% of the cells by more than a level, 1 at most)"
    ]
    for number in "12":
        stages.spoil[number, "sod-poolnet"] = 2
    with pytest.raises(HubError, match="not what"):
        checked(stages, tmp_path)


def test_other_weights_are_different(tmp_path: Path) -> None:
    checked(Stages(), tmp_path)
    stages = Stages()
    stages.shift = 1
    with pytest.raises(HubError, match="not what"):
        checked(stages, tmp_path)


def test_maps_that_do_not_say_that_they_are_deterministic_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="asked to be deterministic"):
        checked(Stages(deterministic=False), tmp_path)


def test_every_stage_that_trains_is_asked_to_be_deterministic_on_the_gpu(tmp_path: Path) -> None:
    stages = Stages()
    checked(stages, tmp_path)
    assert [run.stage for run in stages.commands[::2]] == [stage.name for stage in in_order()]
    for run in stages.commands:
        asked = "--deterministic" in run.arguments and "cuda" in run.arguments
        assert asked == (run.stage != "pseudo")


def test_a_stage_comes_with_what_it_needs() -> None:
    names = [stage.name for stage in in_order(["pseudo"])]
    assert names[-1] == "pseudo"
    assert {"sod-poolnet", "cam-cam"} < set(names)
    assert [stage.name for stage in in_order(["sod-poolnet"])] == ["sod-poolnet"]
    with pytest.raises(UsageError, match="no stage 'sod-none'"):
        in_order(["sod-none"])


def test_a_stage_is_given_what_was_made_before(tmp_path: Path) -> None:
    made = {"cam": tmp_path / "c", "sal": tmp_path / "s", "label": tmp_path / "l"}
    stages = {stage.name: stage for stage in in_order()}
    arguments = small_run(stages["pseudo"], made).arguments
    assert arguments[-4:] == ("--sal", str(tmp_path / "s"), "--cam", str(tmp_path / "c"))
    assert small_run(stages["seg-deeplabv2"], made).arguments[-2:] == (
        "--labels",
        str(tmp_path / "l"),
    )


def test_without_a_gpu_it_says_that_it_did_not_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.gpu_check"],
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "gpu-check did not run" in done.stderr
