"""Surfaces of the synthetic pictures: noise, backgrounds and the patterns that go with a class.

Everything here is built from uniform random numbers, sums, products and square roots, which every
machine rounds alike; sines and logarithms differ in the last bit from one library to the next.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Colour = tuple[float, float, float]

CONTEXTS = ("water", "sparkles", "hills", "mesh", "rails", "scales")


def wave(x: np.ndarray) -> np.ndarray:
    """A smooth wave of period 1 between 0 (at whole numbers) and 1."""
    t = 2 * np.abs(x - np.floor(x + 0.5))
    return t * t * (3 - 2 * t)


def smooth(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


def turn(angle: float) -> tuple[float, float]:
    """Cosine and sine of ``angle`` (in turns), rounded so that all machines agree."""
    return round(math.cos(math.tau * angle), 9), round(math.sin(math.tau * angle), 9)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB in 0..1; the hue is taken modulo 1."""
    return colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates x, y as float64[H, W]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return x, y


def noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise, float64[H, W] in 0..1, with features of about ``cell`` pixels."""
    coarse = rng.random((math.ceil(height / cell) + 2, math.ceil(width / cell) + 2))
    picture = Image.fromarray(coarse.astype(np.float32))
    fine = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(fine, dtype=np.float64), 0, 1)


def fractal(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Noise on three scales, float64[H, W] in 0..1."""
    layers = [noise(rng, height, width, max(cell / 2**octave, 1.5)) for octave in range(3)]
    return (4 * layers[0] + 2 * layers[1] + layers[2]) / 7


def background(rng: np.random.Generator, height: int, width: int, *, plain: bool) -> np.ndarray:
    """A muted two-colour surface, float64[H, W, 3] in 0..1; ``plain`` leaves out its texture."""
    hue, saturation = rng.random(), rng.uniform(0.08, 0.45)
    value = rng.uniform(0.32, 0.78)
    first = np.array(hsv(hue, saturation, value))
    shift = rng.uniform(0.08, 0.2) * (1 if value < 0.55 else -1)
    second = np.array(hsv(hue + rng.uniform(-0.15, 0.15), saturation, value + shift))
    x, y = grid(height, width)
    cos, sin = turn(rng.random())
    slope = (cos * (x / width - 0.5) + sin * (y / height - 0.5)) * 0.7 + 0.5
    mix = slope if plain else 0.4 * slope + 0.6 * fractal(rng, height, width, 40)
    surface = first + (second - first) * np.clip(mix, 0, 1)[..., None]
    if plain:
        return surface
    relief = SURFACES[rng.integers(len(SURFACES))](rng, height, width) - 0.5
    return np.clip(surface * (1 + rng.uniform(0.1, 0.3) * relief[..., None]), 0, 1)


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return noise(rng, height, width, rng.uniform(1.6, 3.0))


def _fibres(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = grid(height, width)
    cos, sin = turn(rng.random())
    bend = 14 * noise(rng, height, width, 45)
    return wave((cos * x + sin * y + bend) / rng.uniform(5, 9))


def _patches(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    x, y = grid(height, width)
    points = rng.random((int(rng.integers(18, 32)), 2)) * (width, height)
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    return rng.random(len(points))[distance.argmin(axis=2)]


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return smooth(2.2 * fractal(rng, height, width, 18) - 0.6)


SURFACES: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    _grain,
    _fibres,
    _patches,
    _clouds,
)


def _line(distance: np.ndarray, width: float) -> np.ndarray:
    """1 within ``width`` / 2 of a line and 0 outside, with an edge of one pixel."""
    return np.clip(width / 2 - np.abs(distance) + 0.5, 0, 1)


def _periodic(x: np.ndarray, period: float) -> np.ndarray:
    """Signed distance to the nearest multiple of ``period``."""
    return x - period * np.floor(x / period + 0.5)


def _water(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _line(_periodic(v + 4 * wave(u / 18), 9), 2.4)


def _sparkles(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v / 11)
    a, b = np.abs(_periodic(u + 5.5 * (row % 2), 11)), np.abs(_periodic(v + 5.5, 11))
    return np.clip(3.4 - np.maximum(a, b) - 2 * np.minimum(a, b), 0, 1)


def _hills(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _line(_periodic(v + np.abs(_periodic(u, 18)), 10) * 0.8, 2.4)


def _mesh(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(_line(_periodic(u, 10), 1.8), _line(_periodic(v, 10), 1.8))


def _rails(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    across = _periodic(u, 34)
    rails = np.maximum(_line(across - 6, 2), _line(across + 6, 2))
    sleepers = 0.6 * _line(_periodic(v, 8), 3) * np.clip(11 - np.abs(across), 0, 1)
    return np.maximum(rails, sleepers)


def _scales(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v / 8)
    a, b = _periodic(u + 8 * (row % 2), 16), v - 8 * row
    return _line(np.sqrt(a * a + b * b) - 7.5, 2.2)


_PATTERNS = (_water, _sparkles, _hills, _mesh, _rails, _scales)


def context(
    rng: np.random.Generator, surface: np.ndarray, kind: int, centre: tuple[float, float]
) -> np.ndarray:
    """``surface`` with the pattern ``CONTEXTS[kind]`` drawn around ``centre`` (x, y).

    It is a pattern of the ground, in its own colour a little darker or lighter, so it does not
    catch the eye; but it covers much of the picture and betrays the class.
    """
    height, width = surface.shape[:2]
    x, y = grid(height, width)
    cos, sin = turn(rng.uniform(-0.06, 0.06) + (0.25 if rng.random() < 0.3 else 0))
    scale = rng.uniform(0.9, 1.15)
    dx, dy = x - rng.random() * width, y - rng.random() * height
    pattern = _PATTERNS[kind]((cos * dx + sin * dy) / scale, (cos * dy - sin * dx) / scale)
    reach = rng.uniform(0.45, 0.65)
    far = ((x - centre[0]) / width) ** 2 + ((y - centre[1]) / height) ** 2
    edge = reach - np.sqrt(far) + 0.35 * (noise(rng, height, width, 30) - 0.5)
    strength = rng.uniform(0.28, 0.45)
    tone = -strength if surface.mean() > 0.5 or rng.random() < 0.3 else 1.3 * strength
    return np.clip(surface * (1 + tone * (pattern * smooth(edge / 0.12))[..., None]), 0, 1)
