"""`wsssbed-hub cache` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cached import everything_below, fill, names
from samples import Hub

from wsssbed_hub.cache.scan import scan


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return fill(tmp_path)


def test_an_empty_cache(command: Hub, tmp_path: Path) -> None:
    assert scan().total == 0
    assert command("cache", "list").code == 0
    assert command("cache", "prune", "--all", "--yes").code == 0
    assert command("cache", "verify").code == 0
    assert not (tmp_path / "cache").exists()


def test_list_on_the_command_line(command: Hub, cache: Path) -> None:
    (cache / "blobs/aa").mkdir(exist_ok=True)
    (cache / "blobs/aa" / f"{'a' * 64}.partial").write_bytes(b"x" * 1000)
    (cache / "mine.txt").write_text("mine")
    listed = json.loads(command("cache", "list", "--json").out)
    whats = [row["what"] for row in listed["rows"]]
    assert whats == ["artifact"] * 4 + ["unfinished file"]
    assert listed["rows"][-1]["size"] == 1000
    shown = command("cache", "list")
    assert "sal/one@1.1.0" in shown.out
    assert "mine" not in shown.out + shown.err


def test_prune_on_the_command_line(command: Hub, cache: Path) -> None:
    before = everything_below(cache)
    dry = command("cache", "prune", "sal/one", "--dry-run")
    assert dry.code == 0
    assert "sal/one@1.0.0" in dry.out
    assert "sal/two" not in dry.out
    planned = json.loads(command("cache", "prune", "sal/one", "--dry-run", "--json").out)
    artifacts = [row for row in planned["rows"] if row["what"] == "artifact"]
    assert artifacts[0]["name"] == "sal/one@1.0.0"
    assert sum(row["size"] for row in planned["rows"]) >= planned["frees"] > 0
    refused = command("cache", "prune", "sal/one")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert command("cache", "prune", "sal/oen", "--yes").code == 2
    assert "--older-than" in command("cache", "prune").err
    assert everything_below(cache) == before
    done = command("cache", "prune", "sal/one", "--yes")
    assert (done.code, "freed" in done.out) == (0, True)
    assert names(scan()) == ["sal/same@1.0.0", "sal/two@1.0.0"]
