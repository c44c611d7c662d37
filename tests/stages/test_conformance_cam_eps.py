"""EPS on ResNet-38 against the outputs of the published code (case cam-eps), all of them.

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

from stages.cam.eps import RECIPES, Classifier, Method, probabilities
from stages.runtime.method import Phase

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-eps")
METHOD = Method(replace(RECIPES["published-voc"], dropout=(0.0, 0.0)), Path(), 20)


def the_phase(network: Classifier, method: Method = METHOD) -> Phase:
    data = SimpleNamespace(image_ids=range(10_582))
    (phase,) = method.phases(network, data)  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> Classifier:
    network = METHOD.build()
    network.load_published(checkpoint("cam-eps"))
    return network.train()


@pytest.fixture(scope="module")
def run(network: Classifier) -> dict[str, Tensor]:
    """Everything of one forward pass, under the names of the case."""
    batch = {name: torch.from_numpy(INPUTS[name]) for name in ("image", "label")}
    batch["saliency"] = torch.zeros(2, 1, 65, 81)
    with torch.inference_mode(), resnet38_outputs(network.backbone) as features:
        terms = the_phase(network).loss({"views": batch}, 0)
        logits, maps = network(batch["image"]), network.maps(batch["image"])
    found = {"logits": logits, "cam": maps, "cam_softmax": probabilities(maps)}
    return {**features, **found, "loss_cls": terms["classification"]}


@pytest.mark.parametrize("name", compared(OUTPUTS, {}))
def test_features_logits_maps_and_loss(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)


def test_parameters_and_what_of_them_is_frozen(network: Classifier) -> None:
    assert sum(p.numel() for p in network.parameters()) == 105_156_928
    assert sum(p.numel() for p in network.parameters() if not p.requires_grad) == 868_672


@pytest.mark.parametrize(
    ("recipe", "steps", "batch"), [("published-voc", 20_000, 8), ("published-coco", 256_500, 16)]
)
def test_the_published_training(network: Classifier, recipe: str, steps: int, batch: int) -> None:
    phase = the_phase(network, Method(RECIPES[recipe], Path(), 20))
    backbone, classifier = phase.optimizer().param_groups  # type: ignore[union-attr]
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert {id(p) for group in (backbone, classifier) for p in group["params"]} == trained
    assert (backbone["lr"], classifier["lr"]) == (0.01, pytest.approx(0.1))
    assert classifier["params"] == [network.classifier.weight]
    for group in (backbone, classifier):
        assert (group["momentum"], group["weight_decay"]) == (0.0005, 5e-4)
        assert not group["nesterov"]
    assert phase.steps == steps
    assert phase.schedule(0) == 1
    assert phase.schedule(steps // 4) == pytest.approx(0.75**0.9)
    source = phase.sources["views"]  # type: ignore[index]
    assert (source.batch_size, source.shuffle, source.drop_last) == (batch, True, True)
