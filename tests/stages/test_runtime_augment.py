from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import ColorJitter

from stages.runtime.augment import colour_jitter, random_crop, resize_long_side


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
    theirs_jitter = ColorJitter(0.3, 0.3, 0.3, 0.1)
    theirs = [np.asarray(theirs_jitter(Image.fromarray(grey))).mean() for _ in range(300)]
    # Uniform in 70..130: deviation 17.3, so a mean of 300 is known to 1.0.
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=6)
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.25)
    assert 69 <= min(ours) < 75 < 125 < max(ours) <= 131
