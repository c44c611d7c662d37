"""The things in the synthetic pictures: their outlines, their surfaces, and painting one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wsssbed_hub.datasets.shapes.textures import grid, hsv, noise, turn, wave

Ring = list[tuple[float, float]]
Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]

FINE = 4  # outlines are drawn this many times larger, for smooth edges


@dataclass(frozen=True)
class ShapeKind:
    """One kind of thing. ``outline``: polygons about the unit circle, the first one filled, the
    others cut out of it. ``texture``: local coordinates -> 0 (first colour) .. 1 (second).
    ``hue``: centre and half width of its usual hues in turns, None for any."""

    name: str
    outline: tuple[Ring, ...]
    texture: Texture | None = None
    hue: tuple[float, float] | None = None


def _polar(radii: list[float], start: float = -0.25) -> Ring:
    count = len(radii)
    points = [turn(start + index / count) for index in range(count)]
    return [(radius * cos, radius * sin) for radius, (cos, sin) in zip(radii, points, strict=True)]


def _circle(radius: float) -> Ring:
    return _polar([radius] * 48)


def _heart() -> Ring:
    points = []
    for index in range(60):
        (c1, s1), (c2, _) = turn(index / 60), turn(2 * index / 60)
        (c3, _), (c4, _) = turn(3 * index / 60), turn(4 * index / 60)
        height = (13 * c1 - 5 * c2 - 2 * c3 - c4) / 16
        points.append((0.9 * s1**3, -0.9 * (height + 0.1)))
    return points


def _crescent() -> Ring:
    outer = [turn(0.12 + 0.76 * index / 30) for index in range(31)]
    inner = [turn(0.83 - 0.66 * index / 30) for index in range(31)]
    return outer + [(0.45 + 0.72 * cos, 0.72 * sin) for cos, sin in inner]


def _leaf() -> Ring:
    upper = [(2 * t / 24 - 1, -0.55 * (1 - (2 * t / 24 - 1) ** 2)) for t in range(25)]
    return upper + [(-x, -y) for x, y in upper[1:-1]]


_A = 0.33  # half the width of the cross's arms
_CROSS = [(-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A)]
_CROSS += [(-x, -y) for x, y in _CROSS]
_ARROW = [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]


def _radius(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)


def _checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.floor(u / 0.32) + np.floor(v / 0.32)) % 2


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = u / 0.42, v / 0.42
    a = a + 0.5 * (np.floor(b) % 2)
    return (_radius(a - np.floor(a) - 0.5, b - np.floor(b) - 0.5) < 0.3).astype(np.float64)


def _facets(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Ten wedges, light and dark in turn, that meet in the middle of the star."""
    sides = [u * sin > v * cos for cos, sin in (turn(0.25 + tip / 5) for tip in range(5))]
    return np.sum(sides, axis=0) % 2.0


CLASSES = (
    ShapeKind("disc", (_circle(0.92),), lambda u, v: wave(_radius(u, v) / 0.46), (0.02, 0.05)),
    ShapeKind("star", (_polar([1, 0.46] * 5),), _facets, (0.14, 0.04)),
    ShapeKind("triangle", (_polar([1, 1, 1]),), lambda u, v: (v / 0.36) % 1 // 0.5, (0.34, 0.07)),
    ShapeKind("cross", (_CROSS,), _checks, (0.6, 0.06)),
    ShapeKind("ring", (_circle(1), _circle(0.48)), lambda u, v: wave((u + v) / 0.34), (0.78, 0.05)),
    ShapeKind("heart", (_heart(),), _dots, (0.9, 0.04)),
)
OTHERS = (
    ShapeKind("square", (_polar([1] * 4, 0.125),)),
    ShapeKind("hexagon", (_polar([0.95] * 6),)),
    ShapeKind("crescent", (_crescent(),)),
    ShapeKind("leaf", (_leaf(),)),
    ShapeKind("arrow", (_ARROW,)),
    ShapeKind("gear", (_polar([1, 1, 0.76, 0.76] * 9), _circle(0.3))),
    ShapeKind("pill", (_polar([1, 0.97, 0.8, 0.62, 0.55, 0.52, 0.55, 0.62, 0.8, 0.97] * 2, 0),)),
)
_TEXTURES = tuple(kind.texture for kind in CLASSES if kind.texture)


@dataclass(frozen=True)
class Placement:
    """Where a thing is and how large: centre and radius in pixels, turned by ``angle`` turns and
    squeezed to ``aspect`` times its height."""

    x: float
    y: float
    radius: float
    angle: float
    aspect: float

    def local(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of every pixel relative to the thing, 1 at its radius."""
        x, y = grid(height, width)
        cos, sin = turn(self.angle)
        dx, dy = (x - self.x) / self.radius, (y - self.y) / self.radius
        return cos * dx + sin * dy, (cos * dy - sin * dx) / self.aspect

    def pixels(self, ring: Ring) -> Ring:
        cos, sin = turn(self.angle)
        stretched = [(x, y * self.aspect) for x, y in ring]
        return [
            (self.x + self.radius * (cos * x - sin * y), self.y + self.radius * (sin * x + cos * y))
            for x, y in stretched
        ]


def cover(kind: ShapeKind, placement: Placement, height: int, width: int) -> np.ndarray:
    """Share of every pixel that the thing covers, float64[H, W] in 0..1."""
    canvas = Image.new("L", (width * FINE, height * FINE))
    draw = ImageDraw.Draw(canvas)
    for index, ring in enumerate(kind.outline):
        points = [
            (round((x + 0.5) * FINE - 0.5), round((y + 0.5) * FINE - 0.5))
            for x, y in placement.pixels(ring)
        ]
        draw.polygon(points, fill=0 if index else 255)
    return np.asarray(canvas.reduce(FINE), dtype=np.float64) / 255


def _colours(
    rng: np.random.Generator, kind: ShapeKind, ground: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two colours for a thing; the first stands out from the mean colour of the ``ground``."""
    usual = kind.hue is not None and rng.random() < 0.95
    for _ in range(20):
        hue = kind.hue[0] + kind.hue[1] * rng.uniform(-1, 1) if usual and kind.hue else rng.random()
        saturation = rng.uniform(0.55, 0.95) if usual else rng.uniform(0.15, 0.95)
        value = rng.uniform(0.6, 0.95) if rng.random() < 0.75 else rng.uniform(0.25, 0.5)
        first = np.array(hsv(hue, saturation, value))
        if np.abs(first - ground).sum() > 0.75:
            break
    darker = value - 0.3 if value > 0.5 else value + 0.3
    return first, np.array(hsv(hue + rng.uniform(-0.04, 0.04), saturation * 0.9, darker))


def paint(
    rng: np.random.Generator, picture: np.ndarray, kind: ShapeKind, placement: Placement
) -> np.ndarray:
    """Paints the thing, with a soft shadow, on ``picture`` (float64[H, W, 3] in 0..1, changed in
    place) and returns what ``cover`` returns."""
    height, width = picture.shape[:2]
    alpha = cover(kind, placement, height, width)
    u, v = placement.local(height, width)
    first, second = _colours(rng, kind, picture.mean(axis=(0, 1)))
    texture = kind.texture or _TEXTURES[rng.integers(len(_TEXTURES))]
    mix = np.clip(texture(u, v), 0, 1) * rng.uniform(0.6, 1.0)
    body = first + (second - first) * mix[..., None]
    x, y = grid(height, width)
    light = 1 - 0.22 * ((x - placement.x) + (y - placement.y)) / (2 * placement.radius)
    light += 0.12 * (noise(rng, height, width, 5) - 0.5)
    solid = Image.fromarray(np.rint(alpha * 255).astype(np.uint8))
    inner = np.asarray(solid.filter(ImageFilter.MinFilter(3)), dtype=np.float64) / 255
    light -= 0.3 * (alpha - inner)
    body = np.clip(body * light[..., None], 0, 1)
    shadow = np.asarray(solid.filter(ImageFilter.GaussianBlur(2.5)), dtype=np.float64) / 255
    shadow = np.roll(shadow, (2, 2), axis=(0, 1)) * 0.35
    picture *= 1 - shadow[..., None]
    picture += (body - picture) * alpha[..., None]
    return alpha
