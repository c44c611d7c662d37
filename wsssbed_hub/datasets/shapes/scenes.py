"""One synthetic picture: a cluttered ground, the pattern that goes with a class, and things on it.

What the pictures are made to show: a classifier sees the pattern around a thing as well as the
thing, so its activation maps spread over the ground; saliency maps cut the ground away again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wsssbed_hub.datasets.shapes.objects import CLASSES, OTHERS, Placement, ShapeKind, paint
from wsssbed_hub.datasets.shapes.textures import CONTEXTS, background, context

WITH_CONTEXT = 0.8  # share of a class's pictures that have its pattern
STRAY_CONTEXT = 0.08  # share of pictures that have the pattern of a class that is not there
VISIBLE = 0.6  # share of every thing that others must leave in sight


@dataclass(frozen=True)
class Thing:
    """One thing in a picture; ``class_id`` is None if it belongs to no class."""

    kind: ShapeKind
    class_id: int | None
    mask: np.ndarray  # bool[H, W], what is in sight


@dataclass(frozen=True)
class Scene:
    """``image``: uint8[H, W, 3]; ``things`` in the order in which they were painted."""

    image: np.ndarray
    things: list[Thing]

    def label(self) -> np.ndarray:
        """uint8[H, W]: 0 background (and things of no class), c + 1 class c."""
        label = np.zeros(self.image.shape[:2], dtype=np.uint8)
        for thing in self.things:
            if thing.class_id is not None:
                label[thing.mask] = thing.class_id + 1
        return label

    def salient(self) -> np.ndarray:
        """uint8[H, W]: 255 on every thing, else 0."""
        return np.any([thing.mask for thing in self.things], axis=0).astype(np.uint8) * 255


def _choose(rng: np.random.Generator, first: int | None, others: float) -> list[int | None]:
    """Class ids of one to three things, None for no class; ``first`` is among them."""
    count = int(rng.choice(3, p=[0.5, 0.35, 0.15])) + 1
    chosen = [first]
    for _ in range(count - 1):
        lot = rng.random()
        if lot < others:
            chosen.append(None)
        elif lot < 0.5 and first is not None:
            chosen.append(first)
        else:
            chosen.append(int(rng.integers(len(CLASSES))))
    return chosen


def _arrange(rng: np.random.Generator, count: int, height: int, width: int) -> list[Placement]:
    """Places that hardly overlap and lie inside the picture, or nearly so."""
    placements: list[Placement] = []
    largest = {1: 0.33, 2: 0.24, 3: 0.19}[count] * min(height, width)
    tries = 0
    while len(placements) < count:
        tries += 1
        radius = rng.uniform(0.62, 1.0) * largest * 0.985 ** (tries // 5)
        margin = 0.8 * radius
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        placement = Placement(x, y, radius, rng.uniform(-0.06, 0.06), rng.uniform(0.82, 1.1))
        gaps = [
            (x - p.x) ** 2 + (y - p.y) ** 2 - (radius + p.radius) ** 2 * 0.9 for p in placements
        ]
        if all(gap > 0 for gap in gaps):
            placements.append(placement)
    return placements


def _contexts(
    rng: np.random.Generator, class_ids: list[int | None], placements: list[Placement]
) -> list[tuple[int, tuple[float, float]]]:
    """Patterns to draw, as class id and centre: of the classes that are there, each once."""
    drawn = []
    for class_id in dict.fromkeys(class_ids):
        placement = placements[class_ids.index(class_id)]
        if class_id is not None and rng.random() < WITH_CONTEXT:
            drawn.append((class_id, (placement.x, placement.y)))
    if rng.random() < STRAY_CONTEXT:
        placement = placements[-1]
        drawn.append((int(rng.integers(len(CONTEXTS))), (placement.x, placement.y)))
    return drawn


def _clutter(rng: np.random.Generator, surface: np.ndarray) -> np.ndarray:
    """``surface`` with faint, blurred structures on it, things that are not things."""
    height, width = surface.shape[:2]
    picture = Image.fromarray(np.rint(surface * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(3, 8))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        size = rng.uniform(6, 26)
        local = surface[min(int(y), height - 1), min(int(x), width - 1)]
        shade = 1 + rng.choice([-1, 1]) * rng.uniform(0.08, 0.2)
        colour = tuple(round(min(c * shade, 1) * 255) for c in local)
        corners = np.array((x, y)) + rng.uniform(-size, size, (int(rng.integers(3, 7)), 2))
        if rng.random() < 0.35:
            draw.line([tuple(p) for p in corners], fill=colour, width=int(rng.integers(2, 5)))
        else:
            draw.polygon([tuple(p) for p in corners], fill=colour)
    soft = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.8)))
    return np.asarray(soft, dtype=np.float64) / 255


def _finish(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A little blur and grain, as of a camera; uint8."""
    grain = (rng.random((*picture.shape[:2], 1)) + rng.random(picture.shape) - 1) * 0.05
    exact = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    soft = Image.fromarray(exact).filter(ImageFilter.GaussianBlur(0.5))
    return np.rint(np.clip(np.asarray(soft) / 255 + grain, 0, 1) * 255).astype(np.uint8)


def _in_sight(covers: list[np.ndarray]) -> list[np.ndarray]:
    """The part of each thing that those painted later leave in sight; bool[H, W] each."""
    masks = []
    free = np.ones(covers[0].shape, dtype=bool)
    for cover in reversed(covers):
        masks.append((cover >= 0.5) & free)
        free &= cover < 0.5
    return masks[::-1]


def _paint_all(
    rng: np.random.Generator,
    picture: np.ndarray,
    kinds: list[ShapeKind],
    placements: list[Placement],
) -> list[np.ndarray] | None:
    """Masks of the things, or None if one of them hides too much of another."""
    covers = [
        paint(rng, picture, kind, placement)
        for kind, placement in zip(kinds, placements, strict=True)
    ]
    masks = _in_sight(covers)
    enough = [m.sum() >= VISIBLE * (c >= 0.5).sum() for m, c in zip(masks, covers, strict=True)]
    return masks if all(enough) else None


def draw_scene(
    rng: np.random.Generator, height: int, width: int, first: int | None, *, others: float
) -> Scene:
    """A picture with a thing of class ``first`` (None: of no class) among its one to three things.

    ``others`` is the probability that each further thing is of no class.
    """
    while True:
        class_ids = _choose(rng, first, others)
        placements = _arrange(rng, len(class_ids), height, width)
        picture = background(rng, height, width, plain=False)
        picture = _clutter(rng, picture)
        for class_id, middle in _contexts(rng, class_ids, placements):
            picture = context(rng, picture, class_id, middle)
        kinds = [OTHERS[rng.integers(len(OTHERS))] if c is None else CLASSES[c] for c in class_ids]
        masks = _paint_all(rng, picture, kinds, placements)
        if masks is not None:
            things = [Thing(*each) for each in zip(kinds, class_ids, masks, strict=True)]
            return Scene(_finish(rng, picture), things)


def draw_plain_scene(rng: np.random.Generator, size: int) -> Scene:
    """A picture of little variety: one large thing in the middle of a plain ground.

    A saliency model that has seen nothing else takes any pattern for a thing.
    """
    middle = rng.uniform(-0.06, 0.06, 2) * size + size / 2
    radius = rng.uniform(0.24, 0.34) * size
    placement = Placement(middle[0], middle[1], radius, rng.uniform(-0.06, 0.06), 1.0)
    simple = (CLASSES[0], OTHERS[0], CLASSES[5])
    kind = simple[rng.integers(len(simple))]
    picture = background(rng, size, size, plain=True)
    mask = paint(rng, picture, kind, placement) >= 0.5
    class_id = CLASSES.index(kind) if kind in CLASSES else None
    return Scene(_finish(rng, picture), [Thing(kind, class_id, mask)])
