"""DSS against the outputs of the port (case sod-dss), all of them.

The pass is in float64, so that no unit is on or off as a processor rounds; the case's float32 is
3e-7 away from it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch
from closeness import assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor, nn

from stages.ops.densecrf import DSS, densecrf_from_unary
from stages.ops.images import imagenet_rgb
from stages.runtime.method import Image, Phase
from stages.sod.dss import RECIPES, Dss, Method, crf_unary

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("sod-dss")
METHOD = Method(RECIPES["published"], Path())
# The case's image is not resized.
AS_IT_IS = Method(replace(RECIPES["published"], size=0, crf=False), Path())
ELSEWHERE = {
    "saliency": "compared in 256 levels, as Method.saliency gives it",
    "crf": "its input is a map of its own",
}


def phase_of(method: Method, network: Dss, images: int = 2500) -> Phase:
    (phase,) = method.phases(network, SimpleNamespace(image_ids=range(images)))  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> Dss:
    network = METHOD.build()
    network.load_published(checkpoint("sod-dss"))
    return network


@pytest.fixture(scope="module")
def run(network: Dss) -> dict[str, Tensor]:
    """Everything of one forward and backward pass in training, under the names of the case."""
    network.double().train()
    modules: dict[str, nn.Module] = {
        "conv5": network.backbone.features.get_submodule("29"),
        "pool5a": network.pool,
        **{f"side{n + 1}_raw": side for n, side in enumerate(network.sides)},
        "logits": network,
    }
    batch = {name: torch.from_numpy(INPUTS[name]).double() for name in ("image", "label")}
    with outputs_of(modules) as found:
        terms = phase_of(METHOD, network).loss({"pairs": batch}, 0)
    loss = sum(terms.values())
    loss.backward()  # type: ignore[union-attr]
    logits = found.pop("logits")
    found |= {f"side{n + 1}_logit": logits[:, n : n + 1] for n in range(6)}
    first = network.backbone.features[0].weight
    assert network.fusion.grad is not None
    found |= {
        "conv5": found["conv5"][:, ::8],
        "pool5a": found["pool5a"][:, ::4],
        "fuse_logit": logits[:, 6:],
        "prob": logits.sigmoid(),
        "loss": loss,  # type: ignore[dict-item]
        "grad_fuse_weights": network.fusion.grad,
        "grad_comb0_conv": network.merges[0].conv.weight.grad,  # type: ignore[union-attr,dict-item]
        "grad_stem": first.grad[::4],  # type: ignore[union-attr,index,dict-item]
    }
    network.float()
    return found


def test_the_input_is_rgb_with_imagenet_s_mean_and_deviation() -> None:
    assert_close_in_norm(imagenet_rgb(INPUTS["rgb"])[None], INPUTS["image"], 1e-6)


@pytest.mark.parametrize("name", compared(OUTPUTS, ELSEWHERE))
def test_features_maps_loss_and_gradients(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], 1e-5, name)


def test_the_saliency_map_is_a_mean_of_four_in_256_levels(network: Dss) -> None:
    with torch.inference_mode():
        saliency = AS_IT_IS.saliency(network.float().eval(), Image("case", INPUTS["rgb"]))
    expected = np.rint(OUTPUTS["saliency"][0, 0] * 255)
    # float32 moves a probability by 1e-6 or so, hence few pixels over a rounding border.
    assert np.abs(saliency - expected).max() <= 1
    assert (saliency == expected).mean() > 0.999


class Says(nn.Module):
    """A network of which all seven maps are the one that it was made of."""

    def __init__(self, saliency: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.from_numpy(saliency).logit())

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.expand(1, 7, *self.logits.shape)


def test_the_crf() -> None:
    saliency = torch.from_numpy(INPUTS["crf_saliency"])
    refined = densecrf_from_unary(crf_unary(saliency), INPUTS["rgb"], DSS)[1]
    assert_close_in_norm(refined, OUTPUTS["crf"], 1e-3)  # the case's, with pydensecrf


def test_the_saliency_map_comes_out_of_the_crf() -> None:
    with torch.inference_mode():
        said: Dss = Says(INPUTS["crf_saliency"])  # type: ignore[assignment]
        method = Method(replace(RECIPES["published"], size=0), Path())
        saliency = method.saliency(said, Image("case", INPUTS["rgb"]))
    # Rounding to 256 levels alone is 2e-3 away; without the CRF it is 0.6.
    assert_close_in_norm(saliency / 255, OUTPUTS["crf"], 4e-3)


def test_parameters_of_both_networks() -> None:
    port = METHOD.build()
    assert sum(p.numel() for p in port.parameters()) == 62_238_181
    assert sum(p.numel() for p in port.backbone.parameters()) == 14_714_688
    assert sum(p.numel() for p in port.sides.parameters()) == 47_510_790
    assert sum(p.numel() for p in port.merges.parameters()) == 12_697
    caffe = Method(RECIPES["caffe"], Path()).build()
    assert sum(p.numel() for p in caffe.parameters()) == 62_225_505


def test_the_published_training(network: Dss) -> None:
    phase = phase_of(METHOD, network)
    assert phase.steps == 500 * (2500 // 8)
    optimizer = phase.optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(1e-6, 0.0)}
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in network.parameters()}
    assert (phase.accumulate, phase.clip_norm) == (1, 1.0)
    assert {phase.schedule(step) for step in (0, phase.steps - 1)} == {1.0}
