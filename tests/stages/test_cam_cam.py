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
from torch import nn

from stages.cam.cam import RECIPES, Classifier, Method, Views
from stages.runtime.method import Image
from wsssbed_hub.utils.errors import HubError

LABELS = {"a": (0,), "b": (1, 3), "c": ()}


def dataset(height: int = 60, width: int = 90) -> Any:
    rgb = np.full((height, width, 3), 200, np.uint8)
    rgb[:, : width // 2] = 30  # the left half is dark
    return SimpleNamespace(
        image_ids=list(LABELS),
        num_classes=4,
        read_image=lambda image_id: rgb,
        image_labels=LABELS.__getitem__,
    )


def views(**changes: Any) -> Views:
    return Views(dataset(), replace(RECIPES["shapes"], **changes))


@pytest.mark.parametrize(("index", "hot"), [(0, [1, 0, 0, 0]), (1, [0, 1, 0, 1]), (2, [0] * 4)])
def test_labels_are_multi_hot(index: int, hot: list[int]) -> None:
    label = views().sample(index, np.random.default_rng(0))["label"]
    assert label.dtype == np.float32
    assert label.tolist() == hot


def test_the_long_side_takes_every_length_of_its_range() -> None:
    lengths = set()
    source = views(long_side=(40, 43), crop=64, jitter=(0.0, 0.0, 0.0, 0.0))
    for seed in range(80):
        image = source.sample(0, np.random.default_rng(seed))["image"]
        assert image.shape == (3, 64, 64)
        lengths.add(int((image[0] != 0).any(0).sum()))  # all but the padding, which is zero
    assert lengths == {40, 41, 42, 43}


def test_mirrored_half_of_the_time() -> None:
    source = views(long_side=(90, 90), crop=90)
    dark_left = 0
    for seed in range(200):
        image = source.sample(0, np.random.default_rng(seed))["image"]
        row = image.mean(0)[image.any(0).all(1)].mean(0)
        dark_left += row[:40].mean() < row[50:].mean()
    assert 70 <= dark_left <= 130  # 100 with a deviation of 7


def test_padding_is_the_mean_colour() -> None:
    """Zero after normalisation: the picture is cropped when it is a network's input already."""
    image = views(long_side=(40, 40), crop=64).sample(0, np.random.default_rng(0))["image"]
    padded = ~image.any(0)
    assert padded.sum() == 64 * 64 - 40 * round(60 * 40 / 90)


def test_the_imagenet_file_fills_the_backbone_alone() -> None:
    method = Method(replace(RECIPES["published"], width=2, blocks=(2, 2, 2, 2)), Path(), 4)
    network = method.build()
    published = {"conv1a.weight": network.backbone.stem.weight + 1}
    published |= {
        in_published_words(key): value + 1
        for key, value in network.backbone.state_dict().items()
        if not key.startswith("stem")
    }
    published["fc1000.weight"] = torch.zeros(1000, 128)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    method.load_initial(network, published, "backbone")
    for key, value in network.state_dict().items():
        expected = before[key] + key.startswith("backbone.")
        assert torch.equal(value, expected)
    del published["b5_1.conv_branch2a.weight"]
    with pytest.raises(HubError, match=r"missing: stage5\.1\.conv1\.weight"):
        method.load_initial(network, published, "backbone")


def in_published_words(key: str) -> str:
    if key.startswith("norm."):
        return "bn7." + key.removeprefix("norm.")
    stage, block, module, last = key.split(".")
    number = stage.removeprefix("stage")
    name = f"b{number}" if block == "0" else f"b{number}_{block}"
    branch = {"1": "2a", "2": "2b1", "3": "2b2"}
    if module == "shortcut":
        return f"{name}.conv_branch1.{last}"
    return f"{name}.{module[:-1]}_branch{branch[module[-1]]}.{last}"


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
    data = dataset()
    rgb = data.read_image("a")
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
