"""EPS's maps of an image, fused over scales and mirror images (case cam-eps-inference).

The network's part is played by one that gives the case's raw maps, as in the case; everything else
is ``Method.activations``, and for the labels the hub's own.
"""

from __future__ import annotations

from pathlib import Path

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import compared
from torch import Tensor

from stages.cam.eps import RECIPES, Classifier, Method, probabilities
from stages.ops.images import divide_by_maximum, fuse
from stages.runtime.method import Image
from wsssbed_hub.evaluation.method_rules import label_edam
from wsssbed_hub.evaluation.pseudo_label import pseudo_label

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-eps-inference")
METHOD = Method(RECIPES["published-voc"], Path(), 20)
SCALES = METHOD.recipe.scales
CLASSES = np.flatnonzero(INPUTS["label"])
LEFT_OUT = {
    "sum": "not 8-bit, so compared before the rounding, below",
    "fused": "likewise; the maps themselves are compared with it, too",
    "softmax_scale_0.5": "of the network's maps, below",
    "pseudo_mask_thr0.20": "compared below, of these maps and of the hub's, which are 8-bit",
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
def run() -> dict[str, np.ndarray]:
    """The maps and what follows from them, under the names of the case."""
    network = Recorded()
    image = Image("case", INPUTS["image_uint8"], CLASSES)
    with torch.inference_mode():
        maps = METHOD.activations(network, image, None)  # type: ignore[arg-type]
    label = pseudo_label(maps, CLASSES, None, tau=float(INPUTS["threshold"]))
    return {
        "maps": maps,
        "classes": CLASSES,
        "sizes_wh": np.array([pair.shape[:1:-1] for pair in network.given]),
        "label": label,
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_sizes_and_classes(run: dict, name: str) -> None:
    np.testing.assert_array_equal(run[name], OUTPUTS[name])


def test_the_labels_are_equal_wherever_256_levels_tell(run: dict) -> None:
    """All pixels but those whose two best scores round to the same or to neighbouring levels."""
    scores = np.concatenate([np.full_like(run["maps"][:1], INPUTS["threshold"] * 255), run["maps"]])
    second, best = np.sort(scores.astype(int), 0)[-2:]
    clear = best - second > 1
    expected = OUTPUTS["pseudo_mask_thr0.20"]
    assert run["label"].dtype == expected.dtype
    np.testing.assert_array_equal(run["label"][clear], expected[clear])
    assert clear.mean() > 0.95
    assert (run["label"] == expected).mean() > 0.995


def test_the_maps_are_the_fused_ones_in_256_levels(run: dict) -> None:
    assert np.abs(run["maps"] / 255 - OUTPUTS["fused"]).max() < 0.51 / 255


def test_before_the_rounding() -> None:
    """The sum over scales and mirror images, and each class divided by its maximum."""
    chosen = torch.from_numpy(CLASSES)
    soft = {scale: probabilities(raw(scale)) for scale in SCALES}
    assert_close_in_norm(soft[0.5][0], OUTPUTS["softmax_scale_0.5"], FLOAT32)
    total = fuse((pair[:, chosen] for pair in soft.values()), tuple(INPUTS["size_hw"].tolist()))
    assert_close_in_norm(total, OUTPUTS["sum"], FLOAT32)
    fused = divide_by_maximum(total)
    assert_close_in_norm(fused, OUTPUTS["fused"], FLOAT32)
    # A constant score of the background: what the rule edam is without saliency, too.
    label = label_edam(fused.numpy(), CLASSES, None, tau=float(INPUTS["threshold"]))
    assert (label == OUTPUTS["pseudo_mask_thr0.20"]).mean() >= 0.999
