"""What the reference case does not show; the case itself: test_conformance_cam_inference.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stages.ops.images import divide_by_maximum, fuse, multi_scale_maps, scaled_input

pytestmark = pytest.mark.numerical


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_sizes_are_rounded_halves_to_even() -> None:
    assert scaled_input(picture(75, 101), 0.5).shape == (2, 3, 38, 50)
    assert scaled_input(picture(75, 101), 1.5).shape == (2, 3, 112, 152)
    assert scaled_input(picture(1, 1), 0.5).shape == (2, 3, 1, 1)


def test_maps_of_a_network_that_does_not_see_left_and_right_are_found_in_place() -> None:
    """Mirrored maps are turned back: a bright corner of the image gives a bright corner."""
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:20, :20] = 255

    def brightness(pair: Tensor) -> Tensor:
        bright = F.avg_pool2d(pair.mean(1, keepdim=True), 4) + 3
        return torch.cat([bright.relu(), torch.zeros_like(bright)], 1)

    maps = multi_scale_maps(brightness, rgb, [0, 1], (0.5, 1.0))
    assert maps.shape == (2, 40, 60)
    assert maps[0, :12, :12].min() > 240  # its border is smoothed by the resizing
    assert maps[0, :, 44:].max() < 0.6 * 255
    assert not maps[1].any()  # a class without any response


def test_classes_come_in_the_order_in_which_they_were_asked_for() -> None:
    steady = torch.rand(2, 5, 4, 6)
    maps = multi_scale_maps(lambda _: steady, picture(8, 12), np.array([3, 1]), (1.0,))
    for number, class_id in enumerate((3, 1)):
        alone = multi_scale_maps(lambda _: steady, picture(8, 12), [class_id], (1.0,))
        np.testing.assert_array_equal(maps[number], alone[0])


def test_no_maps_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no maps"):
        fuse([], (4, 4))


SCALES = st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0]), min_size=1, max_size=3)


@given(st.integers(8, 41), st.integers(8, 41), SCALES)
def test_the_maps_of_a_mirrored_image_are_mirrored(
    height: int, width: int, scales: list[float]
) -> None:
    """Whatever the network sees: here it looks to the right of each place."""

    def right_of(pair: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(pair, (0, 4))[..., 4:].abs(), 4, ceil_mode=True)

    rgb = picture(height, width)
    maps, mirrored = (
        multi_scale_maps(right_of, image, [0, 2], scales).astype(int)
        for image in (rgb, np.ascontiguousarray(rgb[:, ::-1]))
    )
    # Pillow's resizing rounds to 8 bits, from the left and from the right.
    assert np.abs(mirrored - maps[..., ::-1]).max() <= 4


@pytest.mark.parametrize(("epsilon", "first"), [(1.0, [0.0, 0.5, 0.75]), (0.0, [0.0, 2 / 3, 1.0])])
def test_maps_of_nothing_stay_zero_whatever_is_added_to_their_maximum(
    epsilon: float, first: list[float]
) -> None:
    maps = torch.tensor([[[0.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]])
    found = divide_by_maximum(maps, epsilon)
    assert found[0, 0].tolist() == pytest.approx(first)
    assert found[1, 0].tolist() == [0.0, 0.0, 0.0]


def test_the_epsilon_reaches_the_maps() -> None:
    maps = torch.tensor([[[[1e-4, 2e-4]]]]).expand(2, 1, 1, 2)
    rgb = picture(1, 2)
    found = [multi_scale_maps(lambda pair: maps, rgb, [0], [1.0], e)[0, 0] for e in (0.0, 1.0)]
    assert [one.tolist() for one in found] == [[255, 255], [0, 0]]  # both mirror images are added
