"""What the reference case does not show; the case itself: test_conformance_sod_dss.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from torch import Tensor
from torch.nn import functional as F

from stages.runtime.method import Image
from stages.sod._dss_merging import (
    ORIGINS,
    STRIDES,
    PaddedEnlarging,
    crop_offset,
    enlarge_and_crop,
)
from stages.sod.dss import (
    RECIPES,
    CaffeDss,
    Dss,
    Method,
    Pairs,
    deep_supervision,
    stretched,
)
from wsssbed_hub.utils.errors import UsageError

SMALL = replace(RECIPES["shapes"], width=2, size=32)
CAFFE = replace(RECIPES["caffe"], width=2)


def dataset(height: int = 9, width: int = 14, images: int = 3) -> Any:
    """Images in which red counts the columns from 10, like the mask."""
    columns = np.broadcast_to(np.arange(10, 10 + width, dtype=np.uint8), (height, width))
    rgb = np.stack([columns, 0 * columns, 0 * columns], 2)
    return SimpleNamespace(
        image_ids=[f"image{n}" for n in range(images)],
        read_image=lambda image_id: rgb,
        read_mask=lambda image_id: 10 * columns,
    )


def random_image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_samples_of_the_published_recipe_are_squares_with_rounded_labels() -> None:
    sample = Pairs(dataset(), RECIPES["published"]).sample(0, np.random.default_rng(0))
    assert sample["image"].shape == (3, 256, 256)
    assert sample["label"].shape == (1, 256, 256)
    assert set(np.unique(sample["label"])) == {0, 1}


def test_the_authors_samples_have_their_own_size_and_grey_labels() -> None:
    pairs = Pairs(dataset(), RECIPES["caffe"])
    mirrored = 0
    for seed in range(200):
        sample = pairs.sample(1, np.random.default_rng(seed))
        assert sample["image"].shape == (3, 9, 14)
        red = sample["image"][2] + 122.67892
        np.testing.assert_array_equal(np.rint(red * 10), np.rint(sample["label"][0] * 255))
        mirrored += red[0, 0] > red[0, -1]
    assert 70 <= mirrored <= 130  # 100 with a deviation of 7


@pytest.mark.parametrize("recipe", [SMALL, CAFFE], ids=["port", "caffe"])
@pytest.mark.parametrize("size", [(33, 50), (1, 1), (64, 31)])
def test_any_image_gets_a_map_of_its_own_size(recipe: Any, size: tuple[int, int]) -> None:
    method = Method(replace(recipe, size=0), Path())
    network = method.build().eval()
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    with torch.inference_mode():
        assert network(random_image(*size)).shape == (1, 7, *size)
        saliency = method.saliency(network, Image("any", rgb))
    assert (saliency.shape, saliency.dtype) == (size, np.uint8)


def reached(network: Dss, side: int) -> set[int]:
    """The sides whose raw maps change the logits of ``side``, from 0."""
    raw = [torch.rand(1, 1, -(-64 // s), -(-64 // s), requires_grad=True) for s in STRIDES]
    merged = network._merged(raw, (64, 64))[side]
    gradients = torch.autograd.grad(merged.sum(), raw, allow_unused=True)
    return {n for n, g in enumerate(gradients) if g is not None and g.any()}


def test_short_connections_of_both_networks() -> None:
    for network in (Dss(2), CaffeDss(2)):
        found = [reached(network, side) for side in range(6)]
        assert found == [{0, 2, 3, 4, 5}, {1, 2, 3, 4, 5}, {2, 4, 5}, {3, 4, 5}, {4}, {5}]


def test_the_authors_network_hands_on_merged_maps() -> None:
    """Side 1 sees side 5 through the merging of side 3 even where it does not see it itself."""
    for kind, through in ((Dss, False), (CaffeDss, True)):
        network = kind(2)
        conv = network.merges[0].conv
        with torch.no_grad():
            conv.weight.zero_()  # type: ignore[operator,union-attr]
            conv.weight[0, 1] = 1  # type: ignore[index,union-attr]
        assert (4 in reached(network, 0)) == through


@pytest.mark.numerical
def test_bilinear_enlarging_is_that_of_the_padded_one_inside() -> None:
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    padded = PaddedEnlarging(4).double()
    padded.draw_bilinear()
    expected = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    cropped = enlarge_and_crop(x, 4, 2, (20, 24))
    for enlarged in (padded(x), cropped):  # at the border they take zeros in
        assert_close_in_norm(enlarged[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], FLOAT64)


@pytest.mark.parametrize("side", range(6))
def test_crops_put_maps_where_their_receptive_fields_are(side: int) -> None:
    """A map that says where its cells lie in the image says, enlarged, where the pixels are."""
    places = ORIGINS[side] + STRIDES[side] * torch.arange(9.0)
    x, size = places.expand(1, 1, 9, 9), 4 * STRIDES[side]
    offset = crop_offset(STRIDES[side], ORIGINS[side], 1, 0.0)
    enlarged = enlarge_and_crop(x, STRIDES[side], offset, (size, size))[0, 0, -1]
    inside = slice(2 * STRIDES[side], None)  # at the border zeros are taken in
    assert_close_in_norm(enlarged[inside], torch.arange(float(size))[inside], FLOAT32)


@pytest.mark.parametrize("other", [2, 3, 4, 5])
def test_crops_between_sides_are_at_most_half_a_cell_off(other: int) -> None:
    places = ORIGINS[other] + STRIDES[other] * torch.arange(9.0)
    factor = STRIDES[other] // STRIDES[1]
    offset = crop_offset(factor, ORIGINS[other], STRIDES[1], ORIGINS[1])
    cells = enlarge_and_crop(places.expand(1, 1, 9, 9), factor, offset, (4 * factor, 4 * factor))
    wanted = ORIGINS[1] + STRIDES[1] * torch.arange(4.0 * factor)
    inside = slice(2 * factor, None)  # at the border zeros are taken in
    assert (cells[0, 0, -1] - wanted)[inside].abs().max() <= STRIDES[1] / 2


def test_origins_are_those_of_the_layers() -> None:
    """A pixel in the middle of a cell's receptive field moves that cell most, by symmetry."""
    network = CaffeDss(2)
    for parameter in network.backbone.parameters():
        parameter.data.abs_()  # so that nothing cancels and every path counts
    image = torch.ones(1, 3, 96, 96, requires_grad=True)
    features = network.backbone(image)
    for side, tap in enumerate(("conv1_2", "conv2_2")):
        (gradient,) = torch.autograd.grad(
            features[tap][0, :, 20, 20].sum(), image, retain_graph=True
        )
        rows = gradient[0].sum((0, 2)).nonzero()[:, 0].double()
        middle = (rows.min() + rows.max()) / 2
        assert abs(middle - (ORIGINS[side] + 20 * STRIDES[side])) <= 0.5 * STRIDES[side]


def test_losses_of_both_programs() -> None:
    logits = torch.randn(2, 7, 4, 5)
    label = torch.rand(2, 1, 4, 5).round()
    mean = F.binary_cross_entropy(logits.sigmoid(), label.expand_as(logits)) * 7
    assert_close_in_norm(deep_supervision(logits, label, pixel_sum=False), mean, FLOAT32)
    assert_close_in_norm(deep_supervision(logits, label, pixel_sum=True), mean * 20, FLOAT32)


def test_maps_are_stretched_to_the_whole_range() -> None:
    maps = stretched(torch.tensor([[[[0.3, 0.5, 0.4]]]]))
    assert_close_in_norm(maps, [[[[0, 1, 0.5]]]], FLOAT32)


def test_the_authors_training() -> None:
    method = Method(CAFFE, Path())
    network = method.build()
    (phase,) = method.phases(network, dataset(images=2500))
    assert (phase.steps, phase.accumulate, phase.clip_norm) == (12_000, 10, None)
    assert [phase.schedule(step) for step in (0, 7499, 7500, 11_999)] == [1, 1, 0.1, 0.1]
    optimizer = phase.optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    names = {id(p): name for name, p in network.named_parameters()}
    rates: dict[tuple[float, float], set[str]] = {}
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.9
        key = (round(group["lr"] * 1e8, 6), group["weight_decay"])
        rates.setdefault(key, set()).update(names[id(p)] for p in group["params"])
    assert rates.keys() == {(1, 5e-4), (2, 0), (0.1, 5e-4), (0.2, 0)}
    assert {"backbone.features.0.weight", "sides.3.2.weight"} <= rates[1, 5e-4]
    assert rates[0.1, 5e-4] == {
        "fusion",
        *(f"sides.{n}.4.weight" for n in range(6)),
        *(f"merges.{n}.conv.weight" for n in range(4)),
    }
    assert {"fusion_bias", "sides.0.4.bias", "merges.3.conv.bias"} <= rates[0.2, 0]


@pytest.mark.parametrize(("recipe", "std"), [("published", None), ("caffe", 0.01)])
def test_new_convolutions_are_drawn_as_published(recipe: str, std: float | None) -> None:
    torch.manual_seed(0)
    network = Method(replace(RECIPES[recipe], width=16), Path()).build()
    weight = network.sides[3][2].weight  # type: ignore[index]
    fans = 2 * 25 * weight.shape[0]
    assert weight.std().item() == pytest.approx(std or (2 / fans) ** 0.5, rel=0.03)
    assert not network.sides[3][2].bias.any()  # type: ignore[index]
    assert_close_in_norm(network.fusion, [1 / 6] * 6, FLOAT32)


@pytest.mark.parametrize("change", [{"averaged": (8,)}, {"averaged": ()}, {"size": -1}])
def test_a_recipe_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        replace(SMALL, **change)
