from __future__ import annotations

import numpy as np
import pytest
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from torch.nn import functional as F

from stages.ops.squares import Square, area_means, resized_planes


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "symmetric", "padded"),
    [
        ((10, 15), True, (14, 15)),
        ((10, 15), False, (15, 15)),
        ((16, 12), True, (16, 16)),
        ((7, 7), False, (7, 7)),
        ((1, 4), False, (4, 4)),
    ],
)
def test_a_picture_lies_in_the_middle_and_comes_back(
    size: tuple[int, int], symmetric: bool, padded: tuple[int, int]
) -> None:
    rgb = picture(*size)
    square = Square.around(rgb, symmetric)
    around = square.put(rgb, (-1, -2, -3))
    assert around.shape == (*padded, 3)
    np.testing.assert_array_equal(square.cut(around), rgb)
    assert (around == (-1, -2, -3)).all(2).sum() == padded[0] * padded[1] - size[0] * size[1]
    for before, length, whole in zip((square.top, square.left), size, padded, strict=True):
        assert 0 <= whole - length - 2 * before <= (0 if symmetric else 1)


@pytest.mark.numerical
def test_means_over_areas() -> None:
    values = np.array([[1.0, 2.0, 4.0]])
    assert_close_in_norm(area_means(values, 2, 1), [[4 / 3, 10 / 3]], FLOAT64)
    assert_close_in_norm(area_means(values, 6, 1), [[1, 1, 2, 2, 4, 4]], FLOAT64)
    assert_close_in_norm(area_means(values.T, 1, 0), [[7 / 3]], FLOAT64)


@pytest.mark.numerical
def test_each_way_to_resize() -> None:
    planes = picture(12, 18)
    batch = torch.from_numpy(planes.transpose(2, 0, 1).copy())[None]
    assert_close_in_norm(resized_planes(planes, 6, "area"), F.avg_pool2d(batch, (2, 3))[0], FLOAT32)
    for how in ("bilinear", "nearest"):
        expected = F.interpolate(batch, (7, 7), mode=how)[0]
        assert_close_in_norm(resized_planes(planes, 7, how), expected, FLOAT32)  # type: ignore[arg-type]
