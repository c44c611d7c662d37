"""Made-up JPEGs of DUTS's and VOC's sizes, with masks and labels, read as stages read theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wsssbed_hub.datasets.image_files import read_grey, read_rgb

# Height and width, in turn: the common sizes of the two datasets.
DUTS = ((300, 400), (400, 300), (267, 400), (400, 267))
VOC = ((375, 500), (333, 500), (500, 375), (375, 500))


@dataclass(frozen=True)
class Pictures:
    """The data that ``phases`` of a SOD or segmentation method asks for."""

    name: str
    image_paths: Mapping[str, Path]
    truth: Mapping[str, Path]

    @property
    def image_ids(self) -> list[str]:
        return sorted(self.image_paths)

    def read_image(self, image_id: str) -> np.ndarray:
        return read_rgb(self.image_paths[image_id])

    def read_mask(self, image_id: str) -> np.ndarray:
        return read_grey(self.truth[image_id])

    read_label = read_mask


def photograph(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[H, W, 3]: smooth colours, some edges, a photograph's noise."""
    small = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:height, :width]
    shade = np.where(x * rng.normal() + y * rng.normal() > 0, 30, -30)[..., None]
    noisy = smooth + shade + rng.normal(0, 4, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def draw(folder: Path, name: str, sizes: tuple[tuple[int, int], ...], count: int) -> Pictures:
    """``count`` images in ``folder``; masks and labels are an ellipse of 1 (labels) or 255."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, truth = {}, {}
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        image_id = f"image{number:04d}"
        images[image_id] = folder / f"{image_id}.jpg"
        truth[image_id] = folder / f"{image_id}.png"
        Image.fromarray(photograph(height, width, rng)).save(images[image_id], quality=92)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        inside = (x**2 + 2 * y**2 < 0.5).astype(np.uint8) * (255 if name == "duts" else 1)
        Image.fromarray(inside).save(truth[image_id])
    return Pictures(name, images, truth)
