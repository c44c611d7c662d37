"""What the reference case does not show; the case itself: test_conformance_sod_pfan.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from torch import nn
from torch.nn import functional as F

from stages.runtime.method import Image
from stages.sod.pfan import (
    RECIPES,
    Method,
    Pairs,
    edge_loss,
    edges,
    saliency_loss,
    to_input,
)
from wsssbed_hub.utils.errors import UsageError

PORT, KERAS = RECIPES["published"], RECIPES["keras"]
SMALL = replace(RECIPES["shapes"], width=4, size=32)
PLAIN = replace(PORT, crop=1000, flip=0.0, turn=0, contrast=(1.0, 1.0), brightness=(0, 0), size=32)


def dataset(height: int = 24, width: int = 40, images: int = 3) -> Any:
    """Images in which red counts the columns from 10, like the mask."""
    columns = np.broadcast_to(np.arange(10, 10 + width, dtype=np.uint8), (height, width))
    rgb = np.stack([columns, 100 + 0 * columns, 100 + 0 * columns], 2)
    return SimpleNamespace(
        image_ids=[f"image{n}" for n in range(images)],
        read_image=lambda image_id: rgb,
        read_mask=lambda image_id: columns,
    )


def levels(sample: dict[str, np.ndarray]) -> np.ndarray:
    """What the port's network gets, as values of 0..255."""
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (sample["image"] * std + mean) * 255


def test_pictures_are_padded_with_black_or_with_the_mean() -> None:
    rgb = np.full((16, 32, 3), 200, np.uint8)
    black = levels({"image": to_input(rgb, PLAIN)})
    assert_close_in_norm(black[:, 8:24], np.full((3, 16, 32), 200), FLOAT32)
    assert np.abs(black[:, :8]).max() < 1e-3
    mean = to_input(rgb, replace(KERAS, size=32))
    assert not mean[:, :8].any()
    assert_close_in_norm(mean[:, 20, 0], 200 - np.array([103.939, 116.779, 123.68]), FLOAT32)


def test_labels_are_masks_over_their_maximum() -> None:
    sample = Pairs(dataset(32, 32), PLAIN).sample(0, np.random.default_rng(0))
    assert_close_in_norm(sample["label"][0], levels(sample)[0] / 41, FLOAT32)
    empty = dataset()
    empty.read_mask = lambda image_id: np.zeros((24, 40), np.uint8)
    assert not Pairs(empty, PLAIN).sample(0, np.random.default_rng(0))["label"].any()


def test_image_and_mask_change_together() -> None:
    recipe = replace(PORT, contrast=(1.0, 1.0), brightness=(0, 0), size=64)
    data = dataset(64, 64)
    data.read_mask = lambda image_id: data.read_image(image_id)[..., 0]
    shapes, mirrored = set(), 0
    for seed in range(100):
        sample = Pairs(data, recipe).sample(1, np.random.default_rng(seed))
        red, label = levels(sample)[0], sample["label"][0]
        assert np.abs(red - label * red.max() / label.max()).max() < 1
        middle = red[24:40]
        mirrored += middle[:, 20].mean() > middle[:, 43].mean()
        shapes.add(round(float(label.sum())))
    assert len(shapes) > 50
    assert 35 <= mirrored <= 65  # 50 with a deviation of 5


def test_brightness_and_contrast_change_the_image_alone() -> None:
    recipe = replace(PLAIN, contrast=PORT.contrast, brightness=PORT.brightness)
    data, plain = dataset(32, 32), []
    for seed in range(60):
        sample = Pairs(data, recipe).sample(0, np.random.default_rng(seed))
        found = levels(sample)
        assert found.min() > -1e-3
        assert found.max() < 255 + 1e-3
        plain.append(found[1, 0, 0])
        assert_close_in_norm(sample["label"].max(), 1.0, FLOAT32)
    assert min(plain) < 55  # 100 * 0.5 - 20 is 30
    assert max(plain) > 145  # 100 * 1.5 + 19 is 169


def test_turning_cuts_corners_or_enlarges_the_canvas() -> None:
    white = dataset(64, 64)
    white.read_mask = lambda image_id: np.full((64, 64), 255, np.uint8)
    for canvas, whole in (("enlarged", True), ("same", False)):
        recipe = replace(PLAIN, turn=25, turned_canvas=canvas, size=64)  # type: ignore[arg-type]
        shares = [
            Pairs(white, recipe).sample(0, np.random.default_rng(n))["label"].mean()
            for n in range(20)
        ]
        assert (min(shares) < 0.7) == whole  # a square turned by 24 degrees fills 57 %


@pytest.mark.parametrize("size", [(33, 50), (1, 1), (64, 31)])
@pytest.mark.parametrize("padding", ["black", "mean"])
def test_any_image_gets_a_map_of_its_own_size(padding: Any, size: tuple[int, int]) -> None:
    method = Method(replace(SMALL, padding=padding), Path())
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    with torch.inference_mode():
        saliency = method.saliency(method.build().eval(), Image("any", rgb))
    assert (saliency.shape, saliency.dtype) == (size, np.uint8)


def test_maps_by_an_image_s_own_statistics_change_nothing_that_is_kept() -> None:
    method = Method(replace(SMALL, batch_norm="batch"), Path())
    network = method.build().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rgb = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    with torch.inference_mode():
        method.saliency(network, Image("any", rgb))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.numerical
def test_the_saliency_loss_from_logits_is_that_of_probabilities() -> None:
    logits = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    label = torch.rand(2, 1, 5, 6, dtype=torch.float64).round()
    both = [saliency_loss(logits, label, 1.12, epsilon) for epsilon in (1e-15, 0.0)]
    assert_close_in_norm(both[0], both[1], FLOAT64)
    weights = 1 + 0.12 * label
    expected = F.binary_cross_entropy(logits.sigmoid(), label, weights)
    assert_close_in_norm(both[0], expected, FLOAT64)


def test_edges_are_the_inner_side_of_borders() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., 2:6, 2:6] = 1
    found = edges(maps)[0, 0]
    assert (found > 0).nonzero().tolist() == [
        [y, x] for y in range(2, 6) for x in range(2, 6) if {y, x} & {2, 5}
    ]
    assert edges(torch.ones(1, 1, 4, 4))[0, 0, 0].min() > 0  # the border of the image is one


@pytest.mark.numerical
def test_what_a_missed_edge_costs() -> None:
    label = torch.zeros(1, 1, 8, 8)
    label[..., 4:, :] = 1
    flat = torch.full((1, 1, 8, 8), -200.0, requires_grad=True)  # a sigmoid of exactly 0
    missed = edges(label).mean()
    assert_close_in_norm(edge_loss(flat, label, 0.0) / missed, 100.0, FLOAT32)
    assert_close_in_norm(edge_loss(flat, label, 1e-7) / missed, 16.118, 1e-3)
    edge_loss(flat, label, 0.0).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_the_edge_loss_is_torch_s_cross_entropy_of_edges() -> None:
    logits, label = torch.randn(1, 1, 9, 9), torch.rand(1, 1, 9, 9).round()
    expected = F.binary_cross_entropy(edges(logits.sigmoid()), edges(label))
    assert_close_in_norm(edge_loss(logits, label, 0.0), expected, FLOAT32)


def test_the_authors_training() -> None:
    method = Method(replace(KERAS, width=4), Path())
    network = method.build()
    (phase,) = method.phases(network, dataset(images=300))
    assert phase.steps == 50 * 300 // 15
    rates = [phase.schedule(20 * epoch) for epoch in range(50)]
    assert rates == [0.5 ** np.floor((1 + epoch) / 6.25) for epoch in range(50)]
    optimizer = phase.optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-2, 0.9, 0)
    assert network.backbone.dropout == network.dropout == 0.3
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert not network.low[0].conv.bias.any()  # type: ignore[union-attr,operator]
    assert network.high.conv.kernel_size == (1, 1)


def test_dropout_after_the_last_convolution_too() -> None:
    network = Method(replace(SMALL, dropout=0.9), Path()).build()
    plain = Method(SMALL, Path()).build()
    plain.load_state_dict(network.state_dict())
    network.backbone.dropout = 0.0
    image = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network.train()(image).logits, plain.train()(image).logits)
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(image).logits, plain.eval()(image).logits)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 16},
        {"width": 5},
        {"crop": 1},
        {"turn": 181},
        {"contrast": (2.0, 1.0)},
        {"brightness": (1, 0)},
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        replace(SMALL, **change)
