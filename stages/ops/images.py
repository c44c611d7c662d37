"""Images on their way into a network, and maps on their way out, over several scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stages.ops.resizing import Mode, resize

MEAN_RGB = (0.485, 0.456, 0.406)
STD_RGB = (0.229, 0.224, 0.225)


def imagenet_rgb(rgb: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] RGB to float32[3, H, W]: (value/255 - mean) / deviation of ImageNet."""
    return normalised_rgb(rgb, MEAN_RGB, STD_RGB)


def normalised_rgb(
    rgb: np.ndarray, mean: Sequence[float], deviation: Sequence[float]
) -> np.ndarray:
    """uint8[H, W, 3] RGB to float32[3, H, W]: (value/255 - mean) / deviation."""
    scaled: np.ndarray = rgb.astype(np.float32) / np.float32(255)
    scaled = (scaled - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def caffe_bgr(rgb: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """uint8[H, W, 3] RGB to float32[3, H, W]: B, G, R, 0..255, minus ``mean`` (also B, G, R)."""
    bgr = rgb[..., ::-1].astype(np.float32) - np.array(mean, np.float32)
    return np.ascontiguousarray(bgr.transpose(2, 0, 1))


def resize_bicubic(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic resize, with its antialiasing; other libraries' give other values."""
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def resize_bilinear(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3] or uint8[H, W] with Pillow's bilinear resize, with its antialiasing."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def resize_nearest(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H, W] with Pillow's nearest: the pixel under the new pixel's centre."""
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.NEAREST))


def resize_maps_bicubic(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[K, h, w] to uint8[K, height, width] as OpenCV's INTER_CUBIC does it, without
    antialiasing and with values that overshoot cut off; OpenCV's weights have 11 bits, so that some
    of its numbers are another by one level."""
    if len(maps) == 0:
        return np.zeros((0, height, width), np.uint8)
    planes = torch.from_numpy(maps).float()[None]
    found = resize(planes, (height, width), mode="bicubic")[0]
    return found.round().clamp(0, 255).to(torch.uint8).numpy()


def to_uint8(maps: Tensor) -> np.ndarray:
    """0..1 to 0..255, rounded to nearest (halves to even), as OpenCV writes a float image."""
    levels = np.rint(maps.float().cpu().numpy() * np.float32(255))
    return np.clip(levels, 0, 255).astype(np.uint8)


def scaled_input(
    rgb: np.ndarray,
    scale: float,
    mean: Sequence[float] = MEAN_RGB,
    deviation: Sequence[float] = STD_RGB,
) -> Tensor:
    """uint8[H, W, 3] RGB to float32[2, 3, h, w]: the resized image and its mirror image.

    Each side is ``round(side * scale)`` by Python's rounding (halves to even), at least 1.
    """
    height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
    resized = resize_bicubic(rgb, height, width)
    image = torch.from_numpy(normalised_rgb(resized, mean, deviation))
    return torch.stack((image, image.flip(2)))


def fuse(pairs: Iterable[Tensor], size: tuple[int, int], mode: Mode = "bilinear") -> Tensor:
    """Sum of the maps at ``size`` (height, width): float[K, H, W].

    Each of ``pairs`` is float[2, K, h, w]: the maps of the image and, still mirrored, those of
    its mirror image. Every map is brought to ``size``, turned back, and added in the given order.
    """
    total: Tensor | None = None
    for pair in pairs:
        straight, mirrored = resize(pair.float(), size, mode=mode)
        total = straight if total is None else total + straight
        total = total + mirrored.flip(2)
    if total is None:
        raise ValueError("no maps to fuse")
    return total


def divide_by_maximum(maps: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Each plane of float[..., H, W] divided by (its maximum + epsilon); the minimum stays.

    With an epsilon of 0 a plane of zeros stays zero.
    """
    maximum = maps.amax((-2, -1), keepdim=True) + epsilon
    return maps / (maximum if epsilon else maximum.masked_fill(maximum == 0, 1))


def multi_scale_maps(
    predict: Callable[[Tensor], Tensor],
    rgb: np.ndarray,
    class_ids: Sequence[int] | np.ndarray,
    scales: Sequence[float],
    epsilon: float = 1e-5,
) -> np.ndarray:
    """Activation maps uint8[K, H, W] of the classes ``class_ids`` of one image.

    ``predict`` takes float32[2, 3, h, w] and returns non-negative maps float[2, C, h', w']. Classes
    that are not asked for are dropped before anything is resized. Each sum is divided by its
    maximum + ``epsilon``; a class without any response gives zeros.
    """
    chosen = torch.as_tensor(np.asarray(class_ids, np.int64))
    maps = (predict(scaled_input(rgb, scale)) for scale in scales)
    total = fuse((pair[:, chosen.to(pair.device)] for pair in maps), rgb.shape[:2])
    return to_uint8(divide_by_maximum(total, epsilon))
