"""PoolNet against the outputs of the published code (case sod-poolnet).

Tolerances are the case's: 1e-4 relative for features and logits, 1e-3 for gradients.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch
from references import checkpoint, error, outputs_of
from torch import Tensor

from stages.runtime.images import caffe_bgr
from stages.sod.poolnet import MEAN_BGR, RECIPES, Method, PoolNet, saliency_loss

INPUTS, OUTPUTS = conformance.load("sod-poolnet")
DUTS = 10_553  # images


@pytest.fixture(scope="module")
def network() -> PoolNet:
    network = PoolNet()
    network.load_published(checkpoint("sod-poolnet"))
    return network.eval()


@pytest.fixture(scope="module")
def run(network: PoolNet) -> dict[str, Tensor]:
    """Everything of one forward and backward pass, under the names of the case."""
    modules = {
        "layer1": network.backbone.layer1,
        "layer4": network.backbone.layer4,
        "ppm_cat": network.pyramid,
        "info3": network.guides[3],
        **{f"deep_pool{n}": network.aggregations[n] for n in (0, 3, 4)},
    }
    image = torch.from_numpy(caffe_bgr(INPUTS["rgb"], MEAN_BGR))[None]
    with outputs_of(modules) as found:
        logits = network(image)
    loss = (
        saliency_loss(logits, torch.from_numpy(INPUTS["label"])) / RECIPES["published"].accumulate
    )
    loss.backward()
    gradients = {
        "grad_score_weight": network.score.weight,
        "grad_deep_pool0_conv_sum_c": network.aggregations[0].fuse.weight,
        "grad_stem": network.backbone.conv1.weight,
    }
    return {
        **found,
        "image": image,
        "info3": found["info3"].relu(),
        "logits": logits,
        "prob": logits.sigmoid(),
        "loss": loss,
        **{name: parameter.grad for name, parameter in gradients.items()},
    }


def test_the_input_is_bgr_minus_the_mean(run: dict[str, Tensor]) -> None:
    assert error(run["image"], INPUTS["image"]) < 1e-6  # rounding of one subtraction


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("layer1", 16),
        ("layer4", 32),
        ("ppm_cat", 8),
        ("info3", 32),
        ("deep_pool0", 8),
        ("deep_pool3", 16),
        ("deep_pool4", 32),
        ("logits", 1),
        ("prob", 1),
    ],
)
def test_features_and_maps(run: dict[str, Tensor], name: str, step: int) -> None:
    assert error(run[name][:, ::step], OUTPUTS[name]) < 1e-4


def test_the_loss_is_the_sum_over_pixels_shared_by_ten_images(run: dict[str, Tensor]) -> None:
    assert run["loss"].item() == pytest.approx(float(OUTPUTS["loss"]), rel=1e-4)


def test_gradients(run: dict[str, Tensor]) -> None:
    assert error(run["grad_score_weight"], OUTPUTS["grad_score_weight"]) < 1e-3
    fuse = run["grad_deep_pool0_conv_sum_c"][::64, ::64]
    assert error(fuse, OUTPUTS["grad_deep_pool0_conv_sum_c"]) < 1e-3
    assert error(run["grad_stem"][::4], OUTPUTS["grad_stem"]) < 1e-3


def test_the_saliency_map_is_the_probability_in_256_levels(network: PoolNet) -> None:
    method = Method(RECIPES["published"], Path())
    with torch.inference_mode():
        saliency = method.saliency(network, INPUTS["rgb"])
    expected = np.rint(OUTPUTS["prob"][0, 0] * 255)
    assert saliency.dtype == np.uint8
    # float32 noise in the probability may cross a rounding border here and there.
    assert np.abs(saliency - expected).max() <= 1
    assert (saliency == expected).mean() > 0.999


def test_parameters_and_what_of_them_is_trained() -> None:
    network = Method(RECIPES["published"], Path()).build()
    assert sum(p.numel() for p in network.parameters()) == 68_261_057
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 68_207_937
    assert sum(p.numel() for p in network.backbone.parameters()) == 23_508_032


def test_the_published_training() -> None:
    network = PoolNet(width=4, blocks=(1, 1, 1, 1))
    data = SimpleNamespace(image_ids=range(DUTS))
    first, second = Method(RECIPES["published"], Path()).phases(network, data)  # type: ignore[arg-type]
    assert first.steps == 16 * DUTS // 10
    assert first.steps + second.steps == 24 * DUTS // 10
    for phase, rate in ((first, 5e-5), (second, 5e-6)):
        (group,) = phase.optimizer().param_groups  # type: ignore[union-attr]
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), 5e-4)
        assert group["betas"] == (0.9, 0.999)
        assert phase.accumulate == phase.sources["pairs"].batch_size == 10  # type: ignore[index]
        assert {phase.schedule(step) for step in range(phase.steps)} == {1.0}
