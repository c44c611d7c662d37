"""Activation maps from several scales and the mirrored image, as the CAM family makes them.

Most methods of the family share this: they differ in what the network gives, in the epsilon, and
in how the maps are resized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.runtime.images import imagenet_rgb, resize_bicubic, to_uint8


def scaled_input(rgb: np.ndarray, scale: float) -> Tensor:
    """uint8[H, W, 3] RGB to float32[2, 3, h, w]: the resized image and its mirror image.

    Each side is ``round(side * scale)`` by Python's rounding (halves to even), at least 1.
    """
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    image = torch.from_numpy(imagenet_rgb(resize_bicubic(rgb, height, width)))
    return torch.stack((image, image.flip(2)))


def fuse(pairs: Iterable[Tensor], size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Sum of the maps at ``size`` (height, width): float[K, H, W].

    Each of ``pairs`` is float[2, K, h, w]: the maps of the image and, still mirrored, those of
    its mirror image. Every map is brought to ``size``, turned back, and added in the given order.
    """
    total: Tensor | None = None
    for pair in pairs:
        straight, mirrored = F.interpolate(pair.float(), size, mode=mode, align_corners=False)
        total = straight if total is None else total + straight
        total = total + mirrored.flip(2)
    if total is None:
        raise ValueError("no maps to fuse")
    return total


def divide_by_maximum(maps: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Each class of float[K, H, W] divided by (its maximum + epsilon); the minimum stays."""
    return maps / (maps.amax((1, 2), keepdim=True) + epsilon)


def multi_scale_maps(
    predict: Callable[[Tensor], Tensor],
    rgb: np.ndarray,
    class_ids: Sequence[int] | np.ndarray,
    scales: Sequence[float],
) -> np.ndarray:
    """Activation maps uint8[K, H, W] of the classes ``class_ids`` of one image.

    ``predict`` takes float32[2, 3, h, w] and returns non-negative maps float[2, C, h', w']. Classes
    that are not asked for are dropped before anything is resized. A class without any response
    gives zeros.
    """
    chosen = torch.as_tensor(np.asarray(class_ids, np.int64))
    maps = (predict(scaled_input(rgb, scale)) for scale in scales)
    total = fuse((pair[:, chosen.to(pair.device)] for pair in maps), rgb.shape[:2])
    return to_uint8(divide_by_maximum(total))
