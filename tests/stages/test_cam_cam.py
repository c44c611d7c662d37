"""What the reference cases do not show; those are in test_conformance_cam_*.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from references import resnet38_published_name
from torch import nn

from stages.cam.cam import RECIPES, Classifier, Method
from stages.runtime.method import Image
from wsssbed_hub.utils.errors import HubError


def test_the_imagenet_file_fills_the_backbone_alone() -> None:
    method = Method(replace(RECIPES["published"], width=2, blocks=(2, 2, 2, 2)), Path(), 4)
    network = method.build()
    state = network.backbone.state_dict()
    published = {resnet38_published_name(key): value + 1 for key, value in state.items()}
    published["fc1000.weight"] = torch.zeros(1000, 128)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    method.load_initial(network, published, "backbone")
    for key, value in network.state_dict().items():
        expected = before[key] + key.startswith("backbone.")
        assert torch.equal(value, expected)
    del published["b5_1.conv_branch2a.weight"]
    with pytest.raises(HubError, match=r"missing: stage5\.1\.conv1\.weight"):
        method.load_initial(network, published, "backbone")


def test_timm_has_no_resnet_38() -> None:
    with pytest.raises(HubError, match="--init FILE"):
        Method(RECIPES["published"], Path(), 20).timm_weights("backbone")


def test_dropout_is_by_channel_and_in_three_places() -> None:
    network = Classifier(4, width=2, blocks=(1, 1, 1, 1))
    rates = [(m.p, type(m)) for m in network.modules() if isinstance(m, nn.Dropout2d)]
    assert sorted(rates, key=str) == [(0.3, nn.Dropout2d), (0.5, nn.Dropout2d), (0.5, nn.Dropout2d)]


def test_maps_are_those_of_the_classes_that_were_asked_for() -> None:
    torch.manual_seed(0)
    method = Method(replace(RECIPES["shapes"], width=4), Path(), 4)
    network = method.build().eval()
    data: Any = SimpleNamespace()
    rgb = np.full((60, 90, 3), 200, np.uint8)
    rgb[:, :45] = 30
    with torch.inference_mode():
        both = method.activations(network, Image("a", rgb, np.array([1, 3])), data)
        one = method.activations(network, Image("a", rgb, np.array([3])), data)
    assert (both.shape, both.dtype) == ((2, 60, 90), np.uint8)
    np.testing.assert_array_equal(both[1:], one)


def test_the_scales_of_the_published_recipe_are_those_of_the_case() -> None:
    inputs, _ = conformance.load("cam-inference")
    assert {f"scale_{scale}" for scale in RECIPES["published"].scales} == {
        name for name in inputs if name.startswith("scale_") and "flip" not in name
    }
