"""Tests run beside each other: each with one thread, which for small networks is also fastest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_stages
import torch
from ssnet_bench import Bench

from wsssbed_hub.datasets import make_shapes


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a very small ``shapes``."""
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=8, val=4, sod=6, sod_test=2, small=4)
    return root


@pytest.fixture(scope="session")
def made(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of each family made, by toys and by SSNet, in Alice's home folder."""
    folder = tmp_path_factory.mktemp("home") / "alice"
    folder.mkdir()
    return small_stages.make(folder, shapes)


@pytest.fixture
def bench(shapes: Path, tmp_path: Path) -> Bench:
    return Bench(shapes, tmp_path / "out")


@pytest.fixture(scope="module")
def mm(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The main setting, trained and written; tests only read it."""
    bench = Bench(shapes, tmp_path_factory.mktemp("mm"))
    bench.run()
    return bench


@pytest.fixture
def copied(mm: Bench, tmp_path: Path) -> Bench:
    """The same, for tests that go on from there."""
    shutil.copytree(mm.out, tmp_path / "out")
    return Bench(mm.data_root, tmp_path / "out")
