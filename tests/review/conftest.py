"""Fixtures of the review: the target below a test's ``data``, and a server of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rangeserver import RangeServer

from wsssbed_hub.datasets import Target, open_target


@pytest.fixture
def target(data: Path) -> Target:
    return open_target("shapes", data)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    server = RangeServer({}).start()
    yield server
    server.stop()
