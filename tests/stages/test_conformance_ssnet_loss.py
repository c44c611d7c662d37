"""SSNet's aggregation, losses and upsampling against the case ssnet-loss.

The tolerance is the case's: 1e-6 relative, in float64. Of the outputs as published those are
compared that the paper's formulation shares: the aggregation, and the segmentation loss with the
mean over the pixels. The published saliency and class losses have no part in this project.
"""

from __future__ import annotations

import conformance
import numpy as np
import pytest
import torch
from references import error
from torch import Tensor

from stages.ssnet._network import Upsampling, aggregated, bilinear_kernel, interpolated
from stages.ssnet._ssnet import class_loss, saliency_loss, segmentation_loss

INPUTS, OUTPUTS = conformance.load("ssnet-loss")
PIXELS, CLASSES = 12 * 14, 20


def inputs(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(INPUTS[name]).to(dtype)


@pytest.fixture
def logits() -> Tensor:
    return inputs("seg_logits").requires_grad_()


@pytest.fixture
def scores() -> Tensor:
    return inputs("v").requires_grad_()


def of_classes(logits: Tensor, over: str = "sum") -> Tensor:
    return class_loss(logits.softmax(1), inputs("class_labels"), over)  # type: ignore[arg-type]


def of_saliency(logits: Tensor, scores: Tensor, over: str = "sum") -> Tensor:
    saliency = aggregated(scores, logits.softmax(1))
    return saliency_loss(saliency, inputs("saliency_gt"), over)  # type: ignore[arg-type]


def of_segmentation(logits: Tensor, over: str = "sum") -> Tensor:
    label = inputs("pseudo_labels", torch.int64)
    return segmentation_loss(logits.log_softmax(1), label, over)  # type: ignore[arg-type]


def test_probabilities_and_their_means(logits: Tensor) -> None:
    probability = logits.softmax(1)
    assert error(probability, OUTPUTS["paper.probability"]) < 1e-6
    assert error(probability[:, 1:].mean((2, 3)), OUTPUTS["paper.class_probability"]) < 1e-6


@pytest.mark.parametrize("name", ["paper.saliency", "published.saliency"])
def test_the_aggregation_of_the_classes(logits: Tensor, scores: Tensor, name: str) -> None:
    assert error(aggregated(scores, logits.softmax(1)), OUTPUTS[name]) < 1e-6


@pytest.mark.parametrize(("over", "name"), [("sum", "loss_c"), ("mean", "loss_c_per_class")])
def test_equation_2(logits: Tensor, over: str, name: str) -> None:
    loss = of_classes(logits, over)
    assert error(loss, OUTPUTS[f"paper.{name}"]) < 1e-6
    loss.backward()
    gradient = OUTPUTS["paper.grad_c"] / (CLASSES if over == "mean" else 1)
    assert error(logits.grad, gradient) < 1e-6


@pytest.mark.parametrize(("over", "name"), [("sum", "loss_s1"), ("mean", "loss_s1_per_pixel")])
def test_equation_3(logits: Tensor, scores: Tensor, over: str, name: str) -> None:
    loss = of_saliency(logits, scores, over)
    assert error(loss, OUTPUTS[f"paper.{name}"]) < 1e-6
    loss.backward()
    divisor = PIXELS if over == "mean" else 1
    assert error(logits.grad, OUTPUTS["paper.grad_s1"] / divisor) < 1e-6
    assert error(scores.grad, OUTPUTS["paper.grad_s1_v"] / divisor) < 1e-6


@pytest.mark.parametrize(
    ("over", "name"),
    [
        ("sum", "paper.loss_s2"),
        ("mean", "paper.loss_s2_per_pixel"),
        ("mean", "published.loss_ce"),
    ],
)
def test_equation_4(logits: Tensor, over: str, name: str) -> None:
    loss = of_segmentation(logits, over)
    assert error(loss, OUTPUTS[name]) < 1e-6
    loss.backward()
    gradient = "paper.grad_s2" if over == "sum" else "published.grad_ce"
    assert error(logits.grad, OUTPUTS[gradient]) < 1e-6


def test_the_two_stages_add_them(logits: Tensor, scores: Tensor) -> None:
    first = of_classes(logits) + of_saliency(logits, scores)
    second = of_saliency(logits, scores) + of_segmentation(logits)
    assert error(first, OUTPUTS["paper.loss_stage1"]) < 1e-6
    assert error(second, OUTPUTS["paper.loss_stage2"]) < 1e-6


@pytest.mark.parametrize(("factor", "name"), [(8, "kernel16"), (2, "kernel4")])
def test_the_kernel_of_the_deconvolution(factor: int, name: str) -> None:
    assert error(bilinear_kernel(factor), OUTPUTS[f"upsample.{name}"]) < 1e-6


def test_the_upsampling_of_logits() -> None:
    upsampling = Upsampling(21).double()
    coarse = inputs("upsample_logits")
    with torch.no_grad():
        fine = upsampling(coarse)
        literal = upsampling(coarse.softmax(1))
    assert error(fine[:, :3], OUTPUTS["upsample.logits"]) < 1e-6
    assert error(fine.softmax(1)[:, :3], OUTPUTS["upsample.logits_then_softmax"]) < 1e-6
    assert error(literal[:, :3], OUTPUTS["upsample.softmax_then_deconvolution"]) < 1e-6
    assert error(literal.sum(1), OUTPUTS["upsample.softmax_then_deconvolution_sum"]) < 1e-6


def test_the_upsampling_of_probabilities() -> None:
    """The paper's literal order: as the deconvolution within the frame, with sum 1 in it too."""
    fine = interpolated(inputs("upsample_logits").softmax(1))
    assert error(fine[:, :3], OUTPUTS["upsample.softmax_then_interpolate"]) < 1e-6
    inside = (..., slice(4, -4), slice(4, -4))
    deconvolved = OUTPUTS["upsample.softmax_then_deconvolution"]
    assert error(fine[:, :3][inside], deconvolved[inside]) < 1e-6
    np.testing.assert_allclose(fine.sum(1).numpy(), 1, rtol=1e-12)
    assert OUTPUTS["upsample.softmax_then_deconvolution_sum"].min() < 0.32
