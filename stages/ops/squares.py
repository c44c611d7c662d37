"""Pictures of any shape on squares of one size, and maps on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from stages.ops.resizing import resize, resize_nearest

Resizing = Literal["area", "bilinear", "nearest"]


class Square(NamedTuple):
    """How a picture of ``height`` by ``width`` lies in its padded one."""

    height: int
    width: int
    top: int
    left: int
    padded: tuple[int, int]

    @classmethod
    def around(cls, planes: np.ndarray, symmetric: bool) -> Square:
        """For [H, W, ...]. Where the sides differ by an odd number the border is a pixel wider at
        the bottom or on the right; a symmetric one makes the square a pixel short instead."""
        height, width = planes.shape[:2]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        padded = (height + 2 * top, width + 2 * left) if symmetric else (side, side)
        return cls(height, width, top, left, padded)

    def put(self, planes: np.ndarray, colour: Sequence[float]) -> np.ndarray:
        """float32[H, W, C] in the middle of ``colour``."""
        padded = np.empty((*self.padded, len(colour)), np.float32)
        padded[:] = colour
        self.cut(padded)[:] = planes
        return padded

    def cut(self, padded: np.ndarray) -> np.ndarray:
        """The picture's own pixels, of an array [height, width, ...] of the padded size."""
        return padded[self.top : self.top + self.height, self.left : self.left + self.width]


def area_means(planes: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Means over ``size`` equal parts of an axis, shares of pixels counted, as OpenCV's INTER_AREA.

    By differences of sums in float64, which are the same on every processor.
    """
    values = np.moveaxis(planes, axis, -1)
    length = values.shape[-1]
    sums = np.zeros((*values.shape[:-1], length + 1))
    np.cumsum(values, -1, np.float64, out=sums[..., 1:])
    ends = np.arange(size + 1) * length / size
    before = np.minimum(ends.astype(int), length - 1)
    at_ends = sums[..., before] + (ends - before) * values[..., before]
    return np.moveaxis(np.diff(at_ends) * (size / length), -1, axis)


def resized_planes(planes: np.ndarray, size: int, how: Resizing) -> np.ndarray:
    """float32[H, W, C] to float32[C, size, size]: ``area``, ``bilinear`` or ``nearest``."""
    channels = np.ascontiguousarray(planes.transpose(2, 0, 1))
    if how == "area":
        return area_means(area_means(channels, size, 1), size, 2).astype(np.float32)
    batch = torch.from_numpy(channels)[None]
    return (resize if how == "bilinear" else resize_nearest)(batch, size)[0].numpy()
