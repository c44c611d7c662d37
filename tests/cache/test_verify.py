"""What has gone bad in the cache since it was fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cached import SHARD, busy, everything_below, fetch, fill, names
from samples import Hub, flip

from wsssbed_hub.cache.prune import IN_USE, Selection, prune
from wsssbed_hub.cache.scan import scan
from wsssbed_hub.cache.verify import verify_cache
from wsssbed_hub.registry.pull import pull

EVERYTHING = Selection(everything=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return fill(tmp_path)


def test_a_whole_cache(command: Hub, cache: Path) -> None:
    outcome = command("cache", "verify")
    assert outcome.code == 0
    # Three blobs and four manifests, each read once.
    assert outcome.out.startswith("7 files, ")


def test_damage_is_found_and_named(command: Hub, cache: Path, tmp_path: Path) -> None:
    fetch("sal/two", to=tmp_path / "mine")
    shard = next((cache / "artifacts/sal-two").iterdir()) / SHARD
    with open(shard, "r+b") as file:  # in place: the bytes that all of them share
        file.seek(77)
        file.write(b"\0\0\0")
    before = everything_below(cache)
    outcome = command("cache", "verify", "--json")
    assert outcome.code == 1
    (damage,) = json.loads(outcome.out)["damaged"]
    assert damage["artifact"] == "sal/same@1.0.0 over shapes, sal/two@1.0.0 over shapes"
    assert damage["expected"] == Path(damage["path"]).name != damage["found"]
    assert damage["links"] == 1  # the exported folder's
    assert everything_below(cache) == before
    assert command("cache", "verify", "--remove").code == 1
    assert names(scan()) == ["sal/one@1.0.0", "sal/one@1.1.0"]
    assert command("cache", "verify").code == 0
    fetch("sal/two")
    assert verify_cache().damaged == []


def test_damage_in_a_folder_of_copies(cache: Path) -> None:
    """Where links cannot be made a key folder has files of its own."""
    folder = next((cache / "artifacts/sal-one").glob("shapes-1.0.0-*"))
    flip(folder / SHARD, 70)
    (damage,) = verify_cache().damaged
    assert (damage.artifact, damage.path) == ("sal/one@1.0.0 over shapes", folder / SHARD)
    (folder / SHARD).unlink()
    (damage,) = verify_cache().damaged
    assert damage.found == "nothing"
    assert verify_cache(remove=True).removed == [folder]
    assert len(scan().blobs) == 3
    assert verify_cache().damaged == []


def test_damage_that_is_in_use_stays(cache: Path) -> None:
    shard = next((cache / "artifacts/sal-two").iterdir()) / SHARD

    def use(hold: Callable[[], None]) -> None:
        pull("sal/two")
        hold()

    with busy(use):
        with open(shard, "r+b") as file:
            file.write(b"\0\0\0")
        verified = verify_cache(remove=True)
        assert [why for _, why in verified.kept] == [IN_USE]
        assert shard.exists()
    verify_cache(remove=True)
    assert not shard.exists()


def test_progress_ends_at_the_end(cache: Path, tmp_path: Path) -> None:
    for action in (verify_cache, lambda progress: prune(EVERYTHING, progress=progress)):
        steps: list[tuple[int, int]] = []
        action(progress=lambda done, of, steps=steps: steps.append((done, of)))  # type: ignore[misc]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
