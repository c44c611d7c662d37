"""How far two artifacts are from one another."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import InMemory

from wsssbed_hub.artifacts.maps import Activations
from wsssbed_hub.evaluation.differences import (
    ArtifactDifference,
    PartDifference,
    compare_maps,
    compare_weights,
)

DIGEST = "sha256:" + "cd" * 32


def compared(kind: str, one: dict[str, Any], other: dict[str, Any]) -> ArtifactDifference:
    parts, missing = compare_maps(InMemory(kind, one), InMemory(kind, other))
    return ArtifactDifference("pixels", "sha256:1", "sha256:2", parts, missing)


def test_a_pixel_counts_that_is_more_than_one_level_away() -> None:
    map_ = np.full((10, 10), 100, np.uint8)
    near, far = map_.copy(), map_.copy()
    near[0] = 101  # ten pixels by one level
    far[0, :3] = (98, 103, 250)  # three by more
    found = compared("sal", {"a": map_, "b": map_}, {"a": near, "b": far})
    assert found.parts == (PartDifference("a", 100, 0, 1), PartDifference("b", 100, 3, 150))
    assert found.share == 3 / 200
    assert [part.name for part in found.worst(5)] == ["b", "a"]


@pytest.mark.parametrize(
    ("tolerance", "verdict"), [(0.015, "within tolerance"), (0.0149, "different")]
)
def test_the_tolerance_is_the_largest_share_that_passes(tolerance: float, verdict: str) -> None:
    other = np.zeros((10, 20), np.uint8)
    other[0, :3] = 9
    found = compared("sal", {"a": np.zeros((10, 20), np.uint8)}, {"a": other})
    assert found.verdict(tolerance) == verdict
    assert found.sentence(tolerance).startswith(f"{verdict}: 1.5000% of the pixels")


def test_the_same_content_is_equal_whatever_the_tolerance() -> None:
    assert ArtifactDifference("pixels", DIGEST, DIGEST, ()).verdict(0) == "equal"


def test_levels_mean_nothing_in_labels() -> None:
    label = np.zeros((2, 2), np.uint8)
    other = np.array([[0, 1], [0, 0]], np.uint8)  # another class, one number away
    assert compared("label", {"a": label}, {"a": other}).share == 0.25


def test_wrap_around_is_no_small_difference() -> None:
    one, other = np.zeros((1, 1), np.uint8), np.full((1, 1), 255, np.uint8)
    assert compared("sal", {"a": one}, {"a": other}).parts[0].largest == 255


def test_another_size_or_other_classes_differ_everywhere() -> None:
    maps = np.zeros((1, 2, 3), np.uint8)
    one = Activations(maps, np.array([4]))
    other = Activations(maps, np.array([5]))
    assert compared("cam", {"a": one}, {"a": other}).share == 1
    assert compared("sal", {"a": maps[0]}, {"a": maps[0].T}).share == 1


def test_images_that_only_one_has_are_never_within_tolerance() -> None:
    map_ = np.zeros((2, 2), np.uint8)
    found = compared("sal", {"a": map_, "b": map_}, {"a": map_, "c": map_})
    assert found.missing == ("b", "c")
    assert found.verdict(1.0) == "different"
    assert "only one of the two has b, c" in found.sentence(1.0)


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_weights_are_compared_by_the_size_of_their_tensor(tmp_path: Path) -> None:
    def file(name: str, first: float, half: int, count: int) -> Path:
        return safetensors(
            tmp_path / name,
            {
                "float": ("F32", [2, 2], struct.pack("<4f", first, 0, -2.55, float("nan"))),
                "half": ("BF16", [2], struct.pack("<2H", 0x3F80, half)),  # 1.0 and something
                "count": ("I64", [], struct.pack("<q", count)),
            },
        )

    # One level is 0.01 of a tensor up to 2.55, and 1/255 of one up to 1.
    parts, missing = compare_weights(file("a", 1.0, 0x3F80, 7), file("b", 1.025, 0x3F81, 7))
    assert missing == ()
    assert [(part.name, part.numbers, part.differing) for part in parts] == [
        ("count", 1, 0),
        ("float", 4, 1),
        ("half", 2, 1),  # bfloat16's next number is 2**-7 away, two levels
    ]
    assert parts[1].largest == pytest.approx(2.5, abs=1e-4)  # float32 has 7 digits
