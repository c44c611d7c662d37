from __future__ import annotations

import conformance
import numpy as np
import pytest
import torch
from closeness import assert_close_in_norm

from stages.ops.images import (
    caffe_bgr,
    imagenet_rgb,
    resize_bicubic,
    resize_maps_bicubic,
    resize_nearest,
    to_uint8,
)

pytestmark = pytest.mark.numerical

RGB = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3) * 8


def test_imagenet_rgb_is_torchvision_s_normalisation() -> None:
    from torchvision.transforms import functional

    expected = functional.normalize(
        functional.to_tensor(RGB), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert imagenet_rgb(RGB).dtype == np.float32
    # Three roundings to float32 here and there, of numbers around 1.
    assert_close_in_norm(imagenet_rgb(RGB), expected, 1e-6)


def test_caffe_bgr_subtracts_each_channel_s_mean() -> None:
    planes = caffe_bgr(RGB, (1.0, 2.0, 3.0))
    assert (planes.dtype, planes.shape) == (np.float32, (3, 2, 5))
    blue, green, red = planes
    np.testing.assert_array_equal(blue, RGB[..., 2] - 1.0)
    np.testing.assert_array_equal(green, RGB[..., 1] - 2.0)
    np.testing.assert_array_equal(red, RGB[..., 0] - 3.0)


def test_resizing_takes_height_before_width() -> None:
    assert resize_bicubic(RGB, 4, 3).shape == (4, 3, 3)


@pytest.mark.parametrize(
    ("value", "level"),
    [(0.0, 0), (1.0, 255), (1.2, 255), (-0.1, 0), (0.5 / 255, 0), (1.5 / 255, 2), (2.5 / 255, 2)],
)
def test_levels_are_rounded_halves_to_even_and_bounded(value: float, level: int) -> None:
    # n + 1/2 is exact in float32 here, or off by less than rounding could turn.
    levels = to_uint8(torch.tensor([[value]], dtype=torch.float32))
    assert levels.dtype == np.uint8
    assert levels[0, 0] == level


@pytest.mark.parametrize(("height", "width"), [(2, 5), (7, 3), (1, 1), (200, 300)])
def test_nearest_takes_the_pixel_under_the_new_one_s_centre(height: int, width: int) -> None:
    plane = np.arange(14 * 11, dtype=np.uint8).reshape(14, 11)
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new)
                     for new, old in ((height, 14), (width, 11)))  # fmt: skip
    expected = plane[rows[:, None], columns]
    np.testing.assert_array_equal(resize_nearest(plane, height, width), expected)


def test_maps_are_enlarged_as_opencv_enlarges_them() -> None:
    """The last step of case cam-mcis-inference, which OpenCV did."""
    _, outputs = conformance.load("cam-mcis-inference")
    found = resize_maps_bicubic(outputs["grid_maps"], *outputs["maps"].shape[1:])
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - outputs["maps"])
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.98


def test_enlarged_maps_do_not_wrap_around_where_they_overshoot() -> None:
    edge = np.zeros((1, 4, 8), np.uint8)
    edge[..., 4:] = 255
    found = resize_maps_bicubic(edge, 4, 80)[0, 0]
    assert (np.diff(found.astype(int)) >= 0).all()
    assert (found[:30] == 0).all()
    assert (found[50:] == 255).all()
