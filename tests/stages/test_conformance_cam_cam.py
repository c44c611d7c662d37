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
from references import checkpoint, compared, resnet38_outputs
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
    batch = {name: torch.from_numpy(INPUTS[name]) for name in ("image", "label")}
    with torch.inference_mode(), resnet38_outputs(network.backbone) as features:
        terms = the_phase(network).loss({"views": batch}, 0)
        logits, maps = network(batch["image"]), network.maps(batch["image"])
    return {**features, "logits": logits, "cam": maps, "loss_cls": sum(terms.values())}


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
