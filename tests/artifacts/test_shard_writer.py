from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from killing import exit_code, in_child
from samples import IDS, maps_of, noise, provenance, same, written

from wsssbed_hub.artifacts.digests import content_digest, list_digest
from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.manifest import MethodCitation
from wsssbed_hub.artifacts.maps import digest_of
from wsssbed_hub.registry.open_artifact import (
    Activations,
    open_artifact,
    write_maps,
    write_parts,
)
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.parallel import pipeline

MANY = [f"shapes_{number:06d}" for number in range(200)]


def finish(folder: Path, result: Any) -> Any:
    complete(
        folder,
        result,
        key=f"{result.kind}/test",
        target="shapes",
        version="1.0.0",
        title="Maps for a test",
        method=MethodCitation(name="Test"),
        provenance=provenance(),
    )
    return open_artifact(folder)


def test_what_was_written(tmp_path: Path) -> None:
    maps = maps_of("cam", MANY)
    steps: list[tuple[int, int]] = []
    result = write_maps(
        tmp_path,
        "cam",
        MANY,
        maps.__getitem__,
        settings={"a": 1},
        progress=lambda *step: steps.append(step),
    )
    assert steps == [(done, 200) for done in range(1, 201)]
    assert (result.kind, result.images, result.settings) == ("cam", 200, {"a": 1})
    assert result.image_list == list_digest(MANY)
    digests = [(image_id, digest_of(maps[image_id])) for image_id in MANY]
    assert result.content == content_digest("cam", digests)
    assert finish(tmp_path, result).digest() == result.content


def test_rows_are_sorted_whatever_the_order_of_the_list(tmp_path: Path) -> None:
    maps = maps_of("sal", MANY)
    shuffled = list(np.random.default_rng(0).permutation(MANY))
    result = write_maps(tmp_path, "sal", shuffled, maps.__getitem__, settings={})
    found = finish(tmp_path, result)
    assert found.image_ids == MANY
    assert all(same(one, maps[image_id]) for image_id, one in found)


def test_the_same_maps_give_the_same_bytes(tmp_path: Path) -> None:
    one = written(tmp_path / "1", "label", maps_of("label", MANY))
    two = written(tmp_path / "2", "label", maps_of("label", MANY))
    assert one.files == two.files
    assert one.content == two.content


def test_row_groups_are_parts_of_64(tmp_path: Path) -> None:
    result = written(tmp_path, "sal", maps_of("sal", MANY))
    footer = pq.read_metadata(result.folder / result.files[0].name)
    assert [footer.row_group(n).num_rows for n in range(4)] == [64, 64, 64, 8]


def test_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = {image_id: noise(number, 30, 30) for number, image_id in enumerate(MANY)}
    whole = written(tmp_path / "whole", "sal", maps)
    monkeypatch.setattr("wsssbed_hub.artifacts.shard_writer.SHARD_BYTES", 170_000)
    result = written(tmp_path / "split", "sal", maps)
    assert [file.name for file in result.files] == ["00000.parquet", "00001.parquet"]
    assert all(file.size < 170_000 for file in result.files)
    assert result.content == whole.content
    found = finish(tmp_path / "split", result)
    assert found.image_ids == MANY
    assert found.digest() == whole.content


def test_finished_parts_are_not_made_again(tmp_path: Path) -> None:
    maps = maps_of("sal", MANY)
    made: list[str] = []

    def produce(image_id: str) -> np.ndarray:
        if len(made) == 150:
            raise RuntimeError("the network fails")
        made.append(image_id)
        return maps[image_id]

    with pytest.raises(RuntimeError):
        write_maps(tmp_path, "sal", MANY, produce, settings={})
    assert made == MANY[:150]
    made.clear()
    steps: list[tuple[int, int]] = []
    again = partial(write_maps, tmp_path, "sal", MANY, produce, settings={})
    result = again(progress=lambda *step: steps.append(step))
    assert made == MANY[128:]
    assert (steps[0], steps[-1]) == ((64, 200), (200, 200))
    assert result == written(tmp_path, "sal", dict.fromkeys(MANY))  # nothing is made: None fails
    shutil.rmtree(tmp_path / ".partial")
    assert result == written(tmp_path, "sal", maps)


@pytest.mark.parametrize(
    ("kind", "ids", "settings", "message"),
    [
        ("sal", MANY, {"tau": 0.5}, r"tau: 0\.3 there, 0\.5 now"),
        ("sal", MANY, {"tau": 0.3, "rule": "paper"}, 'rule: null there, "paper" now'),
        ("sal", MANY[:-1], {"tau": 0.3}, "image_list: .* now"),
        ("label", MANY, {"tau": 0.3}, 'kind: "sal" there, "label" now'),
    ],
)
def test_other_settings_are_not_mixed_in(
    tmp_path: Path, kind: str, ids: list[str], settings: dict[str, Any], message: str
) -> None:
    maps = maps_of("sal", MANY)
    write_parts(tmp_path, "sal", MANY, maps.__getitem__, settings={"tau": 0.3}, part=(0, 2))
    before = sorted((tmp_path / ".partial").iterdir())
    with pytest.raises(HubError, match=message):
        write_maps(tmp_path, kind, ids, maps.__getitem__, settings=settings)
    assert sorted((tmp_path / ".partial").iterdir()) == before


def test_several_processes(tmp_path: Path) -> None:
    maps = maps_of("cam", MANY)
    single = written(tmp_path / "single", "cam", maps)
    folder = tmp_path / "shared"

    def work(rank: int) -> Callable[[], None]:
        made = [n for n in range(200) if n // 64 % 3 == rank]
        own = {MANY[n]: maps[MANY[n]] for n in made}
        return lambda: write_parts(
            folder, "cam", MANY, own.__getitem__, settings={}, part=(rank, 3)
        )

    assert [exit_code(pid) for pid in [in_child(work(rank)) for rank in (2, 1)]] == [0, 0]
    work(0)()
    result = write_maps(folder, "cam", MANY, {}.__getitem__, settings={})
    assert (result.content, result.files) == (single.content, single.files)


@pytest.mark.parametrize("part", [(1, 1), (-1, 2), (2, 2)])
def test_a_rank_that_is_not_one(tmp_path: Path, part: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="count them from 0"):
        write_parts(tmp_path, "sal", IDS, maps_of("sal").__getitem__, settings={}, part=part)


@pytest.mark.parametrize(
    ("kind", "maps", "message"),
    [
        ("sal", np.zeros((3, 3), np.float32), r"is float32\[3, 3\], not uint8\[H, W\]"),
        ("sal", np.zeros((1, 3, 3), np.uint8), r"is uint8\[1, 3, 3\]"),
        ("sal", np.zeros((0, 3), np.uint8), r"is uint8\[0, 3\]"),
        ("label", np.zeros((3, 3), np.int64), "is int64"),
        ("label", Activations(np.zeros((1, 3, 3), np.uint8), np.array([0])), "of kind label"),
        ("cam", np.zeros((1, 3, 3), np.uint8), "of kind cam"),
        ("cam", Activations(np.zeros((3, 3), np.uint8), np.array([0])), r"not uint8\[K, H, W\]"),
        ("cam", Activations(np.zeros((2, 3, 3), np.uint8), np.array([0])), "for 1 classes"),
        ("cam", Activations(np.zeros((2, 3, 3), np.uint8), np.array([1, 0])), "do not ascend"),
    ],
)
def test_wrong_maps_are_not_written(tmp_path: Path, kind: str, maps: Any, message: str) -> None:
    with pytest.raises(HubError, match=message) as caught:
        written(tmp_path, kind, {"2007_000032": maps})
    assert "made of image 2007_000032" in str(caught.value)


@pytest.mark.parametrize("ids", [[], ["a", "a"], ["../a"], ["a/b"]])
def test_wrong_lists_are_refused(tmp_path: Path, ids: list[str]) -> None:
    with pytest.raises(HubError, match=r"names one twice|is not an image id"):
        write_maps(tmp_path / "x", "sal", ids, lambda image_id: noise(0), settings={})
    assert not (tmp_path / "x").exists()


def test_a_kind_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no maps of kind 'weights'"):
        written(tmp_path, "weights", maps_of("sal"))


def test_a_part_that_a_power_cut_emptied_is_made_again(tmp_path: Path) -> None:
    maps = maps_of("sal", MANY)
    write_parts(tmp_path, "sal", MANY, maps.__getitem__, settings={}, part=(0, 2))
    part = tmp_path / ".partial/00002.parquet"
    part.write_bytes(bytes(part.stat().st_size))
    assert finish(tmp_path, written(tmp_path, "sal", maps)).image_ids == MANY


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    maps = maps_of("sal", MANY)
    write_parts(tmp_path, "sal", MANY, maps.__getitem__, settings={})
    part = tmp_path / ".partial/00002.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    with pytest.raises(HubError, match=r"00002\.parquet is damaged"):
        written(tmp_path, "sal", maps)


@pytest.mark.parametrize("kind", ["sal", "cam", "label"])
def test_threads_that_read_and_encode_change_nothing(tmp_path: Path, kind: str) -> None:
    maps = maps_of(kind, MANY)
    files = []
    for threads in (0, 1, 3):
        folder = tmp_path / str(threads)
        pipe = partial(pipeline, threads=threads)
        write_parts(folder, kind, MANY, lambda found: found, settings={}, read=maps.get, pipe=pipe)
        written = sorted((folder / ".partial").glob("*.parquet"))
        files.append([path.read_bytes() for path in written])
    assert len(files[0]) > 1
    assert files[0] == files[1] == files[2]
