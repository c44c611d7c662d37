"""What the reference cases do not show; those are in test_conformance_cam_l2g*.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import nn

from stages.backbones.vgg import Vgg16
from stages.cam import _l2g_networks as networks
from stages.cam import l2g
from stages.cam._l2g_patches import PatchViews, boxes, window
from stages.cam.l2g import RECIPES, Method, Recipe
from stages.runtime.checkpoint import load_weights
from stages.runtime.method import Image, Phase
from wsssbed_hub.utils.errors import HubError, UsageError

VOC, COCO, SHAPES = (RECIPES[name] for name in ("published-voc", "published-coco", "shapes"))


def ramp(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green are row and column, and its saliency, which is row + 1."""
    rows, columns = np.indices((height, width), np.uint8)
    return np.stack([rows, columns, 0 * rows + 9], -1), rows + 1


def dataset(rgb: np.ndarray, saliency: np.ndarray, images: int = 3) -> Any:
    return SimpleNamespace(
        image_ids=[f"image-{n}" for n in range(images)],
        num_classes=4,
        read_image=lambda image_id: rgb,
        image_labels=lambda image_id: (1, 3),
        saliency=SimpleNamespace(name="maps", read=lambda image_id: saliency),
    )


def windows(height: int, width: int, size: int) -> set[tuple[int, int]]:
    """Every place (top, left) that a window of an image of that size takes."""
    rgb, saliency = ramp(height, width)
    found = set()
    for seed in range(200):
        cut, plane = window(rgb, saliency, min(height, width), size, np.random.default_rng(seed))
        there = cut[..., 2] > 0
        assert np.array_equal(there, plane > 0)  # beyond the image there is nothing
        assert np.array_equal(cut[..., 0][there] + 1, plane[there])
        found.add((int(cut[0, 0, 0]), int(cut[0, 0, 1])))
    return found


def test_windows_confuse_the_slack_of_height_and_width() -> None:
    assert windows(30, 33, 28) == {(top, left) for top in range(6) for left in range(3)}
    assert windows(33, 30, 28) == {(top, left) for top in range(3) for left in range(6)}


def test_the_window_is_of_an_image_whose_shorter_side_has_a_length() -> None:
    rgb = np.full((60, 90, 3), 200, np.uint8)
    saliency = np.full((60, 90), 7, np.uint8)
    cut, plane = window(rgb, saliency, 40, 64, np.random.default_rng(0))
    assert (cut[..., 0] > 0).sum() == (plane > 0).sum() == 40 * 60


def test_four_patches_are_the_corners_and_the_others_are_random() -> None:
    drawn = {tuple(boxes(VOC, np.random.default_rng(n))[4:, 0]) for n in range(20)}
    assert len(drawn) == 20
    found = boxes(VOC, np.random.default_rng(0))
    assert found[:4].tolist() == [
        [0, 0, 320, 320],
        [0, 128, 320, 448],
        [128, 0, 448, 320],
        [128, 128, 448, 448],
    ]
    assert found.shape == (6, 4)


def test_random_patches_take_every_place_but_the_last() -> None:
    recipe = replace(COCO, crop=12, patch=9)
    found = np.concatenate([boxes(recipe, np.random.default_rng(n)) for n in range(60)])
    assert {tuple(box) for box in found.tolist()} == {
        (x, y, x + 9, y + 9) for x in range(3) for y in range(3)
    }


def test_a_sample_has_all_that_the_loss_takes() -> None:
    rgb, saliency = ramp(60, 80)
    sample = PatchViews(dataset(rgb, saliency), SHAPES).sample(1, np.random.default_rng(0))
    shapes = {name: (value.dtype.name, value.shape) for name, value in sample.items()}
    assert shapes == {
        "image": ("float32", (3, 96, 96)),
        "saliency": ("float32", (1, 96, 96)),
        "label": ("float32", (4,)),
        "boxes": ("int64", (6, 4)),
    }
    assert sample["label"].tolist() == [0, 1, 0, 1]
    assert sample["saliency"].max() == pytest.approx(1)


def test_cocos_view_is_the_whole_image() -> None:
    rgb = np.zeros((40, 80, 3), np.uint8)
    rgb[:20, :40] = 255
    recipe = replace(COCO, crop=32, patch=16, jitter=(0.0, 0.0, 0.0, 0.0))
    sample = PatchViews(dataset(rgb, rgb[..., 0] // 2), recipe).sample(0, np.random.default_rng(0))
    bright = (sample["image"] * np.array(COCO.std)[:, None, None]).std() > 0
    assert bright
    assert (sample["saliency"][0] > 0.5)[:16, :16].all()
    assert not (sample["saliency"][0] > 0.5)[16:].any()
    white = (1 - np.array(COCO.mean)) / np.array(COCO.std)
    np.testing.assert_allclose(sample["image"][:, 2, 2], white, rtol=1e-6)


def test_an_image_without_saliency_stays_so() -> None:
    rgb, saliency = ramp(40, 40)
    sample = PatchViews(dataset(rgb, 0 * saliency), SHAPES).sample(0, np.random.default_rng(0))
    assert not sample["saliency"].any()


def test_saliency_of_another_size_is_refused() -> None:
    rgb, saliency = ramp(40, 40)
    with pytest.raises(HubError, match=r"saliency map of image-0 has \(40, 39\)"):
        PatchViews(dataset(rgb, saliency[:, :39]), SHAPES).sample(0, np.random.default_rng(0))


@pytest.mark.numerical
def test_features_spread_in_blocks_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    feature, guide = torch.randn(2, 5, 6, 7).double(), torch.randn(2, 3, 6, 7).double()
    whole = networks.spread(feature, guide)
    monkeypatch.setattr(networks, "_BLOCK", 2 * 42 * 5)
    assert_close_in_norm(networks.spread(feature, guide), whole, FLOAT64)


@pytest.mark.numerical
def test_features_of_positions_that_are_alike_are_averaged() -> None:
    feature = torch.tensor([1.0, 3.0, 10.0, 20.0]).double().view(1, 1, 1, 4)
    guide = torch.tensor([[2.0, 5.0, 0, 0], [0, 0, 1, -1]]).double().view(1, 2, 1, 4)
    spread = networks.spread(feature, guide).flatten()
    np.testing.assert_allclose(spread, [2, 2, 10, 20], rtol=1e-4)


def test_a_class_that_the_label_does_not_name_is_no_target() -> None:
    maps = torch.tensor([[3.0, 2.0, 1.0]])[:, :, None, None]  # two classes, background
    saliency = torch.full((1, 1, 2, 2), 0.75)
    for label, expected in (
        ([1.0, 1.0], [0.75, 0, 0]),
        ([0.0, 1.0], [0, 0.75, 0]),
        ([0.0, 0.0], [0, 0, 0.25]),
    ):
        own = maps * torch.tensor([1.0, 1.0, 0.1])[None, :, None, None]
        own = torch.cat([own, torch.full_like(own, 1.0)], 3)  # a maximum elsewhere
        own[:, 0, :, 1], own[:, 1, :, 1], own[:, 2, :, 1] = 3.1, 2.2, 0.2
        found = l2g.transfer_target(own, torch.tensor([label]), saliency, VOC)
        np.testing.assert_allclose(found[0, :, 0, 0], expected, atol=1e-6)


def the_phase(recipe: Recipe, images: int) -> Phase:
    (phase,) = Method(recipe, Path(), 4).phases(small(), dataset(*ramp(9, 9), images))
    return phase


def small(form: str = "resnet38") -> Any:
    recipe = replace(SHAPES, network=form, width=8)
    return Method(recipe, Path(), 4).build()


def test_vocs_training() -> None:
    phase = the_phase(VOC, 10_582)
    assert phase.steps == 35_274  # of ten epochs
    epoch = 10_582 / 3
    assert [phase.schedule(step) for step in (0, int(5 * epoch))] == [1, 1]
    assert phase.schedule(int(5 * epoch) + 1) == pytest.approx(0.1)
    assert phase.schedule(35_273) == pytest.approx(0.1)
    source = phase.sources["views"]  # type: ignore[index]
    assert (source.batch_size, source.shuffle) == (3, False)
    for group in phase.optimizer().param_groups:  # type: ignore[union-attr]
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)


def test_cocos_training() -> None:
    phase = the_phase(COCO, 82_081)
    assert phase.steps == 102_602  # of fifteen epochs
    assert phase.schedule(51_301) == pytest.approx(0.5**0.7)
    for group in phase.optimizer().param_groups:  # type: ignore[union-attr]
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (5e-4, False, 0)


@pytest.mark.parametrize(
    ("form", "rates"),
    [
        ("resnet38", {"backbone": 0.001, "new": 0.01}),
        ("vgg16", {"backbone": 0.001, "bias": 0.002, "new": 0.01, "new bias": 0.02}),
    ],
)
def test_new_layers_and_biases_learn_faster(form: str, rates: dict[str, float]) -> None:
    network = small(form)
    recipe = replace(VOC, network=form)
    (phase,) = Method(recipe, Path(), 4).phases(network, dataset(*ramp(9, 9)))
    names = {id(p): name for name, p in network.named_parameters()}
    found: dict[str, float] = {}
    for group in phase.optimizer().param_groups:  # type: ignore[union-attr]
        for parameter in group["params"]:
            found[names.pop(id(parameter))] = group["lr"]
    assert not names
    for name, rate in found.items():
        pretrained = ".backbone." in name and ".extra." not in name
        is_bias = form == "vgg16" and name.endswith("bias")
        kind = f"{'' if pretrained else 'new'} {'bias' if is_bias else ''}".strip()
        assert rate == pytest.approx(rates[kind or "backbone"]), name


def test_what_of_the_published_network_is_frozen() -> None:
    network = Method(replace(VOC, width=4), Path(), 4).build().train()
    for one in (network.global_network, network.local_network):
        frozen = {name for name, p in one.named_parameters() if not p.requires_grad}
        assert {name.split(".")[1] for name in frozen if "bn" not in name} == {
            "stem",
            "stage2",
            "norm",
        }
        norms = [m for m in one.modules() if isinstance(m, nn.BatchNorm2d)]
        assert not any(norm.training or norm.weight.requires_grad for norm in norms)
        assert [m.p for m in one.modules() if isinstance(m, nn.Dropout2d)] == [0.3, 0.5]


def test_both_networks_begin_with_the_imagenet_file_and_share_nothing() -> None:
    recipe = replace(SHAPES, network="vgg16", width=8)
    method = Method(recipe, Path(), 4)
    network = method.build()
    state = {k: v + 1 for k, v in Vgg16(["conv5_3"], width=8, pool4="keep").state_dict().items()}
    method.load_initial(network, state, "backbone")
    for one in (network.global_network, network.local_network):
        for key, value in one.backbone.trunk.state_dict().items():
            assert torch.equal(value, state[key])
    own = [{p.data_ptr() for p in one.parameters()} for one in network.children()]
    assert not own[0] & own[1]
    assert not torch.equal(
        network.global_network.classifier.weight, network.local_network.classifier.weight
    )


def test_timm_has_no_resnet_38() -> None:
    with pytest.raises(HubError, match="--init FILE"):
        Method(VOC, Path(), 20).timm_weights("backbone")


def test_the_authors_file_fills_the_global_network_alone(tmp_path: Path) -> None:
    """It holds both, and an optimiser's state; maps are made with one."""
    network, other = small("vgg16"), small("vgg16")
    before = {key: value.clone() for key, value in network.local_network.state_dict().items()}
    theirs = {
        in_published_words(key): value + 1
        for key, value in other.global_network.state_dict().items()
    }
    unused = {key: value + 2 for key, value in theirs.items()}
    file = {"epoch": 9, "state_dict": theirs, "local_dict": unused, "optimizer": {}}
    torch.save(file, tmp_path / "pascal_voc_epoch_9.pth")
    load_weights(network, tmp_path / "pascal_voc_epoch_9.pth")
    for key, value in other.global_network.state_dict().items():
        assert torch.equal(network.global_network.state_dict()[key], value + 1)
        assert torch.equal(network.local_network.state_dict()[key], before[key])
    del theirs["module.extra_last_conv.weight"]
    with pytest.raises(HubError, match=r"missing: classifier\.weight"):
        network.load_published(theirs)


def in_published_words(key: str) -> str:
    heads = {
        "low": "fc_extra_3",
        "middle": "fc_extra_4",
        "affinity": "extra_att_module",
        "classifier": "extra_last_conv",
    }
    first, rest = key.removeprefix("backbone.").removeprefix("trunk.").split(".", 1)
    return f"module.{heads.get(first, {'extra': 'extra_convs'}.get(first, first))}.{rest}"


def test_maps_are_made_by_the_global_network_for_the_classes_that_were_asked_for() -> None:
    method, network = Method(SHAPES, Path(), 4), small().eval()
    network.local_network = None
    rgb = np.random.default_rng(0).integers(0, 256, (41, 38, 3), np.uint8)
    with torch.inference_mode():
        both = method.activations(network, Image("a", rgb, np.array([1, 3])), None)  # type: ignore[arg-type]
        one = method.activations(network, Image("a", rgb, np.array([3])), None)  # type: ignore[arg-type]
    assert (both.shape, both.dtype) == ((2, 41, 38), np.uint8)
    np.testing.assert_array_equal(both[1:], one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 500}, "a patch is cut from the view"),
        ({"patch": 4}, "a patch is cut from the view"),
        ({"patches": 3}, "four of them are the corners"),
        ({"momentum": 0.0}, "nesterov=true wants a momentum"),
        ({"epochs": 0}, "1 or more"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(VOC, **changes)
