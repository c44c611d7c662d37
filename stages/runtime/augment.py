"""Random changes of training images that the CAM family shares; all chance comes from ``rng``."""

from __future__ import annotations

import numpy as np
from PIL import Image

from stages.runtime.images import resize_bicubic


def resize_long_side(rgb: np.ndarray, long_side: int) -> np.ndarray:
    """uint8[H, W, 3], resized (bicubic) so that the longer side has ``long_side`` pixels."""
    longest = max(rgb.shape[:2])
    height, width = (max(1, round(side * long_side / longest)) for side in rgb.shape[:2])
    return resize_bicubic(rgb, height, width)


def colour_jitter(
    rgb: np.ndarray,
    rng: np.random.Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> np.ndarray:
    """torchvision's ColorJitter: four changes in random order.

    Factors are uniform in [1 - x, 1 + x]; the hue turns by at most ``hue`` of the full circle.
    """
    from torchvision.transforms import functional

    changes = (
        (functional.adjust_brightness, 1 + rng.uniform(-brightness, brightness)),
        (functional.adjust_contrast, 1 + rng.uniform(-contrast, contrast)),
        (functional.adjust_saturation, 1 + rng.uniform(-saturation, saturation)),
        (functional.adjust_hue, rng.uniform(-hue, hue)),
    )
    image = Image.fromarray(rgb)
    for n in rng.permutation(len(changes)):
        change, amount = changes[n]
        image = change(image, amount)
    return np.asarray(image)


def random_crop(planes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """float[C, size, size] out of float[C, H, W], at a random place.

    Where a side is shorter than ``size``, it lies at a random place on zeros: after normalisation
    that is the mean colour, in a saliency map it is "not salient". Planes that belong together
    are cropped together when they are stacked.
    """
    crop = np.zeros((len(planes), size, size), planes.dtype)
    source, place = [], []
    for side in planes.shape[1:]:
        offset = int(rng.integers(abs(side - size) + 1))
        length = min(side, size)
        start, at = (offset, 0) if side > size else (0, offset)
        source.append(slice(start, start + length))
        place.append(slice(at, at + length))
    crop[:, place[0], place[1]] = planes[:, source[0], source[1]]
    return crop
