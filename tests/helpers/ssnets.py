"""What the tests of SSNet share: small networks, two images of each set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.ops.determinism import reseed
from stages.runtime.method import Image
from stages.ssnet.samples import SsnetData
from stages.ssnet.ssnet import RECIPES, SETTINGS, Method, Recipe, SSNet
from wsssbed_hub.datasets import open_sod_dataset, open_target

SMALL = replace(RECIPES["shapes"], size=64, batch_size=4)
CLASSES = 6  # of shapes


@dataclass
class Labels:
    """Labels by image id, as an artifact gives them."""

    by_id: Mapping[str, np.ndarray]
    name: str = "label/some"

    def read(self, image_id: str) -> np.ndarray:
        return self.by_id[image_id]


def two_images(shapes: Path) -> SsnetData:
    """Two images of each set; the pseudo labels are the true ones."""
    target, sod = open_target("shapes", shapes), open_sod_dataset("shapes", shapes)
    sod.image_ids = sod.image_ids[:2]
    ids = target.image_ids("train_aug")[:2]
    truth = target.ground_truth("train_aug")
    labels = {i: np.where(truth.read(i) == 255, 0, truth.read(i)) for i in ids}
    return SsnetData(target, ids, sod, Labels(labels))  # type: ignore[arg-type]


def method(
    name: str = "MM", classes: int = CLASSES, recipe: Recipe = SMALL, **changes: Any
) -> Method:
    return Method(replace(recipe, **changes), Path(), classes, SETTINGS[name])


def build(one: Method, seed: int = 0) -> SSNet:
    reseed(seed, "build")
    return one.build()


def picture(height: int = 50, width: int = 70, classes: Sequence[int] = ()) -> Image:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image("picture", rgb, np.array(classes, np.int64))


def red_square(classes: Sequence[int] = ()) -> Image:
    """On black."""
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[16:48, 16:48] = (200, 40, 40)
    return Image("red", rgb, np.array(classes, np.int64))


class Fixed(nn.Module):
    """In place of a network: the same H and S for every image."""

    def __init__(self, probability: Tensor, saliency: Tensor | None = None) -> None:
        super().__init__()
        self.probability, self.saliency = probability, saliency
        self.device = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Any:
        saliency = None if self.saliency is None else self.saliency[None]
        return SimpleNamespace(probability=self.probability[None], saliency=saliency)
