"""VST against the outputs of the published code (case sod-vst), all of them, in eval mode.

In float32: the case is 3e-6 away from float64 at most, and its README allows 1e-4.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.ops.images import imagenet_rgb, resize_bilinear
from stages.runtime.method import Image, Phase
from stages.sod.vst import RECIPES, STRIDES, TASKS, VST, Method, level_losses

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("sod-vst")
DUTS = 10_553  # images
METHOD = Method(RECIPES["published"], Path())
NOT_FLOAT = {"map": "uint8: has a test of its own"}


def phases(network: VST) -> list[Phase]:
    return list(METHOD.phases(network, SimpleNamespace(image_ids=range(DUTS))))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return checkpoint("sod-vst")


@pytest.fixture(scope="module")
def network(theirs: dict[str, Tensor]) -> VST:
    network = METHOD.build()
    network.load_published({f"module.{key}": value for key, value in theirs.items()})
    return network.eval()


@pytest.fixture(scope="module")
def run(network: VST) -> dict[str, Tensor]:
    """Everything of one pass, under the names of the case."""
    modules = {
        "backbone": network.backbone,
        "backbone_1_8": network.backbone.transformers[1],
        "backbone_1_4": network.backbone.transformers[0],
        "convertor": network.convertor,
        "encoder": network.levels[0].encoder,
        "decoder1": network.fusions[0],
        "logits": network,
    }
    targets = {"saliency": INPUTS["label"], "contour": INPUTS["contour"]}
    batch = {task: torch.from_numpy(target)[None, None] / 255 for task, target in targets.items()}
    batch["image"] = torch.from_numpy(INPUTS["image"])
    (phase,) = phases(network)
    with torch.inference_mode(), outputs_of(modules) as found:
        losses = phase.loss({"crops": batch}, 0)
        logits = found["logits"]
        terms = [term for task in TASKS for term in level_losses(logits[task], batch[task])]  # type: ignore[call-overload]
    return {
        **{f"{t}_1_{s}": x for t in TASKS for s, x in zip(STRIDES, logits[t], strict=True)},  # type: ignore[call-overload]
        "backbone_1_16": found["backbone"][0][..., ::8],
        "backbone_1_8": found["backbone_1_8"][:, ::4, ::4],
        "backbone_1_4": found["backbone_1_4"][:, ::16, ::4],
        "convertor": found["convertor"][..., ::8],
        "saliency_token": found["encoder"][:, :1],
        "contour_token": found["encoder"][:, -1:],
        "decoder1": found["decoder1"][:, ::4, ::4],
        "loss_terms": torch.stack(terms),
        "loss": torch.stack(list(losses.values())).sum()[None],
    }


def test_the_input_is_squeezed_to_a_square() -> None:
    image = imagenet_rgb(resize_bilinear(INPUTS["raw"], 224, 224))[None]
    assert_close_in_norm(image, INPUTS["image"], 1e-6)


@pytest.mark.parametrize("name", compared(OUTPUTS, NOT_FLOAT))
def test_tokens_maps_and_losses(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)


def test_the_saliency_map(network: VST) -> None:
    with torch.inference_mode():
        saliency = METHOD.saliency(network, Image("case", INPUTS["raw"]))
    assert saliency.dtype == np.uint8
    # Cut off to 8 bits: a probability at the border of two levels may fall to either side.
    difference = np.abs(saliency.astype(int) - OUTPUTS["map"])
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.999


def test_position_table_and_random_features_come_from_the_checkpoint(
    network: VST, theirs: dict[str, Tensor]
) -> None:
    assert torch.equal(network.backbone.positions, theirs["rgb_backbone.pos_embed"])
    for number in (0, 1):
        directions = network.fusions[number].performer.directions
        assert torch.equal(directions, theirs[f"decoder.decoder{number + 1}.att.w"])


def test_every_entry_but_the_classifier_is_loaded(network: VST, theirs: dict[str, Tensor]) -> None:
    assert len(network.state_dict()) == len(theirs) - 2 == 490
    assert sum(p.numel() for p in network.parameters()) == 44_475_862 - 385_000
    assert all(p.requires_grad for p in network.parameters())


def test_the_published_training(network: VST) -> None:
    (phase,) = phases(network)
    assert phase.steps == 60_000
    assert phase.sources["crops"].batch_size == 11  # type: ignore[index]
    assert phase.accumulate == 1
    others, backbone = phase.optimizer().param_groups  # type: ignore[union-attr]
    assert {id(p) for p in backbone["params"]} == {id(p) for p in network.backbone.parameters()}
    assert len(others["params"]) + len(backbone["params"]) == len(list(network.parameters()))
    assert (others["lr"], backbone["lr"]) == (1e-4, pytest.approx(1e-5))
    for group in (others, backbone):
        assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.999), 0, 1e-8)
    rates = [phase.schedule(step) for step in (0, 29_999, 30_000, 44_999, 45_000, 59_999)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert phase.clip_norm is None
