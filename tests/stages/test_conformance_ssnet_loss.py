"""SSNet's aggregation, losses and upsampling against the case ssnet-loss.

The case's logits and scores stand where the network's layers are; what SSNet makes of them, and the
loss of each setting, are the product's. The case is in float64 with a tolerance of 1e-6; SSNet's
softmax and losses are float32 by design, and 3.4e-7 away at most, whatever the instructions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from references import compared
from torch import Tensor, nn

from stages.ops.resizing import bilinear_kernel
from stages.runtime.method import Batch
from stages.ssnet.ssnet import (
    RECIPES,
    SETTINGS,
    Method,
    Output,
    SSNet,
    SsnetData,
    Upsampling,
    interpolated,
)

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("ssnet-loss")
PIXELS, CLASSES = 12 * 14, 20
TOLERANCE = 1e-6
OF_THE_CODE = "of the published code's own losses, which are not the paper's"
LEFT_OUT = {
    f"published.{name}": OF_THE_CODE
    for name in (
        *("loss_sal", "grad_sal", "grad_sal_v", "loss_fc", "loss_stage1", "loss_stage2"),
        *("loss_cls", "loss_cls_full", "loss_cls_stride16", "grad_cls_full"),
    )
}
ALL = compared(OUTPUTS, LEFT_OUT)


def inputs(name: str) -> Tensor:
    return torch.from_numpy(INPUTS[name])


class Chosen(nn.Module):
    """Gives its rows that the input names."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.clone())

    def forward(self, numbers: Tensor) -> Tensor:
        return self.rows[numbers]


class Numbers(nn.Module):
    """In place of the backbone: images are uniform, and their value is their number."""

    def forward(self, image: Tensor) -> Tensor:
        return image[:, 0, 0, 0].long()


class Given:
    """The network of a setting with the case's logits and scores in it, and its training."""

    def __init__(self, setting: str, over: str) -> None:
        changes: dict[str, Any] = {"normalisation": over, "class_loss": over}
        recipe = replace(RECIPES["published"], backbone="densenet-small", size=64, **changes)
        self.method = Method(recipe, Path(), CLASSES, SETTINGS[setting])
        network: SSNet = self.method.build()
        network.backbone, network.upsampling = Numbers(), nn.Identity()  # type: ignore[assignment]
        network.head = Chosen(inputs("seg_logits"))  # type: ignore[assignment]
        if network.aggregation is not None:
            network.aggregation = Chosen(inputs("v"))  # type: ignore[assignment]
        self.network: SSNet = network

    def output(self) -> Output:
        return self.network(images())

    def loss(self) -> Tensor:
        data = SsnetData(SimpleNamespace(), range(3), [], [])  # type: ignore[arg-type]
        (phase,) = self.method.phases(self.network, data)
        batches: dict[str, Batch] = {
            "class": {"classes": inputs("class_labels")},
            "saliency": {"mask": inputs("saliency_gt")},
            "segmentation": {"label": inputs("pseudo_labels")},
        }
        asked = {name: {"image": images(), **batches[name]} for name in phase.sources}  # type: ignore[union-attr]
        return torch.stack([*phase.loss(asked, 0).values()]).sum()


def images() -> Tensor:
    return torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 12, 14)


def test_the_maps() -> None:
    output = Given("MM", "sum").output()
    assert output.saliency is not None
    means = output.probability[:, 1:].mean((2, 3))
    for name, found in (
        ("paper.probability", output.probability),
        ("paper.class_probability", means),
        ("published.background", output.probability[:, 0]),
        ("paper.saliency", output.saliency),
        ("published.saliency", output.saliency),
    ):
        assert_close_in_norm(found, OUTPUTS[name], TOLERANCE, name)


# Setting, normalisation, the case's loss, its gradient by the logits, what divides that gradient.
LOSSES = [
    ("S", "sum", "paper.loss_c", "paper.grad_c", 1),
    ("S", "mean", "paper.loss_c_per_class", "paper.grad_c", CLASSES),
    ("2S", "sum", "paper.loss_s1", "paper.grad_s1", 1),
    ("2S", "mean", "paper.loss_s1_per_pixel", "paper.grad_s1", PIXELS),
    ("SS", "sum", "paper.loss_s2", "paper.grad_s2", 1),
    ("MS", "mean", "paper.loss_s2_per_pixel", "paper.grad_s2", PIXELS),
    ("MS", "mean", "published.loss_ce", "published.grad_ce", 1),
]
TOGETHER = [("M", "paper.loss_stage1", "grad_c"), ("MM", "paper.loss_stage2", "grad_s2")]


@pytest.mark.parametrize(("setting", "over", "name", "gradient", "divisor"), LOSSES)
def test_equations_2_to_4(setting: str, over: str, name: str, gradient: str, divisor: int) -> None:
    given = Given(setting, over)
    loss = given.loss()
    assert_close_in_norm(loss, OUTPUTS[name], TOLERANCE, name)
    loss.backward()
    logits, scores = given.network.head, given.network.aggregation
    assert_close_in_norm(logits.rows.grad, OUTPUTS[gradient] / divisor, TOLERANCE, gradient)
    if scores is not None:
        by_scores = OUTPUTS["paper.grad_s1_v"] / divisor
        assert_close_in_norm(scores.rows.grad, by_scores, TOLERANCE, "paper.grad_s1_v")


@pytest.mark.parametrize(("setting", "name", "gradient"), TOGETHER)
def test_the_two_stages_add_them(setting: str, name: str, gradient: str) -> None:
    given = Given(setting, "sum")
    loss = given.loss()
    assert_close_in_norm(loss, OUTPUTS[name], TOLERANCE, name)
    loss.backward()
    both = OUTPUTS["paper.grad_s1"] + OUTPUTS[f"paper.{gradient}"]
    assert_close_in_norm(given.network.head.rows.grad, both, TOLERANCE)


@pytest.mark.parametrize(("factor", "name"), [(8, "kernel16"), (2, "kernel4")])
def test_the_kernel_of_the_deconvolution(factor: int, name: str) -> None:
    assert_close_in_norm(bilinear_kernel(factor), OUTPUTS[f"upsample.{name}"], TOLERANCE)


def test_the_upsampling_of_logits() -> None:
    upsampling = Upsampling(21).double()
    coarse = inputs("upsample_logits")
    with torch.no_grad():
        fine = upsampling(coarse)
        literal = upsampling(coarse.softmax(1))
    for name, found in (
        ("logits", fine[:, :3]),
        ("logits_then_softmax", fine.softmax(1)[:, :3]),
        ("softmax_then_deconvolution", literal[:, :3]),
        ("softmax_then_deconvolution_sum", literal.sum(1)),
    ):
        assert_close_in_norm(found, OUTPUTS[f"upsample.{name}"], TOLERANCE, name)


def test_the_upsampling_of_probabilities() -> None:
    """The paper's literal order: as the deconvolution within the frame, with sum 1 in it too."""
    fine = interpolated(inputs("upsample_logits").softmax(1))
    assert_close_in_norm(fine[:, :3], OUTPUTS["upsample.softmax_then_interpolate"], TOLERANCE)
    inside = (..., slice(4, -4), slice(4, -4))
    deconvolved = OUTPUTS["upsample.softmax_then_deconvolution"]
    assert_close_in_norm(fine[:, :3][inside], deconvolved[inside], TOLERANCE)
    assert_close_in_norm(fine.sum(1), torch.ones(1, 48, 40), FLOAT64)
    assert OUTPUTS["upsample.softmax_then_deconvolution_sum"].min() < 0.32


def test_nothing_of_the_case_is_forgotten() -> None:
    maps = {"paper.probability", "paper.class_probability", "paper.saliency"}
    maps |= {"published.saliency", "published.background"}
    losses = {name for row in LOSSES for name in row[2:4]} | {name for _, name, _ in TOGETHER}
    upsampled = {name for name in OUTPUTS if name.startswith("upsample.")}
    assert maps | losses | {"paper.grad_s1_v"} | upsampled == set(ALL)
