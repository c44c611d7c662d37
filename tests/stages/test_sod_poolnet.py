"""What the reference case does not show; the case itself: test_conformance_sod_poolnet.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint

from stages.runtime.method import Image
from stages.sod.poolnet import MEAN_BGR, MIN_SIDE, RECIPES, Method, Pairs, PoolNet, saliency_loss
from wsssbed_hub.utils.errors import HubError

SMALL = replace(RECIPES["shapes"], width=4)


def dataset(height: int = 9, width: int = 14, images: int = 3) -> Any:
    """Images in which red counts the columns from 10, like the mask."""
    columns = np.broadcast_to(np.arange(10, 10 + width, dtype=np.uint8), (height, width))
    rgb = np.stack([columns, 0 * columns, 0 * columns], 2)
    return SimpleNamespace(
        name="few",
        image_ids=[f"image{n}" for n in range(images)],
        read_image=lambda image_id: rgb,
        read_mask=lambda image_id: columns,
    )


def test_image_and_mask_are_mirrored_together_half_of_the_time() -> None:
    pairs = Pairs(dataset(), flip=0.5)
    mirrored = 0
    for seed in range(200):
        sample = pairs.sample(1, np.random.default_rng(seed))
        red = sample["image"][2] + MEAN_BGR[2]
        np.testing.assert_array_equal(np.rint(red), np.rint(sample["label"][0] * 255))
        assert sample["label"].shape == (1, 9, 14)
        mirrored += red[0, 0] > red[0, -1]
    assert 70 <= mirrored <= 130  # 100 with a deviation of 7


def test_labels_keep_their_grey_levels() -> None:
    sample = Pairs(dataset(), flip=0.0).sample(0, np.random.default_rng(0))
    # One division, which every processor rounds alike.
    np.testing.assert_array_equal(sample["label"][0, 0], (np.arange(10, 24) / 255).astype("f4"))


@pytest.mark.parametrize("size", [(MIN_SIDE - 1, 130), (130, MIN_SIDE - 1), (20, 30), (1, 1)])
def test_small_images_get_a_map_of_their_own_size(size: tuple[int, int]) -> None:
    method = Method(SMALL, Path())
    network = method.build().eval()
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    with torch.inference_mode():
        saliency = method.saliency(network, Image("any", rgb))
    assert (saliency.shape, saliency.dtype) == (size, np.uint8)


def test_the_shortest_side_without_padding_is_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stages.sod.poolnet.MIN_SIDE", 0)
    network = PoolNet(4, (1, 1, 1, 1))
    network(torch.zeros(1, 3, MIN_SIDE, MIN_SIDE))
    with pytest.raises(RuntimeError, match="too small"):
        network(torch.zeros(1, 3, MIN_SIDE - 1, MIN_SIDE))


def test_large_images_are_not_padded() -> None:
    torch.manual_seed(0)
    network = Method(SMALL, Path()).build().eval()
    image = torch.randn(1, 3, MIN_SIDE, 120)
    with torch.inference_mode():
        levels = network.backbone(image)
        sizes = [tuple(level.shape[2:]) for level in levels]
        assert network(image).shape == (1, 1, MIN_SIDE, 120)
    assert sizes[-1] == (8, 8)


@pytest.mark.numerical
def test_ten_passes_of_one_image_are_one_pass_of_ten() -> None:
    logits, label = torch.randn(10, 1, 6, 5), torch.rand(10, 1, 6, 5).round()
    together = saliency_loss(logits, label)
    one_by_one = sum(saliency_loss(logits[n : n + 1], label[n : n + 1]) for n in range(10)) / 10
    assert_close_in_norm(together, one_by_one, FLOAT32)


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(0, 24, (16, 8)), (30, 24, (20, 10)), (0, 3, (3, 0))]
)
def test_the_rate_drops_after_16_epochs_or_two_thirds_of_the_steps(
    steps: int, epochs: int, expected: tuple[int, int]
) -> None:
    recipe = replace(RECIPES["published"], steps=steps, epochs=epochs)
    phases = Method(recipe, Path()).phases(PoolNet(4, (1, 1, 1, 1)), dataset(images=10))
    assert tuple(phase.steps for phase in phases) == expected


def test_the_initial_resnet_fills_the_backbone_alone() -> None:
    network = Method(RECIPES["published"], Path()).build()
    theirs = checkpoint("sod-poolnet")
    prefix = "base.resnet."
    resnet = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    resnet |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    head = network.score.weight.clone()
    Method(RECIPES["published"], Path()).load_initial(network, resnet, "backbone")
    assert torch.equal(network.backbone.layer4[2].conv2.weight, resnet["layer4.2.conv2.weight"])
    assert torch.equal(network.score.weight, head)
    del resnet["layer4.2.conv2.weight"]
    with pytest.raises(HubError, match=r"1 missing: layer4\.2\.conv2\.weight"):
        Method(RECIPES["published"], Path()).load_initial(network, resnet, "backbone")


def test_new_convolutions_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    network = Method(RECIPES["published"], Path()).build()
    for weight in (network.guides[0].weight, network.backbone.layer3[1].conv2.weight):
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert network.score.bias.item() == 0
