"""Fusion of EDAM's masks over scales and mirror images, as published (case cam-edam-inference).

The network's part is played by one that gives the case's masks; everything else is
``Method.activations``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import compared
from torch import Tensor

from stages.cam.edam import RECIPES, Edam, Method
from stages.ops.images import divide_by_maximum, fuse
from stages.runtime.method import Image

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-edam-inference")
CLASSES = np.flatnonzero(INPUTS["label"])
METHOD = Method(RECIPES["published"], Path(), 20)
SCALES = METHOD.recipe.scales
OF_LABELS = "the label rule `edam`, which has the saliency map: tests of the labels compare it"
LEFT_OUT = {
    **{name: OF_LABELS for name in OUTPUTS if name.startswith("pred_")},
    "crf": "a part of the label rule, likewise",
}


def raw(scale: float) -> Tensor:
    """What the network gave for the image at a scale and for its mirror image."""
    return torch.from_numpy(np.stack([INPUTS[f"scale_{scale}"], INPUTS[f"scale_{scale}_flip"]]))


class Recorded(Edam):
    """Gives the masks of the case in the order of its calls, and keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(20, RECIPES["shapes"])
        self.given: list[Tensor] = []

    def maps(self, image: Tensor) -> Tensor:
        self.given.append(image)
        return raw(SCALES[len(self.given) - 1])


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    network = Recorded()
    with torch.inference_mode():
        maps = METHOD.activations(network, Image("it", INPUTS["image_uint8"], CLASSES), None)  # type: ignore[arg-type]
        total = fuse((raw(scale)[:, CLASSES.tolist()] for scale in SCALES), maps.shape[1:])
        fused = divide_by_maximum(total, epsilon=0.0)
    return {"classes": CLASSES, "sum": total, "fused": fused, "maps": maps, "given": network.given}


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_sum_and_normalised_masks(run: dict[str, Any], name: str) -> None:
    if name == "classes":
        np.testing.assert_array_equal(run[name], OUTPUTS[name])
    else:
        assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)


def test_the_maps_are_the_normalised_masks_in_8_bits(run: dict[str, Any]) -> None:
    expected = np.rint(OUTPUTS["fused"] * 255)
    assert run["maps"].dtype == np.uint8
    difference = np.abs(run["maps"] - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.995
    assert (run["maps"].max((1, 2)) == 255).all()  # no epsilon


def test_the_scales_in_their_order(run: dict[str, Any]) -> None:
    height, width = INPUTS["image_uint8"].shape[:2]
    expected = [(round(height * s), round(width * s)) for s in (1.0, 0.5, 1.5, 2.0)]
    assert [tuple(pair.shape[2:]) for pair in run["given"]] == expected
