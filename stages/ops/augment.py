"""Random changes of training images that methods share; all random numbers come from ``rng``."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from stages.ops.images import resize_bicubic, resize_nearest


def resize_long_side(rgb: np.ndarray, long_side: int) -> np.ndarray:
    """uint8[H, W, 3], resized (bicubic) so that the longer side has ``long_side`` pixels."""
    longest = max(rgb.shape[:2])
    height, width = (max(1, round(side * long_side / longest)) for side in rgb.shape[:2])
    return resize_bicubic(rgb, height, width)


def resize_short_side(rgb: np.ndarray, short_side: int) -> np.ndarray:
    """uint8[H, W, 3], resized (bicubic) so that the shorter side has ``short_side`` pixels."""
    shortest = min(rgb.shape[:2])
    height, width = (round(side * short_side / shortest) for side in rgb.shape[:2])
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


def random_resized_crop(
    rgb: np.ndarray,
    size: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """torchvision's RandomResizedCrop: a window of uint8[H, W, 3], resized (bicubic) to ``size``.

    ``scale`` is the least and largest share of the area, ``aspect`` of width to height. If ten
    windows drawn do not fit, the largest in the centre that has an allowed aspect is taken.
    """
    height, width = rgb.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            break
    else:
        h = min(height, max(1, round(width / aspect[0])))
        w = min(width, max(1, round(height * aspect[1])))
        top, left = (height - h) // 2, (width - w) // 2
    return resize_bicubic(rgb[top : top + h, left : left + w], size, size)


def turned(planes: list[np.ndarray], degrees: float) -> list[np.ndarray]:
    """Each uint8[H, W, 3] or uint8[H, W], turned counter-clockwise about its centre and cut to
    the largest upright rectangle inside the turned picture."""
    if degrees == 0:
        return planes
    height, width = planes[0].shape[:2]
    inner_height, inner_width = inner_rectangle(height, width, degrees)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    window = (slice(top, top + inner_height), slice(left, left + inner_width))
    return [_rotate(plane, degrees)[window] for plane in planes]


def inner_rectangle(height: int, width: int, degrees: float) -> tuple[int, int]:
    """Height and width of the largest upright rectangle inside a turned one, at least 1 pixel.

    Either two corners of it touch one long side's ends (a long picture or a wide turn), or all
    four touch a side each.
    """
    angle = math.radians(degrees)
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    short, long = sorted((height, width))
    if short <= 2 * sine * cosine * long or math.isclose(sine, cosine):
        along, across = short / (2 * sine), short / (2 * cosine)
        found = (along, across) if height > width else (across, along)
    else:
        double = cosine * cosine - sine * sine
        found = (
            (height * cosine - width * sine) / double,
            (width * cosine - height * sine) / double,
        )
    inner_height, inner_width = (max(1, math.floor(side + 1e-9)) for side in found)
    return min(inner_height, height), min(inner_width, width)


def random_window(
    planes: list[np.ndarray], share: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """The same window of each, ``share`` of both sides long (rounded, at least 1 pixel)."""
    window = []
    for side in planes[0].shape[:2]:
        length = max(1, round(share * side))
        start = int(rng.integers(side - length + 1))
        window.append(slice(start, start + length))
    return [plane[tuple(window)] for plane in planes]


def trimmed(planes: list[np.ndarray], part: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The same window of each: less than one ``part``-th of either side is cut off."""
    window = []
    for side in planes[0].shape[:2]:
        off = int(rng.integers(max(1, side // part)))
        start = int(rng.integers(max(1, off)))
        window.append(slice(start, side - off + start))
    return [plane[tuple(window)] for plane in planes]


def turned_on_black(plane: np.ndarray, degrees: float, enlarged: bool) -> np.ndarray:
    """uint8[H, W] or uint8[H, W, 3], turned counter-clockwise about its centre, bilinearly.

    The corners are cut off, unless the canvas is ``enlarged`` so that they fit.
    """
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(picture.rotate(degrees, Image.Resampling.BILINEAR, expand=enlarged))


def resized(plane: np.ndarray, size: int) -> np.ndarray:
    """[H, W, 3] bicubically, [H, W] by the nearest pixel, to ``size`` by ``size``."""
    resize = resize_bicubic if plane.ndim == 3 else resize_nearest
    return resize(plane, size, size)


def _rotate(plane: np.ndarray, degrees: float) -> np.ndarray:
    method = Image.Resampling.BILINEAR if plane.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(plane).rotate(degrees, method))
