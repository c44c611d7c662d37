"""CAM on ResNet-38 against the outputs of the published code (case cam-cam), all of them.

The case is in eval mode. Here the network is in train mode with its dropout left out, which is the
same as long as batch norm is frozen. The tolerance is the case's: 1e-4 relative.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import conformance
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.cam.cam import RECIPES, Classifier, Method
from stages.runtime.method import Phase

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-cam")
METHOD = Method(replace(RECIPES["published"], dropout=(0.0, 0.0, 0.0)), Path(), 20)


def the_phase(network: Classifier) -> Phase:
    data = SimpleNamespace(image_ids=range(10_582))
    (phase,) = METHOD.phases(network, data)  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> Classifier:
    network = METHOD.build()
    network.load_published(checkpoint("cam-cam"))
    return network.train()


@pytest.fixture(scope="module")
def run(network: Classifier) -> dict[str, Tensor]:
    """Everything of one forward pass, under the names of the case."""
    backbone = network.backbone
    modules = {
        "mean.b2_2": backbone.stage2,
        "mean.b3_2": backbone.stage3,
        "mean.b4_5": backbone.stage4,
        "mean.b5_2": backbone.stage5[2],
        "shortcut": backbone.stage6[0].shortcut,
        "branch": backbone.stage6[0].conv3,
        "mean.b7": backbone.stage7,
        "features": backbone,
        "logits": network,
    }
    batch = {name: torch.from_numpy(INPUTS[name]) for name in ("image", "label")}
    with torch.inference_mode(), outputs_of(modules) as found:
        terms = the_phase(network).loss({"views": batch}, 0)
        maps = network.maps(batch["image"])
    features = found["features"]
    found["mean.b6"] = found["shortcut"] + found["branch"]
    means = {name: value.mean((2, 3)) for name, value in found.items() if "mean." in name}
    return {
        **means,
        "conv4": features.conv4,
        "conv5_mean": features.conv5.mean((2, 3)),
        "conv6_mean": features.conv6.mean((2, 3)),
        "logits": found["logits"],
        "cam": maps,
        "loss_cls": sum(terms.values()),
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, {}))
def test_features_logits_maps_and_loss(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)


def test_parameters_and_what_of_them_is_frozen(network: Classifier) -> None:
    assert sum(p.numel() for p in network.parameters()) == 105_152_832
    assert sum(p.numel() for p in network.parameters() if not p.requires_grad) == 868_672


def test_the_published_training(network: Classifier) -> None:
    phase = the_phase(network)
    backbone, classifier = phase.optimizer().param_groups  # type: ignore[union-attr]
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert {id(p) for group in (backbone, classifier) for p in group["params"]} == trained
    assert (backbone["lr"], classifier["lr"]) == (0.01, pytest.approx(0.1))
    assert classifier["params"] == [network.classifier.weight]
    for group in (backbone, classifier):
        assert (group["momentum"], group["weight_decay"]) == (0.0005, 5e-4)
        assert not group["nesterov"]
    assert phase.steps == 20_000
    assert phase.schedule(0) == 1
    assert phase.schedule(5_000) == pytest.approx(0.75**0.9)
    source = phase.sources["views"]  # type: ignore[index]
    assert (source.batch_size, source.shuffle, source.drop_last) == (8, True, True)
