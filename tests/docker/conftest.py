"""Images are built and run by docker/ci.sh; without its word these tests do not run."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_under_test import ENGINE

from stages.small_runs import Made, outside, run_all
from wsssbed_hub.artifacts.manifest import Entry
from wsssbed_hub.datasets.shapes import make_shapes


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return True if not ENGINE and collection_path.name.startswith("test_") else None


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=9, val=6, sod=8, sod_test=2, small=6)
    for path in (root, *root.parents):  # pytest's folders are its user's own
        if path.is_relative_to(tmp_path_factory.getbasetemp().parent):
            path.chmod(0o755)
    return root


@pytest.fixture(scope="session")
def outside_runs(
    tmp_path_factory: pytest.TempPathFactory, data_root: Path
) -> tuple[Made, dict[str, dict[str, Entry]]]:
    """Every stage once, outside of containers: key folders by kind, entries by stage."""
    out = tmp_path_factory.mktemp("outside")
    found = dict(run_all((), out, outside(data_root)))
    made: Made = {}
    for stage, entries in found.items():
        for key in entries:
            made.setdefault(key.partition("/")[0], out / stage / key)
    return made, found
