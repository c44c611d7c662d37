"""What OAA keeps of its attention maps (case cam-oaa-accumulation), all outputs.

The training itself is run: its phase, whose network is one that gives the class maps of the case,
and its memories. Each image is a pixel that says which of the images it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.cam._oaa import Accumulation, drop_mask, in_top_k, zoom
from stages.cam.oaa import RECIPES, LabelledViews, Method, Mining

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-oaa-accumulation")
CAMS, LABEL = INPUTS["cams"], INPUTS["label"]
EPOCHS, IMAGES, CLASSES = CAMS.shape[:3]
GRID = CAMS.shape[3:]
IDS = [f"image{n}" for n in range(IMAGES)]
PRESENT = [np.flatnonzero(row) for row in LABEL]
RECIPE = replace(RECIPES["published"], epochs=EPOCHS)


class Given(nn.Module):
    """Gives class maps of the case, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = torch.zeros(0)

    def forward(self, image: Tensor) -> Tensor:
        return self.maps


def data(size: tuple[int, int] = (8, 8)) -> Any:
    rgb = np.full((*size, 3), 255, np.uint8)
    return SimpleNamespace(
        image_ids=IDS,
        num_classes=CLASSES,
        read_image=lambda image_id: rgb,
        image_labels=lambda image_id: tuple(PRESENT[IDS.index(image_id)].tolist()),
    )


def mine(recipe: Any, epochs: range, each: int = 1) -> Iterator[Accumulation]:
    """What the training keeps after each epoch, with ``each`` images in a pass."""
    network: Any = Given()
    mining = Mining(Method(recipe, Path(), CLASSES), network, data())
    phase = next(mining.phases())
    for epoch in epochs:
        for start in range(0, IMAGES, each):
            some = list(range(start, min(start + each, IMAGES)))
            network.maps = torch.from_numpy(CAMS[epoch, some])
            batch = {
                "image": torch.zeros(len(some), 3, 8, 8),
                "label": torch.from_numpy(LABEL[some]),
                "index": torch.tensor(some),
                "epoch": torch.full((len(some),), epoch),
            }
            phase.loss({"views": batch}, 0)
        for name, memory in phase.memories.items():
            memory.end_epoch(name)
        yield mining.accumulation


def of_all_classes(found: list[tuple[np.ndarray, np.ndarray] | None]) -> tuple[np.ndarray, ...]:
    """Maps uint8[N, C, h, w] and whether there is one, uint8[N, C]."""
    maps, there = (
        np.zeros((IMAGES, CLASSES, *GRID), np.uint8),
        np.zeros((IMAGES, CLASSES), np.uint8),
    )
    for n, one in enumerate(found):
        if one is not None:
            maps[n, PRESENT[n]], there[n, PRESENT[n]] = one
    return maps, there


def assert_levels(found: np.ndarray, expected: np.ndarray) -> None:
    """At most one grey level apart, on at most 1 % of the pixels."""
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.01


@pytest.mark.parametrize("each", [1, IMAGES])
def test_what_is_kept_after_each_epoch(each: int) -> None:
    for epoch, accumulation in enumerate(mine(RECIPE, range(EPOCHS), each)):
        maps, there = of_all_classes([accumulation.accumulated(one) for one in IDS])
        np.testing.assert_array_equal(there, OUTPUTS["present"][epoch])
        assert_levels(maps, OUTPUTS["accumulated"][epoch])


def test_the_k_highest_scores() -> None:
    for cams, expected in zip(CAMS, OUTPUTS["in_top_k"], strict=True):
        scores = torch.from_numpy(cams).mean((2, 3))
        found = in_top_k(scores, torch.from_numpy(LABEL)).numpy()
        np.testing.assert_array_equal(found, expected.astype(bool))


def test_accumulated_maps_at_the_size_of_the_image() -> None:
    (*_, accumulation) = mine(RECIPE, range(EPOCHS))
    size = tuple(INPUTS["image_size"].tolist())
    for n, image_id in enumerate(IDS):
        found = accumulation.accumulated(image_id)
        assert found is not None
        assert_levels(zoom(found[0], size), OUTPUTS["zoom"][n, PRESENT[n]])
        absent = np.delete(OUTPUTS["zoom"][n], PRESENT[n], 0)
        assert not absent.any()


def test_the_attention_drop_layer() -> None:
    """The maps that it keeps, its mask, and what of an image its samples leave."""
    recipe = replace(RECIPE, drop_layer=True, drop_rate=1.0)
    (accumulation,) = mine(recipe, range(1, 2))
    maps, there = of_all_classes([accumulation.current(one) for one in IDS])
    np.testing.assert_array_equal(there, OUTPUTS["drop_attention_present"])
    assert_levels(maps, OUTPUTS["drop_attention"])
    size = tuple(INPUTS["drop_size"].tolist())
    views = LabelledViews(data(size), replace(recipe, short_side=min(size)), accumulation)
    for n in range(IMAGES):
        found = drop_mask(maps[n, there[n] > 0], size, recipe.drop_threshold)
        expected = OUTPUTS["drop_mask"][n] > 0
        assert found.shape == expected.shape
        assert (found != expected).mean() <= 0.005
        image = views.sample(n, np.random.default_rng(0))["image"]
        np.testing.assert_array_equal((image == 0).all(0), found)
