"""DeepLab-V2 against the outputs of the published code (case seg-deeplabv2).

The tolerance is the case's: 1e-4 relative.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor, nn

from stages.ops.images import caffe_bgr
from stages.runtime.method import Image, Phase
from stages.seg.deeplabv2 import MEAN_BGR, RECIPES, DeepLabV2, Method, shrink_label

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("seg-deeplabv2")
MAPS = ("1x", "0.5x", "0.75x", "max")
LEFT_OUT = {
    "square_logits_max_recomputed_scale": "for diagnosis: what another version of torch gives",
    "square_argmax_full": "not compared in norm, but below: Method.logits",
    "lr_1x": "of the training, below",
}
ALL = compared(OUTPUTS, LEFT_OUT)
METHOD = Method(RECIPES["published"], Path(), 20)


def the_phase(network: DeepLabV2) -> Phase:
    (phase,) = METHOD.phases(network, SimpleNamespace(image_ids=range(10_582)))  # type: ignore[arg-type]
    return phase


def rgb(name: str) -> np.ndarray:
    """The case holds B, G, R planes; methods take uint8[H, W, 3] RGB."""
    return np.ascontiguousarray(INPUTS[name][::-1].transpose(1, 2, 0))


@pytest.fixture(scope="module")
def network() -> DeepLabV2:
    network = METHOD.build()
    network.load_published(checkpoint("seg-deeplabv2"))
    return network


@pytest.fixture(scope="module")
def wide(network: DeepLabV2) -> dict[str, Tensor]:
    """Everything of the network in eval mode."""
    backbone = network.eval().backbone
    modules: dict[str, nn.Module] = {
        "stem": backbone.pool,
        "stage2": backbone.layer2,
        "stage4": backbone.layer4,
    }
    image = torch.from_numpy(caffe_bgr(rgb("bgr_wide"), MEAN_BGR))[None]
    with torch.inference_mode():
        with outputs_of(modules) as found:
            base = network.single(image)
        return {
            "wide_layer1_mean_c": found["stem"].mean((2, 3)),
            "wide_layer3_first8": found["stage2"][:, :8],
            "wide_layer5_first8": found["stage4"][:, :8],
            "wide_base_logits": base,
            "wide_msc_logits": network(image),
        }


@pytest.fixture(scope="module")
def square(network: DeepLabV2) -> dict[str, Tensor]:
    """Everything of the network in training; its batch norm is frozen."""
    network.train()
    image = torch.from_numpy(caffe_bgr(rgb("bgr_square"), MEAN_BGR))[None]
    label = torch.from_numpy(INPUTS["label_square"])[None]
    with torch.inference_mode():
        logits = network.all_scales(image)
        losses = the_phase(network).loss({"crops": {"image": image, "label": label}}, 0)
    assert tuple(losses) == MAPS
    maps = zip(MAPS, (*logits.scales, logits.fused), strict=True)
    return {f"square_logits_{name}": one for name, one in maps} | {
        "square_losses": torch.stack([*losses.values()]),
        "square_loss_total": torch.stack([*losses.values()]).sum(),
    }


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("wide_")])
def test_features_and_logits(wide: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(wide[name], OUTPUTS[name], FLOAT32, name)


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("square_lo")])
def test_logits_and_losses_in_training(square: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(square[name], OUTPUTS[name], FLOAT32, name)


@pytest.mark.parametrize("name", [n for n in ALL if n.startswith("square_label_")])
def test_labels_are_brought_to_the_size_of_the_logits(name: str) -> None:
    expected = OUTPUTS[name]
    label = shrink_label(torch.from_numpy(INPUTS["label_square"])[None], expected.shape)
    np.testing.assert_array_equal(label[0].numpy(), expected)


def test_the_class_of_every_pixel(network: DeepLabV2) -> None:
    with torch.inference_mode():
        logits = METHOD.logits(network.eval(), Image("square", rgb("bgr_square")))
    assert logits.shape == (21, 225, 225)
    different = logits.argmax(0).numpy() != OUTPUTS["square_argmax_full"]
    assert different.sum() <= 5  # the case: a handful, where two classes are nearly equal


def test_the_published_training(network: DeepLabV2) -> None:
    phase = the_phase(network)
    backbone, weights, biases = phase.optimizer().param_groups  # type: ignore[union-attr]
    assert [(len(g["params"]), sum(p.numel() for p in g["params"]), g["lr"], g["weight_decay"])
            for g in (backbone, weights, biases)] == [
        (104, 42_394_816, pytest.approx(2.5e-4), 5e-4),
        (4, 1_548_288, pytest.approx(2.5e-3), 5e-4),
        (4, 84, pytest.approx(5e-3), 0),
    ]  # fmt: skip
    trained = {id(p) for group in (backbone, weights, biases) for p in group["params"]}
    assert all(p.requires_grad == (id(p) in trained) for p in network.parameters())
    assert backbone["momentum"] == 0.9
    assert phase.steps == 20_000
    assert (phase.sources["crops"].batch_size, phase.accumulate) == (10, 2)  # type: ignore[index]


def test_the_rate_is_written_every_ten_steps(network: DeepLabV2) -> None:
    phase = the_phase(network)
    base = phase.optimizer().param_groups[0]["lr"]  # type: ignore[union-attr]
    rates = [base * phase.schedule(int(n) - 1) for n in INPUTS["lr_iterations"]]
    assert_close_in_norm(rates, OUTPUTS["lr_1x"], FLOAT64)
