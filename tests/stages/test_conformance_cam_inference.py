"""Fusion of activation maps over scales and mirror images, as published (case cam-inference).

The network's part is played by one that gives the case's maps, as in the case; everything else is
``Method.activations``.
"""

from __future__ import annotations

from pathlib import Path

import conformance
import numpy as np
import pytest
import torch
from closeness import assert_close_in_norm
from references import compared
from torch import Tensor

from stages.cam.cam import RECIPES, Classifier, Method
from stages.ops.images import divide_by_maximum, fuse
from stages.runtime.method import Image

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-inference")
IMAGE = Image("case", INPUTS["image_uint8"], OUTPUTS["classes"])
METHOD = Method(RECIPES["published"], Path(), 20)
SCALES = METHOD.recipe.scales
LEFT_OUT = {
    "classes": "the image's label, which activations is given; test_voc reads labels from files",
    "sum": "not 8-bit, so compared before the rounding, below",
    "fused": "likewise",
}


def raw(scale: float) -> Tensor:
    """What the network gave for the image at a scale and for its mirror image."""
    return torch.from_numpy(np.stack([INPUTS[f"scale_{scale}"], INPUTS[f"scale_{scale}_flip"]]))


class Recorded(Classifier):
    """Gives the maps of the case in the order of its calls, and keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(20, width=1, blocks=(1, 1, 1, 1))
        self.given: list[Tensor] = []

    def maps(self, image: Tensor) -> Tensor:
        self.given.append(image)
        return raw(SCALES[len(self.given) - 1])


@pytest.fixture(scope="module")
def run() -> dict[str, np.ndarray | Tensor]:
    """The maps and the network's inputs, under the names of the case."""
    network = Recorded()
    with torch.inference_mode():
        maps = METHOD.activations(network, IMAGE, None)  # type: ignore[arg-type]
    given = network.given
    return {
        **{f"png_{c}": one for c, one in zip(OUTPUTS["classes"], maps, strict=True)},
        "sizes_wh": np.array([pair.shape[:1:-1] for pair in given]),
        "preprocess_0.5": given[0][0],
        "preprocess_1.5_flip": given[2][1],
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_the_maps_and_what_the_network_is_given(run: dict, name: str) -> None:
    if name.startswith("png_"):
        assert run[name].dtype == np.uint8
        difference = np.abs(run[name].astype(int) - OUTPUTS[name])
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.995
    elif name == "sizes_wh":
        np.testing.assert_array_equal(run[name], OUTPUTS[name])
    else:
        assert_close_in_norm(run[name], OUTPUTS[name], 1e-5, name)


def test_before_the_rounding() -> None:
    """The sum over scales and mirror images, and each class divided by its maximum."""
    height, width = INPUTS["size_hw"].tolist()
    classes = torch.from_numpy(OUTPUTS["classes"])
    total = fuse((raw(scale)[:, classes] for scale in SCALES), (height, width))
    assert_close_in_norm(total, OUTPUTS["sum"], 1e-6)  # float32: eight additions
    assert_close_in_norm(divide_by_maximum(total), OUTPUTS["fused"], 1e-6)
