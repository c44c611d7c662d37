"""Views of images with the patches that L2G's local network sees."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stages.cam import CamData
from stages.cam._views import multi_hot, saliency_of
from stages.ops.augment import colour_jitter
from stages.ops.images import normalised_rgb, resize_bicubic, resize_bilinear, resize_nearest

_EPSILON = 1e-10  # added to the greatest saliency, which divides


class PatchRecipe(Protocol):
    """The fields of L2G's recipe that say how views and patches are drawn."""

    @property
    def view(self) -> str: ...
    @property
    def short_side(self) -> int: ...
    @property
    def crop(self) -> int: ...
    @property
    def jitter(self) -> tuple[float, float, float, float]: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...
    @property
    def patch(self) -> int: ...
    @property
    def patches(self) -> int: ...
    @property
    def corners(self) -> bool: ...


class PatchViews:
    """A view of each image, never mirrored, its saliency and label, and where its patches lie.

    The view is a window of the image whose shorter side has ``short_side`` pixels, or, if ``view``
    is "squeeze", the whole image without its aspect.
    """

    def __init__(self, data: CamData, recipe: PatchRecipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, crop, crop] as the network takes it, ``saliency`` float32[1, crop,
        crop], divided by its maximum, ``label`` float32[C], and ``boxes`` int64[patches, 4]: x1,
        y1, x2, y2 in pixels of the view, the last two exclusive.

        Raises HubError if an image and its saliency map differ in size.
        """
        recipe, image_id = self.recipe, self.data.image_ids[index]
        rgb = self.data.read_image(image_id)
        saliency = saliency_of(self.data, image_id, rgb)
        if recipe.view == "squeeze":
            rgb, saliency = (resize_bilinear(p, recipe.crop, recipe.crop) for p in (rgb, saliency))
        else:
            rgb, saliency = window(rgb, saliency, recipe.short_side, recipe.crop, rng)
        rgb = colour_jitter(rgb, rng, *recipe.jitter)
        plane = saliency.astype(np.float32) / np.float32(255)
        return {
            "image": normalised_rgb(rgb, recipe.mean, recipe.std),
            "saliency": plane[None] / (plane.max() + np.float32(_EPSILON)),
            "label": multi_hot(self.data, image_id),
            "boxes": boxes(recipe, rng),
        }


def window(
    rgb: np.ndarray, saliency: np.ndarray, short_side: int, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """uint8[size, size, 3] and uint8[size, size] of an image and its saliency, whose shorter side
    is made ``short_side`` long (bicubic, and by nearest neighbour).

    As in the published code the slack of height and width is confused: the window's left side is
    drawn from 0 to height - size, its upper one from 0 to width - size. Beyond the image all is 0.
    """
    sides = rgb.shape[:2]
    height, width = (round(side * short_side / min(sides)) for side in sides)
    left, top = (int(rng.integers(max(0, side - size) + 1)) for side in (height, width))
    planes = resize_bicubic(rgb, height, width), resize_nearest(saliency, height, width)
    found = []
    for plane in planes:
        there = plane[top : top + size, left : left + size]
        cut = np.zeros((size, size, *plane.shape[2:]), np.uint8)
        cut[: there.shape[0], : there.shape[1]] = there
        found.append(cut)
    return found[0], found[1]


def boxes(recipe: PatchRecipe, rng: np.random.Generator) -> np.ndarray:
    """int64[patches, 4]: with ``corners`` first those, then patches at random places.

    The greatest offset is never drawn, as in the published code.
    """
    slack = recipe.crop - recipe.patch
    places = [(x, y) for x in (0, slack) for y in (0, slack)] if recipe.corners else []
    while len(places) < recipe.patches:
        y, x = rng.integers(max(1, slack), size=2).tolist()
        places.append((x, y))
    upper_left = np.array(places, np.int64)
    return np.concatenate([upper_left, upper_left + recipe.patch], axis=1)
