"""Sizes and colours by hand; what OpenCV does with pixels is not tested again."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scripted import Scripted

from stages.ops.opencv import (
    distorted,
    resize_bilinear,
    resize_nearest,
    size_times,
    size_within,
)

NO, YES = 0.9, 0.1  # of random(), against a probability of a half


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((375, 500), (2048, 512), (512, 683)),  # 500 * 512 / 375 = 682.67
        ((500, 375), (2048, 512), (683, 512)),
        ((375, 500), (512, 2048), (512, 683)),  # the larger bound is the long side's
        ((100, 1000), (2048, 512), (205, 2048)),  # 2048 / 1000 < 512 / 100
        ((3, 1), (7, 7), (7, 2)),  # 7 / 3 = 2.33
        ((2, 4), (5, 9), (5, 9)),  # 2.25 of 2.25 and 2.5: 4.5 is 5
        ((1000, 1), (10, 10), (10, 1)),
    ],
)
def test_a_size_within_bounds(
    size: tuple[int, int], bounds: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert size_within(*size, bounds) == expected


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((375, 500), 0.5, (188, 250)),  # 187.5 and 250; then min(250/500, 188/375) = 0.5
        ((375, 500), 1.75, (656, 875)),  # 656.25 and 875; then 656 / 375 times 500 is 874.67
        ((10, 999), 0.5, (5, 500)),  # 5 and 499.5; then min(500/999, 5/10) = 0.5
        ((333, 500), 1.0, (333, 500)),
    ],
)
def test_a_size_times_a_factor(
    size: tuple[int, int], factor: float, expected: tuple[int, int]
) -> None:
    assert size_times(*size, factor) == expected


def test_bilinear_without_antialiasing_half_pixels() -> None:
    row = np.array([[0, 40, 80, 200]], np.uint8)
    # Centres at -0.25, 0.25, 0.75 ...: 0, 10, 30, 50, 70, 110, 170, 200
    np.testing.assert_array_equal(resize_bilinear(row, 1, 8), [[0, 10, 30, 50, 70, 110, 170, 200]])
    # A third of the pixels are not looked at: the centre of each triple.
    sparse = np.array([[0, 90, 0, 0, 30, 0]], np.uint8)
    np.testing.assert_array_equal(resize_bilinear(sparse, 1, 2), [[90, 30]])


def test_nearest_is_the_pixel_under_the_corner() -> None:
    label = np.array([[0, 1, 2, 3, 4]], np.uint8)
    # floor(n * 5 / 3) = 0, 1, 3 and floor(n * 5 / 8) = 0, 0, 1, 1, 2, 3, 3, 4
    np.testing.assert_array_equal(resize_nearest(label, 1, 3), [[0, 1, 3]])
    np.testing.assert_array_equal(resize_nearest(label, 1, 8), [[0, 0, 1, 1, 2, 3, 3, 4]])


def changed(colours: list[list[int]], *draws: float, **settings: Any) -> tuple[list, Scripted]:
    common = {"share": 0.5, "brightness": 32, "contrast": (0.5, 1.5), "saturation": (0.5, 1.5)}
    rng = Scripted(draws)
    rgb = np.array([colours], np.uint8)
    before = rgb.copy()
    found = distorted(rgb, rng, **{**common, "hue": 18, **settings})  # type: ignore[arg-type]
    np.testing.assert_array_equal(rgb, before)  # the picture itself is left alone
    assert found.dtype == np.uint8
    assert not rng.draws
    return found[0].tolist(), rng


def test_nothing_is_changed_where_no_draw_says_so() -> None:
    found, rng = changed([[1, 2, 3]], NO, NO, NO, NO, NO)
    assert found == [[1, 2, 3]]
    assert [kind for kind, _, _ in rng.asked] == ["random"] * 5


def test_brightness_is_cut_off_at_both_ends_and_its_fraction_too() -> None:
    found, rng = changed([[0, 100, 250]], YES, 20.75, NO, NO, NO, NO)
    assert found == [[20, 120, 255]]
    assert rng.asked[1] == ("uniform", -32, 32)
    found, _ = changed([[0, 100, 250]], YES, -20.75, NO, NO, NO, NO)
    assert found == [[0, 79, 229]]  # 79.25, 229.25


def test_contrast_first_or_last() -> None:
    # Brightness 10 more, then 0.75: 110 * 0.75 = 82.5 is 82
    found, rng = changed([[100, 100, 100]], YES, 10.0, YES, YES, 0.75, NO, NO)
    assert found == [[82, 82, 82]]
    assert rng.asked[4] == ("uniform", 0.5, 1.5)
    # Red at half saturation is (255, 127.5 -> 127 or 128, ...); then contrast 0.5 at the end.
    found, _ = changed([[255, 0, 0]], NO, NO, YES, 0.5, NO, YES, 0.5)
    # 255 * 0.5 = 127.5, cut to saturation 127: the other two are 255 - 127 = 128, halved 64
    assert found == [[127, 64, 64]]
    # The same contrast first: red is 127, its saturation 127, the other two 127 * 128 / 255 = 63.7
    found, _ = changed([[255, 0, 0]], NO, YES, YES, 0.5, YES, 0.5, NO)
    assert found == [[127, 64, 64]]


def test_contrast_at_the_end_sees_the_rounded_colours() -> None:
    # Grey has no saturation and no hue: 200 * 1.4 = 280 is 255 at the end.
    found, _ = changed([[200, 200, 200], [101, 101, 101]], NO, NO, NO, NO, YES, 1.4)
    assert found == [[255, 255, 255], [141, 141, 141]]  # 141.4


def test_the_hue_has_180_levels_and_turns_round() -> None:
    # Red is hue 0, green 60, blue 120; ten levels are 20 degrees, a third of 60: 255 / 3 = 85.
    found, rng = changed([[255, 0, 0], [0, 255, 0], [0, 0, 255]], NO, NO, NO, YES, 10, NO)
    assert found == [[255, 85, 0], [0, 255, 85], [85, 0, 255]]
    assert rng.asked[4] == ("integers", -18, 18)
    found, _ = changed([[255, 0, 0]], NO, NO, NO, YES, -10, NO)
    assert found == [[255, 0, 85]]


def test_a_share_of_zero_changes_nothing_and_no_hue_turns_by_nothing() -> None:
    found, _ = changed([[9, 8, 7]], 0.0, 0.0, 0.0, 0.0, 0.0, share=0.0)
    assert found == [[9, 8, 7]]
    found, _ = changed([[255, 85, 0]], NO, NO, NO, YES, NO, hue=0)
    assert found == [[255, 85, 0]]


ALL_COLOURS = """
import hashlib, numpy as np, cv2
from stages.ops.opencv import resize_bilinear
levels = [np.arange(n, dtype=np.uint8) for n in (180, 256, 256)]
hsv = np.stack(np.meshgrid(*levels, indexing="ij"), -1).reshape(1024, -1, 3)
rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
back = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
parts = [rgb, back, *(resize_bilinear(rgb[:, :700], *size) for size in ((517, 311), (1300, 901)))]
print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


@pytest.mark.numerical
def test_opencv_computes_the_same_with_fewer_instructions() -> None:
    """Every colour there is, with what this processor has and with what all x86-64 have."""
    found = set()
    for less in ("", "AVX,AVX2,AVX512_SKX,FMA3,FP16,SSE4_1,SSE4_2,SSSE3,NEON_DOTPROD,NEON_FP16"):
        environment = os.environ | {"OPENCV_CPU_DISABLE": less}
        done = subprocess.run(
            [sys.executable, "-c", ALL_COLOURS], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
