"""Images on their way into a network and maps on their way out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

MEAN_RGB = (0.485, 0.456, 0.406)
STD_RGB = (0.229, 0.224, 0.225)


def imagenet_rgb(rgb: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] RGB to float32[3, H, W]: (value/255 - mean) / deviation of ImageNet."""
    scaled: np.ndarray = rgb.astype(np.float32) / np.float32(255)
    scaled = (scaled - np.array(MEAN_RGB, np.float32)) / np.array(STD_RGB, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def caffe_bgr(rgb: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """uint8[H, W, 3] RGB to float32[3, H, W]: B, G, R, 0..255, minus ``mean`` (also B, G, R)."""
    bgr = rgb[..., ::-1].astype(np.float32) - np.array(mean, np.float32)
    return np.ascontiguousarray(bgr.transpose(2, 0, 1))


def resize_bicubic(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic resize, with its antialiasing; other libraries' give other values."""
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def resize_nearest(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H, W] with Pillow's nearest: the pixel under the new pixel's centre."""
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.NEAREST))


def to_uint8(maps: Tensor) -> np.ndarray:
    """0..1 to 0..255, rounded to nearest (halves to even), as OpenCV writes a float image."""
    levels = np.rint(maps.float().cpu().numpy() * np.float32(255))
    return np.clip(levels, 0, 255).astype(np.uint8)
