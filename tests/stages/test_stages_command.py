"""Stages as people run them: the real methods, from the command line."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.__main__ import main
from wsssbed_hub.artifacts.key_folder import read_manifest, verify_folder


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


def arguments(stage: str, shapes: Path, out: Path, *more: str) -> list[str]:
    common = ["--target", "shapes", "--data-root", str(shapes), "--out", str(out)]
    return [stage, *common, *more]


def poolnet(shapes: Path, out: Path, *more: str) -> list[str]:
    common = ["--data", "shapes-small", "--recipe", "shapes", "--device", "cpu", "--workers", "0"]
    return arguments("sod-poolnet", shapes, out, *common, *more)


def content(out: Path, key: str) -> str | None:
    verify_folder(out / key)
    return read_manifest(out / key).entry("1.0.0", "shapes").content


def test_help_tells_options_and_recipes(capsys: pytest.CaptureFixture) -> None:
    assert main(["sod-poolnet", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "PoolNet" in said
    assert "--checkpoint-every" in said
    assert "learning_rate=5e-05" in said


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--set", "learning_rat=1"], 2, "Did you mean 'learning_rate'"),
        (["--recipe", "published"], 2, "resnet50_caffe.pth"),
        (["--init", "missing.pth"], 1, "no such file"),
        (["--init", "/"], 1, "is a folder"),
        (["--init", __file__], 1, "is a text that begins with"),
        (["--weights", __file__], 1, "is a text that begins with"),
        (["--device", "cuda"], 2, "torch sees no GPU"),
        (["--target", "shape"], 2, "Did you mean 'shapes'"),
        (["--data", "dut"], 2, "Did you mean 'duts'"),
        (["--data", "duts"], 1, "Where to get it"),
        (["--version", "one"], 2, "not a version"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--precision", "half"], 2, "--precision"),
        (["--precision", "tf32", "--device", "cpu"], 2, "compute capability 8.0"),
    ],
)
def test_mistakes_get_a_message_and_an_exit_code(
    more: list[str],
    code: int,
    message: str,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(poolnet(shapes, tmp_path, *more)) == code
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_unknown_stages_are_refused(capsys: pytest.CaptureFixture) -> None:
    assert main(["sod-pool"]) == 2
    assert "Did you mean 'sod-poolnet'" in capsys.readouterr().err


def test_without_torch_the_advice_is_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("stages.__main__.find_spec", lambda name: None)
    assert main(["sod-poolnet", "--help"]) == 1
    assert "wsssbed-hub[stages]" in capsys.readouterr().err


def test_a_checkpoint_that_would_run_a_program_is_refused(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bomb, mark = tmp_path / "weights.pth", tmp_path / "it ran"
    torch.save({"state_dict": {"x": Bomb(mark)}}, bomb)
    assert main(poolnet(shapes, tmp_path / "out", "--weights", str(bomb))) == 1
    said = capsys.readouterr().err
    assert "more than tensors" in said
    assert "Traceback" not in said
    assert not mark.exists()


@pytest.mark.slow
def test_images_to_miou(shapes: Path, tmp_path: Path) -> None:
    small = ["--recipe", "shapes", "--device", "cpu", "--workers", "0", "--steps", "2"]
    assert main(poolnet(shapes, tmp_path, "--steps", "2")) == 0
    assert main(arguments("cam-cam", shapes, tmp_path, *small, "--batch-size", "2")) == 0
    maps = ["--cam", str(tmp_path / "cam/cam"), "--sal", str(tmp_path / "sal/poolnet-shapes-small")]
    assert main(arguments("pseudo", shapes, tmp_path, *maps)) == 0
    labels = ["--labels", str(tmp_path / "label/cam-poolnet-shapes-small"), "--batch-size", "2"]
    assert main(arguments("seg-deeplabv2", shapes, tmp_path, *small, *labels)) == 0
    for key in (
        "sal/poolnet-shapes-small",
        "cam/cam",
        "label/cam-poolnet-shapes-small",
        "weights/seg-deeplabv2-cam-poolnet-shapes-small",
    ):
        assert content(tmp_path, key)


@pytest.mark.slow
def test_a_stage_killed_at_random_moments_makes_the_same_artifact(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["--steps", "6", "--checkpoint-every", "0"]
    assert main(poolnet(shapes, tmp_path / "whole", *quick)) == 0
    command = [sys.executable, "-m", "stages", *poolnet(shapes, tmp_path / "killed", *quick)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process: sums depend on it
    chance = random.Random(1)
    kills, done = 0, False
    while not done:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=chance.uniform(2, 8) if kills < 5 else 300)
            done = True
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        said = process.communicate()[0].decode()
    assert process.returncode == 0, said
    key = "sal/poolnet-shapes-small"
    assert content(tmp_path / "killed", key) == content(tmp_path / "whole", key)


@pytest.mark.slow
def test_two_processes_write_the_same_maps(shapes: Path, tmp_path: Path) -> None:
    quick = poolnet(shapes, tmp_path / "one", "--steps", "2")
    assert main(quick) == 0
    weights = tmp_path / "one/runs/sod-poolnet-shapes-small/weights.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "stages"]
    command += poolnet(shapes, tmp_path / "two", "--weights", str(weights))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    key = "sal/poolnet-shapes-small"
    assert content(tmp_path / "two", key) == content(tmp_path / "one", key)
    environment = read_manifest(tmp_path / "two" / key).entry("1.0.0", "shapes").provenance
    assert environment is not None
    assert environment.environment.processes == 2
