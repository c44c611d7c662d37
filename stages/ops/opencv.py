"""Changes of training images as OpenCV computes them, bit by bit: what MMSegmentation is built on.

Pillow's resizing has antialiasing and OpenCV's has none; hues have 180 levels here and 256 there.
OpenCV computes these in whole numbers, or alike with every set of instructions that it knows: the
bytes are the same on all processors. Its own threads are off: workers are processes.
"""

from __future__ import annotations

import cv2
import numpy as np

cv2.setNumThreads(0)

HUES = 180  # levels of the full circle


def size_within(height: int, width: int, bounds: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image, resized in its shape to fit two bounds.

    The longer side is at most the larger of ``bounds``, the shorter at most the smaller, one of
    them exactly. Rounded to the nearest pixel, halves up, at least 1.
    """
    factor = min(max(bounds) / max(height, width), min(bounds) / min(height, width))
    return _times(height, factor), _times(width, factor)


def size_times(height: int, width: int, factor: float) -> tuple[int, int]:
    """The size of an image times ``factor``, as ``mmcv``'s Resize comes to it.

    Each side is rounded; then the image is resized in its shape to fit the two that came of it,
    which can be a pixel less.
    """
    return size_within(height, width, (_times(height, factor), _times(width, factor)))


def _times(side: int, factor: float) -> int:
    return max(1, int(side * factor + 0.5))


def resize_bilinear(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3] or uint8[H, W] without antialiasing, the centres of corner pixels apart."""
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_nearest(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H, W]: the pixel under the new pixel's upper left corner; Pillow takes the centre's."""
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_NEAREST)


def distorted(
    rgb: np.ndarray,
    rng: np.random.Generator,
    *,
    share: float,
    brightness: float,
    contrast: tuple[float, float],
    saturation: tuple[float, float],
    hue: int,
) -> np.ndarray:
    """uint8[H, W, 3] with MMSegmentation's photometric distortion.

    Brightness (up to ``brightness`` grey levels more or less), contrast and saturation (times a
    factor), hue (up to ``hue`` of its 180 levels back, one less forth, as there), each with
    probability ``share``. Contrast comes after brightness or at the very end, either half of the
    time. Whole numbers after every step, the fraction cut off.
    """

    def adjust_contrast(image: np.ndarray) -> np.ndarray:
        return _scaled(image, rng.uniform(*contrast)) if rng.random() < share else image

    if rng.random() < share:
        rgb = _bounded(rgb.astype(np.float32) + np.float32(rng.uniform(-brightness, brightness)))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        rgb = adjust_contrast(rgb)
    if rng.random() < share:
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _scaled(hsv[..., 1], rng.uniform(*saturation))
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.random() < share:
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        turn = int(rng.integers(-hue, hue)) if hue else 0
        hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % HUES
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return rgb if contrast_first else adjust_contrast(rgb)


def _scaled(levels: np.ndarray, factor: float) -> np.ndarray:
    return _bounded(levels.astype(np.float32) * np.float32(factor))


def _bounded(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255).astype(np.uint8)
