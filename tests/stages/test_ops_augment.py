from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import ColorJitter

from stages.ops.augment import (
    colour_jitter,
    inner_rectangle,
    random_crop,
    random_resized_crop,
    random_window,
    resize_long_side,
    resize_short_side,
    turned,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int, width: int) -> np.ndarray:
    return rng().integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((30, 60), 40, (20, 40)),
        ((60, 30), 40, (40, 20)),
        ((3, 64), 128, (6, 128)),
        ((375, 500), 257, (193, 257)),
        ((1, 1000), 100, (1, 100)),
    ],
)
def test_the_longer_side_gets_its_length(
    size: tuple[int, int], long_side: int, expected: tuple[int, int]
) -> None:
    assert resize_long_side(picture(*size), long_side).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (224, 299)),
        ((500, 375), (299, 224)),
        ((500, 500), (224, 224)),
        ((1, 3), (224, 672)),
    ],
)
def test_the_shorter_side_gets_its_length(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_short_side(picture(*size), 224).shape == (*expected, 3)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 120))
def test_the_shape_stays_as_near_as_whole_pixels_allow(
    height: int, width: int, long_side: int
) -> None:
    found = resize_long_side(picture(height, width), long_side).shape[:2]
    assert max(found) == long_side
    factor = long_side / max(height, width)
    for side, old in zip(found, (height, width), strict=True):
        assert abs(side - old * factor) <= 0.5 or side == 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_a_crop_has_all_that_fits_once_and_zeros_around_it(
    height: int, width: int, size: int, seed: int
) -> None:
    planes = np.arange(1.0, 1 + height * width).reshape(1, height, width)
    (crop,) = random_crop(planes, size, rng(seed))
    assert crop.shape == (size, size)
    rows, columns = (np.flatnonzero(crop.any(axis)) for axis in (1, 0))
    found = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert found.shape == (min(height, size), min(width, size))
    top, left = divmod(int(found[0, 0]) - 1, width)
    window = planes[0, top : top + len(rows), left : left + len(columns)]
    np.testing.assert_array_equal(found, window)


def test_a_crop_is_a_window_of_the_planes() -> None:
    rows, columns = np.mgrid[:30, :20].astype(np.float32) + 1
    planes = np.stack([rows, columns])
    starts = set()
    for seed in range(400):
        crop = random_crop(planes, 16, rng(seed))
        top, left = crop[:, 0, 0].astype(int) - 1
        np.testing.assert_array_equal(crop, planes[:, top : top + 16, left : left + 16])
        starts.add((top, left))
    # Every one of the 15 x 5 places is as likely; all are found but with probability 75 e^-5.
    assert len(starts) > 70
    assert {top for top, _ in starts} == set(range(15))
    assert {left for _, left in starts} == set(range(5))


def test_an_image_smaller_than_the_crop_lies_somewhere_on_zeros() -> None:
    planes = np.ones((2, 3, 20), np.float32)
    places = set()
    for seed in range(100):
        crop = random_crop(planes, 8, rng(seed))
        assert crop.shape == (2, 8, 8)
        inside = np.flatnonzero(crop[0].all(1))
        assert len(inside) == 3
        assert crop.sum() == 2 * 3 * 8
        places.add(inside[0])
    assert places == set(range(6))


def test_the_hue_turns_by_no_more_than_its_strength() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    hues = []
    for seed in range(60):
        changed = Image.fromarray(colour_jitter(red, rng(seed), 0, 0, 0, 0.1))
        hue, saturation, value = np.asarray(changed.convert("HSV"))[0, 0] / 255
        assert (saturation, value) == (1, 1)
        hues.append((hue + 0.5) % 1 - 0.5)
    assert -0.11 < min(hues) < -0.08  # 256 levels of hue
    assert 0.08 < max(hues) < 0.11


def test_jitter_depends_on_its_generator_alone() -> None:
    rgb = picture(12, 10)
    first, again, other = (colour_jitter(rgb, rng(n), 0.3, 0.3, 0.3, 0.1) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_jitter_changes_as_much_as_torchvision_s() -> None:
    """Mean and spread of the brightness of a grey picture under the same strengths."""
    grey = np.full((4, 4, 3), 100, np.uint8)
    ours = [colour_jitter(grey, rng(n), 0.3, 0.3, 0.3, 0.1).mean() for n in range(300)]
    torch.manual_seed(0)
    theirs_jitter = ColorJitter(0.3, 0.3, 0.3, 0.1)
    theirs = [np.asarray(theirs_jitter(Image.fromarray(grey))).mean() for _ in range(300)]
    # Uniform in 70..130: deviation 17.3, so a mean of 300 is known to 1.0.
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=6)
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.25)
    assert 69 <= min(ours) < 75 < 125 < max(ours) <= 131


def area_inside(height: float, width: float, degrees: float) -> float:
    """The largest upright rectangle inside a turned one, by trying all shapes.

    A rectangle h x w has its corners inside when each is, turned back: w cos + h sin <= width and
    w sin + h cos <= height. For a given w the largest h is the smaller of the two bounds.
    """
    sine, cosine = math.sin(math.radians(abs(degrees))), math.cos(math.radians(degrees))
    w = np.linspace(0, width / cosine, 20_001)
    h = np.minimum((width - w * cosine) / sine, (height - w * sine) / cosine)
    return float((w * h).max())


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (300, 300), (60, 900), (900, 60)])
@pytest.mark.parametrize("degrees", [-10, -3, 1, 7, 10, 45])
def test_the_rectangle_inside_a_turned_picture_is_the_largest(
    size: tuple[int, int], degrees: int
) -> None:
    height, width = inner_rectangle(*size, degrees)
    largest = area_inside(*size, degrees)
    # Whole pixels: each side loses less than one.
    assert largest - (height + width + 1) <= height * width <= largest * (1 + 1e-6)
    sine, cosine = (abs(f(math.radians(degrees))) for f in (math.sin, math.cos))
    assert width * cosine + height * sine <= size[1] + 1e-6
    assert width * sine + height * cosine <= size[0] + 1e-6


@pytest.mark.parametrize("size", [(75, 100), (100, 75), (64, 64), (9, 200), (1, 1)])
@pytest.mark.parametrize("degrees", [-10, -1, 0, 4, 10])
def test_a_turned_picture_has_no_edge_in_it(size: tuple[int, int], degrees: int) -> None:
    white = [np.full((*size, 3), 255, np.uint8), np.full(size, 255, np.uint8)]
    rgb, mask = turned(white, degrees)
    assert rgb.shape == (*mask.shape, 3)
    assert rgb.min() == mask.min() == 255


def test_a_picture_and_its_mask_turn_together_counter_clockwise() -> None:
    mask = np.zeros((80, 120), np.uint8)
    mask[35:45, 90:100] = 255  # right of the centre
    rgb, turned_mask = turned([np.stack([mask] * 3, 2), mask], 10)
    rows, columns = np.nonzero(turned_mask)
    centre = (turned_mask.shape[0] - 1) / 2, (turned_mask.shape[1] - 1) / 2
    angle = math.degrees(math.atan2(centre[0] - rows.mean(), columns.mean() - centre[1]))
    assert angle == pytest.approx(10, abs=1)
    differ = (rgb[..., 0] > 127) != (turned_mask > 127)
    assert differ.mean() < 0.005  # along the border of the square, where one is interpolated


def test_a_window_has_its_share_of_both_sides_anywhere() -> None:
    planes = [picture(20, 30), rng(1).integers(0, 256, (20, 30)).astype(np.uint8)]
    places = set()
    for seed in range(300):
        rgb, mask = random_window(planes, 0.9, rng(seed))
        (found,) = (
            (top, left)
            for top in range(3)
            for left in range(4)
            if np.array_equal(planes[0][top : top + 18, left : left + 27], rgb)
        )
        top, left = found
        np.testing.assert_array_equal(mask, planes[1][top : top + 18, left : left + 27])
        places.add(found)
    assert len(places) == 3 * 4
    whole = random_window(planes, 1.0, rng())
    np.testing.assert_array_equal(whole[1], planes[1])
    assert random_window([np.zeros((1, 1), np.uint8)], 0.3, rng())[0].shape == (1, 1)


def test_a_resized_crop_has_the_share_and_shape_that_are_asked_for() -> None:
    """Rows and columns of the picture count themselves, so a crop tells where it is from."""
    rows, columns = np.mgrid[:200, :240].astype(np.uint8)
    rgb = np.stack([rows, columns, 0 * rows], 2)
    lefts = []
    for seed in range(200):
        crop = random_resized_crop(rgb, 40, (0.5, 0.6), (0.8, 1.2), rng(seed)).astype(float)
        assert crop.shape == (40, 40, 3)
        # From the second to the last but one of 40 pixels: 37 of 40 parts of the side.
        height = (crop[-2, 20, 0] - crop[1, 20, 0]) * 40 / 37
        width = (crop[20, -2, 1] - crop[20, 1, 1]) * 40 / 37
        assert height * width == pytest.approx(0.55 * 200 * 240, rel=0.05 / 0.55 + 0.02)
        assert width / height == pytest.approx(1.0, abs=0.2 + 0.02)
        lefts.append(crop[20, 0, 1])
    assert min(lefts) < 15
    assert max(lefts) > 60


def test_a_picture_of_another_shape_is_cut_in_its_centre() -> None:
    columns = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None], (10, 100, 3))
    crop = random_resized_crop(columns, 10, (0.9, 1.0), (3 / 4, 4 / 3), rng())
    assert 43 <= crop[0, 0, 0] <= 45  # 13 of 100 columns
    assert 54 <= crop[0, -1, 0] <= 56
