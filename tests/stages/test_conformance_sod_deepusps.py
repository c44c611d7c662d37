"""DeepUSPS against the outputs of the published code (case sod-deepusps), all of them.

The network and the losses agree within rounding. The CRF is another solver than the case's: its
filters differ from pydensecrf's by what the README of the case tells, so maps that have passed it
are compared by their mean absolute difference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from PIL import Image as PilImage
from references import checkpoint, compared, outputs_of
from torch import Tensor, nn

from stages.runtime.method import Image, Phase
from stages.sod.deepusps import RECIPES, DeepUsps, Method, SelfSupervision, soft_threshold

pytestmark = pytest.mark.numerical
CASE = "sod-deepusps"
INPUTS, OUTPUTS = conformance.load(CASE)
METHOD = Method(replace(RECIPES["published"], size=72), Path())
FEATURES = ("base2", "base4", "base5", "base6", "feature", "seg_logits", "logits", "probability")
STEPS = {"base2": 4, "base4": 16, "base5": 16, "base6": 32, "feature": 4}  # channels that are kept
CRF = ("crf", "crf_synthetic", "map", "mva_next")
LOSSES = ("soft_prediction", "loss_refine", "grad_refine", "loss_fuse", "grad_fuse")
CRF_ERROR = 0.02  # mean absolute, of maps in 0..1
MSRA_B = 2_500  # images


@pytest.fixture(scope="module")
def network() -> DeepUsps:
    network = METHOD.build()
    network.load_published({f"module.{key}": value for key, value in checkpoint(CASE).items()})
    return network.eval()


@pytest.fixture(scope="module")
def features(network: DeepUsps) -> dict[str, Tensor]:
    levels = {f"base{n}": network.backbone.levels[n] for n in (2, 4, 5, 6)}
    modules = {**levels, "feature": network.backbone, "seg_logits": network.seg}
    with torch.inference_mode(), outputs_of(modules) as found:
        found["logits"] = network(torch.from_numpy(INPUTS["image"]))
    found["probability"] = found["logits"].softmax(1)
    kept = {name: value[:, :: STEPS.get(name, 1)] for name, value in found.items()}
    kept["base2"] = kept["base2"][..., ::2, ::2]
    return kept


def test_every_output_is_compared() -> None:
    assert compared(OUTPUTS, {}) == sorted((*FEATURES, *CRF, *LOSSES))


def test_the_input_is_resized_and_normalised() -> None:
    assert_close_in_norm(METHOD.normalised(INPUTS["raw"])[None], INPUTS["image"], 1e-6)


@pytest.mark.parametrize("name", FEATURES)
def test_features_and_logits(features: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(features[name], OUTPUTS[name], FLOAT32, name)


def test_the_map(network: DeepUsps) -> None:
    with torch.inference_mode():
        square = METHOD.square_saliency(network, INPUTS["raw"])
        whole = METHOD.saliency(network, Image("case", INPUTS["raw"]))
    expected = OUTPUTS["map"]
    assert (square.dtype, square.shape) == (np.uint8, expected.shape)
    assert np.abs(square / 255 - expected / 255.0).mean() < CRF_ERROR
    assert whole.shape == INPUTS["raw"].shape[:2]
    resized = PilImage.fromarray(expected).resize((120, 90), PilImage.Resampling.BILINEAR)
    assert np.abs(whole / 255 - np.asarray(resized) / 255.0).mean() < CRF_ERROR


@pytest.mark.parametrize(
    ("probability", "name"),
    [(OUTPUTS["probability"][0], "crf"), (INPUTS["crf_probability"], "crf_synthetic")],
)
def test_the_crf(probability: np.ndarray, name: str) -> None:
    found = METHOD.refined(torch.from_numpy(probability), INPUTS["raw"]).numpy()
    assert np.abs(found - OUTPUTS[name]).mean() < CRF_ERROR
    assert ((found > 0.5) == (OUTPUTS[name] > 0.5)).mean() > 0.985


def test_a_prediction_enters_the_average(network: DeepUsps) -> None:
    data: Any = SimpleNamespace(image_ids=["case"], read_image=lambda image_id: INPUTS["raw"])
    average = SelfSupervision(METHOD, network, data).average
    average.load_state({"values": {"case": torch.from_numpy(INPUTS["mva_previous"])}, "put": []})
    logarithms = np.log(INPUTS["crf_probability"])
    average.put("case", (logarithms[0] - logarithms[1]).astype(np.float16))
    average.end_epoch("average")
    found = average.get("case")
    assert found is not None
    assert np.abs(found - OUTPUTS["mva_next"]).mean() < 0.3 * CRF_ERROR


class Given(nn.Module):
    """A network whose saliency is what it is told."""

    def __init__(self, saliency: np.ndarray) -> None:
        super().__init__()
        self.saliency = nn.Parameter(torch.from_numpy(saliency).double())
        self.seg = nn.Conv2d(1, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([self.saliency, 1 - self.saliency], 1).log()


def phases(network: nn.Module, images: int, **changes: Any) -> list[Phase]:
    data: Any = SimpleNamespace(
        image_ids=[f"image{n}" for n in range(images)], maps={}, read_image=None
    )
    method = Method(replace(RECIPES["published"], **changes), Path())
    return list(method.phases(network, data))  # type: ignore[arg-type]


def loss_and_gradient(phase: Phase, network: Given, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of ``labels`` float[N, K, H, W]."""
    for memory in phase.memories.values():
        memory.begin_step(0)
    batch = {"image": torch.zeros(1), "labels": torch.from_numpy(labels).double()}
    batch["index"] = torch.arange(len(labels))
    network.zero_grad()
    (loss,) = phase.loss({"images": batch}, 0).values()
    loss.backward()
    assert network.saliency.grad is not None
    return loss.detach(), network.saliency.grad


def test_the_loss_of_a_round_and_its_gradient() -> None:
    network = Given(INPUTS["loss_probability"])
    thresholds = INPUTS["loss_thresholds"].tolist()
    names = ("mc", "hs", "dsr", "rbd")
    given = {f"threshold_{name}": value for name, value in zip(names, thresholds, strict=True)}
    firsts = phases(network, 3, batch_size=3, **given)[:12:3]
    assert [phase.name for phase in firsts] == [f"{name}, round 1 of 3" for name in names]
    found = [
        loss_and_gradient(phase, network, labels[:, None])
        for phase, labels in zip(firsts, INPUTS["loss_labels"], strict=True)
    ]
    losses, gradients = (torch.stack(column) for column in zip(*found, strict=True))
    assert_close_in_norm(losses, OUTPUTS["loss_refine"], FLOAT32)
    assert_close_in_norm(gradients, OUTPUTS["grad_refine"], FLOAT32)
    saliency = torch.from_numpy(INPUTS["loss_probability"])
    soft = [
        soft_threshold(saliency, torch.from_numpy(label), threshold)
        for label, threshold in zip(INPUTS["loss_labels"], thresholds, strict=True)
    ]
    assert_close_in_norm(torch.stack(soft), OUTPUTS["soft_prediction"], FLOAT32)


def test_the_loss_of_the_fusion_and_its_gradient() -> None:
    network = Given(INPUTS["loss_probability"])
    fusion = phases(network, 3, batch_size=3)[-1]
    labels = INPUTS["loss_labels"].transpose(1, 0, 2, 3).copy()
    loss, gradient = loss_and_gradient(fusion, network, labels)
    assert_close_in_norm(loss[None], OUTPUTS["loss_fuse"], FLOAT32)
    assert_close_in_norm(gradient, OUTPUTS["grad_fuse"], FLOAT32)


def test_parameters_and_what_of_them_is_trained(network: DeepUsps) -> None:
    assert sum(p.numel() for p in network.parameters()) == 54_289_842
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 54_289_330
    assert not network.up.weight.requires_grad


def test_the_published_training(network: DeepUsps) -> None:
    *rounds, fusion = phases(network, MSRA_B)
    rates = (1e-6, 2e-6, 5e-6) * 4
    assert [phase.steps for phase in rounds] == [25 * 250] * 12
    assert fusion.steps == 200 * 250
    for phase, rate in zip([*rounds, fusion], [*rates, 1e-4], strict=True):
        (group,) = phase.optimizer().param_groups  # type: ignore[union-attr]
        assert group["lr"] == pytest.approx(rate)
        assert (group["betas"], group["weight_decay"]) == ((0.9, 0.999), 0)
        assert sum(p.numel() for p in group["params"]) == 54_289_330
        assert phase.schedule(249) == phase.schedule(0) == 1
        epochs = phase.steps // 250
        assert phase.schedule(250) == pytest.approx((1 - 1 / epochs) ** 0.9)
        assert phase.schedule(phase.steps - 1) == pytest.approx((1 / epochs) ** 0.9)


def test_the_last_layers_begin_as_published() -> None:
    torch.manual_seed(0)
    network = METHOD.build()
    assert network.seg.weight.std().item() == pytest.approx(1, rel=0.1)  # 1,024 numbers
    assert not network.seg.bias.any()  # type: ignore[union-attr]
    ramp = network.up(torch.arange(9.0).expand(1, 2, 9, 9))[0, 0, 36]
    steps = (ramp[12:-12] - ramp[11:-13]).double()  # away from the border, where zeros come in
    assert_close_in_norm(steps, np.full(len(steps), 1 / 8), 1e-6)
