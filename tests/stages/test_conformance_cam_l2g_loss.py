"""L2G's transfer and losses against the published code (case cam-l2g-loss).

The networks' part is played by given maps, as in the case; all else is ``Phase.loss``. The
tolerance is the case's: 1e-4 relative, and zeros are zeros.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import compared
from torch import Tensor, nn

from stages.cam import l2g
from stages.cam.l2g import RECIPES, Method

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-l2g-loss")
VOC, COCO = RECIPES["published-voc"], RECIPES["published-coco"]
BOXES = torch.from_numpy(INPUTS["boxes"])


class Given(nn.Module):
    """Gives maps, and keeps what it is asked."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, image: Tensor) -> Tensor:
        self.asked = image
        return self.maps


def given(patches: int) -> tuple[Any, dict[str, Tensor]]:
    """Networks and a batch with the first ``patches`` of each image. The image tells its pixels."""
    local = torch.from_numpy(INPUTS["feat_local"]).unflatten(0, (2, 6))[:, :patches].flatten(0, 1)
    feat = torch.from_numpy(INPUTS["feat"]).requires_grad_()
    network = SimpleNamespace(
        global_network=Given(feat), local_network=Given(local.clone().requires_grad_())
    )
    views = {
        "image": torch.arange(2.0 * 3 * 192 * 192).view(2, 3, 192, 192),
        "saliency": torch.from_numpy(INPUTS["saliency"]),
        "label": torch.from_numpy(INPUTS["label"]),
        "boxes": BOXES[:, :patches, 1:],
    }
    return network, views


def terms_of(recipe: l2g.Recipe, network: Any, views: dict[str, Tensor]) -> dict[str, Tensor]:
    data: Any = SimpleNamespace(image_ids=range(10))
    (phase,) = Method(recipe, Path(), 20).phases(network, data)
    return phase.loss({"views": views}, 0)


def steps_to_the_target(patches: int, recipe: l2g.Recipe) -> dict[str, Tensor]:
    """The target and what it is made of."""
    network, views = given(patches)
    per_patch = [
        torch.stack([views["saliency"][n, :, y1:y2, x1:x2] for _, x1, y1, x2, y2 in boxes])
        for n, boxes in enumerate(BOXES[:, :patches].tolist())
    ]
    label = views["label"].repeat_interleave(patches, 0)
    local = network.local_network.maps.detach()
    return {
        "target_normalised": l2g.normalised(local, label),
        "target_winner": l2g.winners(l2g.normalised(local, label)),
        "target": l2g.transfer_target(local, label, torch.cat(per_patch), recipe),
    }


@pytest.fixture(scope="module")
def run() -> dict[str, Tensor]:
    """Everything under the names of the case."""
    network, views = given(6)
    terms = terms_of(VOC, network, views)
    (gradient,) = torch.autograd.grad(
        terms["transfer"], network.global_network.maps, retain_graph=True
    )
    coco_terms = terms_of(COCO, *given(4))
    coco_target = steps_to_the_target(4, COCO)["target"]
    unweighted = terms_of(replace(VOC, transfer_weight=1.0), network, views)["transfer"]
    logits = l2g.aligned(network.global_network.maps, BOXES.flatten(0, 1).tolist(), (16, 16))
    return {
        **steps_to_the_target(6, VOC),
        "aligned_logits": logits.detach(),
        "loss_transfer": terms["transfer"].detach(),
        "loss_transfer_unweighted": unweighted.detach(),
        "loss_class_local": terms["classification"].detach(),
        "loss": sum(terms.values()).detach(),  # type: ignore[union-attr]
        "gradient_global": gradient * 1e4,
        "coco_target_background": coco_target[:, -1],
        "coco_target_foreground": coco_target[:, :-1].amax(1),
        "coco_loss_transfer": coco_terms["transfer"].detach(),
        "coco_loss": sum(coco_terms.values()).detach(),  # type: ignore[union-attr]
    }


LEFT_OUT = {
    "loss_class_global_unused": "the published program writes it to its log, and trains nothing "
    "with it; it is not computed here"
}


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_targets_losses_and_gradient(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)
    if "target" in name:
        assert ((run[name] == 0) == torch.from_numpy(OUTPUTS[name] == 0)).all()


def test_each_network_learns_from_its_own_term_alone() -> None:
    network, views = given(6)
    terms = terms_of(VOC, network, views)
    both = [network.global_network.maps, network.local_network.maps]
    transfer = torch.autograd.grad(terms["transfer"], both, allow_unused=True, retain_graph=True)
    classification = torch.autograd.grad(terms["classification"], both, allow_unused=True)
    assert transfer[0].any()
    assert transfer[1] is None
    assert classification[0] is None
    assert classification[1].any()
    assert not classification[1][:, -1].any()  # the background's map


def test_the_local_network_sees_the_patches_of_the_view() -> None:
    network, views = given(6)
    terms_of(VOC, network, views)
    assert torch.equal(network.global_network.asked, views["image"])
    seen = network.local_network.asked
    for k, (n, x1, y1, x2, y2) in enumerate(BOXES.flatten(0, 1).tolist()):
        assert torch.equal(seen[k], views["image"][n, :, y1:y2, x1:x2])
