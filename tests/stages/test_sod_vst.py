"""What the reference case does not show; the case itself: test_conformance_sod_vst.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from PIL import Image as PilImage
from torch import Tensor

from stages.backbones.t2t_vit import T2TViT
from stages.ops.images import MEAN_RGB, STD_RGB
from stages.runtime.method import Image
from stages.runtime.weight_files import read_tensors
from stages.sod.vst import RECIPES, STRIDES, TASKS, Crops, Method, contours, level_losses
from wsssbed_hub.utils.errors import HubError, UsageError

SMALL = replace(RECIPES["shapes"], size=32, scaled=40, width=12, token_width=4, features=2)


def dataset(mask: np.ndarray, images: int = 10) -> Any:
    """Images that are red where the mask is bright."""
    rgb = np.stack([mask, 0 * mask, 0 * mask], 2)
    return SimpleNamespace(
        image_ids=[f"image{n}" for n in range(images)],
        read_image=lambda image_id: rgb,
        read_mask=lambda image_id: mask,
    )


def test_contours_lie_on_both_sides_of_an_edge() -> None:
    mask = np.zeros((7, 8), np.uint8)
    mask[2:5, 3:6] = 255
    expected = """
        . . . . . . . .
        . . . # # # . .
        . . # # # # # .
        . . # # . # # .
        . . # # # # # .
        . . . # # # . .
        . . . . . . . .
    """
    found = contours(mask)
    assert found.dtype == np.uint8
    drawn = [["#" if value == 255 else "." for value in row] for row in found.tolist()]
    assert drawn == [line.split() for line in expected.split("\n") if line.strip()]


@pytest.mark.parametrize("size", [(30, 41), (2, 2), (9, 2)])
def test_contours_are_where_the_gradient_of_the_binary_mask_is(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    rows, columns = np.gradient((mask > 128).astype(np.float64))
    expected = np.where(rows**2 + columns**2 > 0, 255, 0)
    np.testing.assert_array_equal(contours(mask), expected)


@pytest.mark.parametrize(("grey", "edge"), [(128, 0), (129, 255)])
def test_contours_are_of_what_is_brighter_than_128(grey: int, edge: int) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[:, 2:] = grey
    assert contours(mask).max() == edge


def test_contours_reach_the_border_and_need_no_neighbour() -> None:
    half = np.zeros((1, 4), np.uint8)
    half[0, 1:] = 255
    assert contours(half).tolist() == [[255, 255, 0, 0]]
    assert not contours(np.full((3, 5), 255, np.uint8)).any()
    assert not contours(np.full((1, 1), 255, np.uint8)).any()


def test_image_mask_and_contours_are_cropped_and_mirrored_together() -> None:
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 10:50] = 255
    recipe = replace(SMALL, size=64, scaled=80)
    crops = Crops(dataset(mask), recipe)
    mirrored, places = 0, set()
    for seed in range(200):
        sample = crops.sample(3, np.random.default_rng(seed))
        saliency, contour = sample["saliency"][0], sample["contour"][0]
        assert sample["saliency"].shape == sample["contour"].shape == (1, 64, 64)
        assert sample["image"].shape == (3, 64, 64)
        red = sample["image"][0] * STD_RGB[0] + MEAN_RGB[0]
        assert ((red > 0.5) != (saliency > 0.5)).mean() < 0.02  # nearest and bilinear at edges
        grown = contours((saliency * 255).astype(np.uint8)) > 0
        assert (contour > 0.5).any()
        assert not (contour > 0.5)[~(grown | np.roll(grown, 1, 1) | np.roll(grown, -1, 1))].any()
        columns = np.flatnonzero(saliency.any(0))
        mirrored += columns.mean() > 32
        places.add(int(np.flatnonzero(saliency.any(1))[0]))
    assert 70 <= mirrored <= 130  # 100 with a deviation of 7
    assert places == set(range(4, 21))  # the 17 places of the crop


def test_labels_keep_their_grey_levels() -> None:
    columns = np.broadcast_to(np.arange(32, dtype=np.uint8), (32, 32))
    crops = Crops(dataset(columns), replace(SMALL, scaled=32, flip=0.0))
    sample = crops.sample(0, np.random.default_rng(0))
    # One division, which every processor rounds alike.
    np.testing.assert_array_equal(sample["saliency"][0, 0], (np.arange(32) / 255).astype("f4"))


@pytest.mark.numerical
def test_coarse_targets_are_pillows_nearest_pixels() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (96, 96)).astype(np.uint8)
    logits = [torch.from_numpy(rng.standard_normal((1, 1, 96 // s, 96 // s))) for s in STRIDES]
    losses = level_losses(logits, torch.from_numpy(target / 255.0)[None, None])
    for stride, found, loss in zip(STRIDES, logits, losses, strict=True):
        size = (96 // stride, 96 // stride)
        small = np.asarray(PilImage.fromarray(target).resize(size, PilImage.Resampling.NEAREST))
        x, y = found[0, 0].numpy(), small / 255
        expected = np.logaddexp(0, x) - x * y
        assert_close_in_norm(loss, expected.mean(), FLOAT32)


@pytest.mark.numerical
def test_each_level_has_its_weight() -> None:
    targets = torch.rand(2, 1, 32, 32).round()
    batch = {"image": torch.randn(2, 3, 32, 32), "saliency": targets, "contour": 1 - targets}
    mask = np.zeros((9, 9), np.uint8)

    def loss(weights: tuple[float, float, float, float]) -> dict[str, Tensor]:
        method = Method(replace(SMALL, loss_weights=weights), Path())
        torch.manual_seed(0)
        network = method.build().eval()
        (phase,) = method.phases(network, dataset(mask))
        with torch.inference_mode():
            return phase.loss({"crops": batch}, 0)

    ones = [loss(tuple(float(n == level) for n in range(4))) for level in range(4)]  # type: ignore[arg-type]
    all_together = loss((0.5, 0.5, 0.8, 1.0))
    for task in TASKS:
        expected = sum(w * one[task] for w, one in zip((0.5, 0.5, 0.8, 1.0), ones, strict=True))
        assert_close_in_norm(all_together[task], expected, FLOAT32)


@pytest.mark.parametrize("size", [(32, 32), (7, 90), (1, 1)])
def test_a_map_has_the_size_of_its_image(size: tuple[int, int]) -> None:
    method = Method(SMALL, Path())
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    with torch.inference_mode():
        saliency = method.saliency(method.build().eval(), Image("any", rgb))
    assert (saliency.shape, saliency.dtype) == (size, np.uint8)


def test_other_lengths_of_training_keep_the_shares_of_its_rates() -> None:
    method = Method(replace(RECIPES["published"], steps=100, width=12, depth=1), Path())
    mask = np.zeros((9, 9), np.uint8)
    (phase,) = method.phases(SimpleNamespace(), dataset(mask))  # type: ignore[arg-type]
    rates = [phase.schedule(step) for step in (49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 100, "scaled": 128}, "multiple of 16"),
        ({"size": 64, "scaled": 60}, "scaled=60"),
        ({"heads": 5}, "heads"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(SMALL, **changes)  # type: ignore[arg-type]


def published_backbone(network: T2TViT) -> dict[str, Tensor]:
    """The names of the T2T-ViT release for the tensors of a backbone without blocks."""
    names = {
        "class_token": "cls_token",
        "positions": "pos_embed",
        "project.": "tokens_to_token.project.",
        "norm.": "norm.",
    }
    for number in (0, 1):
        own, other = f"transformers.{number}.", f"tokens_to_token.attention{number + 1}."
        inner = (("norm.", "norm1."), ("qkv.", "attn.qkv."), ("proj.", "attn.proj."))
        layers = (("mlp.0.", "norm2."), ("mlp.1.", "mlp.fc1."), ("mlp.3.", "mlp.fc2."))
        names |= {own + ours: other + theirs for ours, theirs in (*inner, *layers)}
    state = {}
    for key in network.state_dict():
        ours = next(name for name in names if key.startswith(name))
        state[names[ours] + key.removeprefix(ours)] = torch.randn_like(network.state_dict()[key])
    return state


def test_the_initial_t2t_vit_fills_the_backbone_alone(tmp_path: Path) -> None:
    method = Method(replace(SMALL, depth=0), Path())
    network = method.build()
    theirs = published_backbone(network.backbone)
    head = {"head.weight": torch.zeros(1000, 12), "head.bias": torch.zeros(1000)}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    last = {key: value + 1 for key, value in theirs.items()}
    file = {"state_dict": last, "state_dict_ema": theirs | head, "epoch": 309}
    torch.save(file, tmp_path / "t2t.pth.tar")
    method.load_initial(network, read_tensors(tmp_path / "t2t.pth.tar"), "backbone")
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("backbone.")), key
    assert torch.equal(network.backbone.positions, theirs["pos_embed"])
    assert torch.equal(network.backbone.class_token, theirs["cls_token"])
    del theirs["pos_embed"]
    with pytest.raises(HubError, match="1 missing: positions"):
        method.load_initial(network, theirs, "backbone")


def test_new_layers_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    network: Any = Method(RECIPES["published"], Path()).build()
    for weight in (
        network.backbone.blocks[3].qkv.weight,
        network.convertor.blocks[0].mlp[1].weight,
        network.levels[0].encoder.blocks[0].proj.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    for weight in (
        network.levels[1].encoder.blocks[0].qkv.weight,
        network.fusions[0].fuse[0].weight,
    ):
        assert weight.abs().max().item() == pytest.approx((6 / sum(weight.shape)) ** 0.5, rel=0.01)
    for task in TASKS:
        assert not network.tokens[task].any()
