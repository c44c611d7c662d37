"""OAA against the outputs of the published code (case cam-oaa), all of them.

The attention network and the integral network are one network, and have one checkpoint here.
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
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.cam._oaa import attention_maps
from stages.cam.oaa import RECIPES, ClassMaps, Method, scores_of
from stages.runtime.method import Phase

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-oaa")
IMAGES, CLASSES = INPUTS["label"].shape
PUBLISHED = Method(RECIPES["published"], Path(), CLASSES)
LEFT_OUT = {"test_maps": "in whole levels; in a test of its own"}


def the_phases(network: ClassMaps) -> list[Phase]:
    ids = [f"image{n}" for n in range(10_582)]
    return list(PUBLISHED.phases(network, SimpleNamespace(image_ids=ids)))  # type: ignore[arg-type]


def batch(**fields: Any) -> dict[str, dict[str, Tensor]]:
    place = {"index": torch.arange(IMAGES), "epoch": torch.zeros(IMAGES, dtype=torch.int64)}
    return {"views": {"image": torch.from_numpy(INPUTS["x"]), **place, **fields}}


@pytest.fixture(scope="module")
def network() -> ClassMaps:
    network = PUBLISHED.build()
    network.load_published(checkpoint("cam-oaa"))
    return network


@pytest.fixture(scope="module")
def run(network: ClassMaps) -> dict[str, Tensor]:
    """Everything of one forward pass and of the losses, under the names of the case."""
    attention, integral = the_phases(network)
    target = torch.from_numpy(INPUTS["integral_target"])
    modules = {"trunk": network.backbone.trunk, "cam": network}
    with outputs_of(modules) as found:
        first = attention.loss(batch(label=torch.from_numpy(INPUTS["label"])), 0)
        empty = integral.loss(batch(target=torch.zeros_like(target)), 0)
        second = integral.loss(batch(target=target), 0)
    (gradient,) = torch.autograd.grad(sum(second.values()), found["cam"])  # type: ignore[arg-type]
    scores, scale = scores_of(found["cam"]), PUBLISHED.recipe.integral_scale
    return {
        "feature": found["trunk"]["conv5_3"][:1],
        "cam": found["cam"],
        "scores": scores,
        "probabilities": scores.sigmoid(),
        "loss_classification": first["classification"],
        "loss_integral": second["integral"] / scale,
        "loss_integral_empty_target": empty["integral"] / scale,
        "grad_integral": gradient / scale,
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_features_maps_scores_and_losses(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)


def test_the_maps_at_test_time(run: dict[str, Tensor]) -> None:
    present = np.flatnonzero(INPUTS["label"][0])
    maps = run["cam"].detach().numpy()[0, present]
    found = attention_maps(maps, tuple(INPUTS["image_size"].tolist()))
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - OUTPUTS["test_maps"]).max() <= 1


def test_a_wrapped_checkpoint_is_the_same(network: ClassMaps) -> None:
    state = {f"module.{key}": value for key, value in checkpoint("cam-oaa").items()}
    other = PUBLISHED.build()
    other.load_published(state)
    assert torch.equal(other.classifier.weight, network.classifier.weight)
    assert torch.equal(other.backbone.extra[4].weight, network.backbone.extra[4].weight)


def test_the_published_training(network: ClassMaps) -> None:
    phases = the_phases(network)
    assert [phase.name for phase in phases] == ["attention network", "integral network"]
    for phase in phases:
        groups = phase.optimizer().param_groups  # type: ignore[union-attr]
        assert [group["lr"] for group in groups] == pytest.approx([1e-3, 2e-3, 1e-2, 2e-2])
        assert [len(group["params"]) for group in groups] == [13, 13, 4, 4]
        assert {id(p) for group in groups for p in group["params"]} == {
            id(p) for p in network.parameters()
        }
        for group in groups:
            assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
            assert group["nesterov"]
        assert phase.steps * 5 == 15 * 10_582
        at = [phase.schedule(step) for step in (0, 10 * 10_582 // 5 - 1, 10 * 10_582 // 5)]
        assert at == [1, 1, pytest.approx(0.1)]
        source = phase.sources["views"]  # type: ignore[index]
        assert (source.batch_size, phase.accumulate, source.shuffle) == (5, 5, False)


def test_the_classifier_s_maps_alone_need_one_network(network: ClassMaps) -> None:
    method = Method(replace(PUBLISHED.recipe, maps="attention"), Path(), CLASSES)
    data: Any = SimpleNamespace(image_ids=range(10))
    assert [phase.name for phase in method.phases(network, data)] == ["attention network"]
