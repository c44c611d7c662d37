"""Tests run beside each other: each with one thread, which for small networks is also fastest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wsssbed_hub.targets import make_shapes


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a very small ``shapes``."""
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=8, val=4, sod=6, sod_test=2, small=4)
    return root
