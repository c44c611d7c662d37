"""What a manifest says of the program that made an artifact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from stages.runtime import provenance as module
from stages.runtime.options import TrainOptions
from stages.runtime.provenance import environment, machine, provenance
from wsssbed_hub.artifacts.manifest import Environment, Ingredient

CPU = torch.device("cpu")
MADE_FROM = [Ingredient(role="weights", file="w.pth", digest="sha256:" + "0" * 64)]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, which the module takes for its own."""
    for name in ("stages/runtime/provenance.py", "wsssbed_hub/x.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "stages/runtime/provenance.py"))
    monkeypatch.delenv("WSSSBED_COMMIT", raising=False)
    return tmp_path


def test_the_commit_of_a_clean_checkout_is_recorded(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("elsewhere")
    made = provenance("sod-toy", machine(), MADE_FROM)
    assert made.project_commit == git(checkout, "rev-parse", "HEAD")


def test_a_changed_checkout_has_no_commit(checkout: Path) -> None:
    (checkout / "wsssbed_hub/x.py").write_text("second\n")
    assert provenance("sod-toy", machine(), MADE_FROM).project_commit is None


def test_an_image_says_what_it_is(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSSBED_COMMIT", "a" * 40)
    monkeypatch.setenv("WSSSBED_IMAGE", "wsssbed/sod-toy:1.0.0")
    monkeypatch.setenv("WSSSBED_IMAGE_DIGEST", "sha256:" + "b" * 64)
    made = provenance("sod-toy", machine(), MADE_FROM)
    assert made.project_commit == "a" * 40
    assert made.image == "wsssbed/sod-toy:1.0.0"
    assert made.image_digest == "sha256:" + "b" * 64
    monkeypatch.setenv("WSSSBED_IMAGE_DIGEST", "wsssbed/sod-toy@sha256:" + "b" * 64)
    assert provenance("sod-toy", machine(), MADE_FROM).image_digest == "sha256:" + "b" * 64
    monkeypatch.setenv("WSSSBED_COMMIT", "unknown")
    assert provenance("sod-toy", machine(), MADE_FROM).project_commit is None


def test_the_command_is_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/stages/__main__.py", "sod-toy", "--data", "duts"])
    made = provenance("sod-toy", machine(), MADE_FROM, seed=3, selection="last iteration")
    assert made.command == ["python", "-m", "stages", "sod-toy", "--data", "duts"]
    assert (made.seed, made.selection, made.made_from) == (3, "last iteration", MADE_FROM)


@pytest.mark.parametrize("precision", get_args(get_type_hints(TrainOptions)["precision"]))
def test_manifests_take_every_precision_that_a_training_may_have(precision: str) -> None:
    found = environment(CPU, precision, deterministic=False)
    assert Environment.model_validate(found.model_dump()) == found


def test_the_environment_names_versions_and_precision() -> None:
    found = environment(CPU, "bf16", deterministic=True)
    assert (found.torch, found.precision, found.deterministic) == (
        torch.__version__,
        "bf16",
        True,
    )
    assert (found.gpu, found.cuda, found.processes) == (None, None, 1)
    assert {"numpy", "pillow", "timm"} <= found.packages.keys()
    assert machine().torch is None
