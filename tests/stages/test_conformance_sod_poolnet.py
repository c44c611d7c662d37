"""PoolNet against the outputs of the published code (case sod-poolnet), all of them.

The case is in eval mode because the authors train so; here the network is in train mode, which is
the same as long as batch norm is frozen. It runs in float64: in float32 a unit near zero is on or
off as the processor rounds, which moves the gradients by 4e-4. The case's float32 is 1e-6 away from
float64 at most, but for one such unit (``as_in_the_case``).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch
from closeness import assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor, nn

from stages.ops.images import caffe_bgr
from stages.runtime.method import Image, Phase
from stages.sod.poolnet import MEAN_BGR, RECIPES, Method, PoolNet

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("sod-poolnet")
DUTS = 10_553  # images
METHOD = Method(RECIPES["published"], Path())
STEPS = {  # the case keeps every so many channels
    "layer1": 16,
    "layer4": 32,
    "ppm_cat": 8,
    "info3": 32,
    "deep_pool0": 8,
    "deep_pool3": 16,
    "deep_pool4": 32,
}


def phases(network: PoolNet) -> list[Phase]:
    return list(METHOD.phases(network, SimpleNamespace(image_ids=range(DUTS))))  # type: ignore[arg-type]


def as_in_the_case(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Moves the one unit that is at -8e-7 before its ReLU in float64, and at 9e-8 in the case."""
    x = inputs[0].clone()
    x[0, 30, 10, 1] += 2e-6
    return x, *inputs[1:]


@pytest.fixture(scope="module")
def network() -> PoolNet:
    network = METHOD.build()
    network.load_published(checkpoint("sod-poolnet"))
    return network


@pytest.fixture(scope="module")
def run(network: PoolNet) -> dict[str, Tensor]:
    """Everything of one forward and backward pass in training, under the names of the case."""
    network.double().train()
    modules = {
        "layer1": network.backbone.layer1,
        "layer4": network.backbone.layer4,
        "ppm_cat": network.pyramid,
        "info3": network.guides[3],
        **{f"deep_pool{n}": network.aggregations[n] for n in (0, 3, 4)},
        "logits": network,
    }
    phase = phases(network)[0]
    batch = {name: torch.from_numpy(INPUTS[name]) for name in ("image", "label")}
    batch["image"] = batch["image"].double()
    moved = network.aggregations[2].register_forward_pre_hook(as_in_the_case)
    with outputs_of(modules) as found:
        terms = phase.loss({"pairs": batch}, 0)
    moved.remove()
    loss = sum(terms.values()) / phase.accumulate  # as the trainer does
    loss.backward()
    found["info3"] = found["info3"].relu()
    gradient = network.aggregations[0].fuse.weight.grad  # type: ignore[union-attr]
    gradients = {
        "grad_score_weight": network.score.weight.grad,
        "grad_deep_pool0_conv_sum_c": gradient[::64, ::64],  # type: ignore[index]
        "grad_stem": network.backbone.conv1.weight.grad[::4],  # type: ignore[index]
    }
    network.float()  # as the product's own passes are
    return {
        **{name: value[:, :: STEPS.get(name, 1)] for name, value in found.items()},
        "prob": found["logits"].sigmoid(),
        "loss": loss,
        **gradients,
    }


def test_the_input_is_bgr_minus_the_mean() -> None:
    image = caffe_bgr(INPUTS["rgb"], MEAN_BGR)[None]
    assert_close_in_norm(image, INPUTS["image"], 1e-6)  # the mean is rounded to float32 first


@pytest.mark.parametrize("name", compared(OUTPUTS, {}))
def test_features_maps_loss_and_gradients(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], 1e-5, name)


def test_the_saliency_map_is_the_probability_in_256_levels(network: PoolNet) -> None:
    with torch.inference_mode():
        saliency = METHOD.saliency(network.float().eval(), Image("case", INPUTS["rgb"]))
    expected = np.rint(OUTPUTS["prob"][0, 0] * 255)
    assert saliency.dtype == np.uint8
    # float32 moves a probability by 1e-6 or so, hence few of 20,000 pixels over a rounding border.
    assert np.abs(saliency - expected).max() <= 1
    assert (saliency == expected).mean() > 0.999


def test_training_leaves_batch_norm_as_it_was(network: PoolNet, run: dict[str, Tensor]) -> None:
    theirs = checkpoint("sod-poolnet")
    for name in ("bn1", "layer4.2.bn3"):
        norm = network.backbone.get_submodule(name)
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(norm, key), theirs[f"base.resnet.{name}.{key}"])
        assert norm.weight.grad is None


def test_parameters_and_what_of_them_is_trained(network: PoolNet) -> None:
    assert sum(p.numel() for p in network.parameters()) == 68_261_057
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 68_207_937
    assert sum(p.numel() for p in network.backbone.parameters()) == 23_508_032


def test_the_published_training(network: PoolNet) -> None:
    first, second = phases(network)
    assert first.steps == 16 * DUTS // 10
    assert first.steps + second.steps == 24 * DUTS // 10
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    for phase, rate in ((first, 5e-5), (second, 5e-6)):
        (group,) = phase.optimizer().param_groups  # type: ignore[union-attr]
        assert {id(p) for p in group["params"]} == trained
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), 5e-4)
        assert group["betas"] == (0.9, 0.999)
        assert phase.accumulate == phase.sources["pairs"].batch_size == 10  # type: ignore[index]
        assert {phase.schedule(step) for step in range(phase.steps)} == {1.0}
