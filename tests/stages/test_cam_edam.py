"""What the reference cases do not show; those are in test_conformance_cam_edam*.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from references import resnet38_published_name
from torch import Tensor

from stages.cam._edam_attention import Attention, Block, Norm, position_table
from stages.cam.edam import RECIPES, Edam, Method, Pairs
from stages.ops.images import MEAN_RGB, STD_RGB
from stages.runtime.method import Image
from wsssbed_hub.utils.errors import UsageError

SMALL = replace(RECIPES["shapes"], width=2, hidden=8, crop=24, long_side=(24, 32))
LABELS = {"a": (0,), "b": (0, 1), "c": (1, 2), "d": (), "e": (3,)}
GREY = {name: 40 + 40 * number for number, name in enumerate(LABELS)}
DATA: Any = SimpleNamespace(
    image_ids=[*LABELS],
    num_classes=4,
    images_by_class=[["a", "b"], ["b", "c"], ["c"], ["e"]],
    image_labels=LABELS.__getitem__,
    read_image=lambda name: np.full((40, 30, 3), GREY[name], np.uint8),
    saliency=None,
)


def network_of(recipe: Any = SMALL) -> Edam:
    torch.manual_seed(0)
    return Method(recipe, Path(), 4).build()


@pytest.mark.numerical
def test_the_norm_divides_by_the_sample_s_deviation() -> None:
    norm = Norm(3).double()
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.shift.copy_(torch.tensor([0.0, 0.0, 1.0]))
    x = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)  # mean 3, variance 14 / 2
    expected = np.array([[-2.0, -2.0, 9.0]]) / (np.sqrt(7) + 1e-6) + np.array([[0, 0, 1]])
    assert_close_in_norm(norm(x), expected, FLOAT64)


@pytest.mark.numerical
def test_positions_are_sines_and_cosines_of_ever_longer_waves() -> None:
    table = position_table(2116, 128)
    assert (table.shape, table.dtype) == ((1, 2116, 128), torch.float32)
    for position, pair in ((0, 0), (1, 0), (2115, 0), (2115, 17), (700, 63)):
        angle = position / 10_000 ** (2 * pair / 128)
        found = table[0, position, 2 * pair : 2 * pair + 2]
        assert_close_in_norm(found, [np.sin(angle), np.cos(angle)], 1e-6)


@pytest.mark.numerical
def test_the_masks_of_a_position_are_positive_and_their_squares_sum_to_one() -> None:
    network = network_of().eval()
    with torch.inference_mode():
        masks = network.maps(torch.randn(2, 3, 41, 30))
    assert masks.shape == (2, 4 + 1, 6, 4)
    assert (masks >= 0).all()
    assert_close_in_norm(masks.square().sum(1), np.ones((2, 6, 4)), FLOAT32)


@pytest.mark.numerical
def test_each_image_of_a_pair_sees_the_other_but_no_other_pair() -> None:
    network = network_of().eval()
    pairs = torch.randn(2, 2, 3, 24, 24)
    changed = pairs.clone()
    changed[0, 1] = torch.randn(3, 24, 24)
    with torch.inference_mode():
        before, after = network(pairs), network(changed)
    assert before.shape == (2, 2, 4)
    assert (before[0] != after[0]).all()
    assert_close_in_norm(after[1], before[1], FLOAT32)


def test_every_class_has_a_block_and_a_classifier_of_its_own() -> None:
    network = network_of().eval()
    pairs = torch.randn(1, 2, 3, 24, 24)
    with torch.no_grad():
        before = network(pairs)
        network.transformers[1][0].wide.weight += 1
        network.classifiers[2].weight += 1
        after = network(pairs)
    changed = (before != after)[0]
    assert changed.tolist() == [[False, True, True, False]] * 2


def test_dropout_is_where_the_code_has_it() -> None:
    """Of the weights of the attention, between the two layers, of both branches, at the end."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8)
    whole, attention = Block(8, 2, 16, 1.0).train(), Attention(8, 2, 1.0).train()
    torch.nn.init.constant_(attention.output.bias, 0.5)
    assert not whole(x).any()  # the last one
    assert (attention(x) == 0.5).all()  # none of the values, the layer behind them stays
    rates = {m.p for m in network_of(replace(SMALL, dropout=0.1)).transformers.modules()
             if isinstance(m, torch.nn.Dropout)}  # fmt: skip
    assert rates == {0.1}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_gives_the_same_gradients(dropout: float) -> None:
    pairs, found = torch.randn(2, 2, 3, 24, 24), []
    for recompute in (False, True):
        network = network_of(replace(SMALL, dropout=dropout, recompute=recompute)).train()
        torch.manual_seed(1)
        network(pairs).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert torch.equal(one, other)


def seen(sample: dict[str, np.ndarray], recipe: Any) -> list[str]:
    """Which images the two views are of, by their grey."""
    names = []
    for view in sample["images"]:
        assert view.shape == (3, recipe.crop, recipe.crop)
        rgb = view * np.array(STD_RGB)[:, None, None] + np.array(MEAN_RGB)[:, None, None]
        middle = float(rgb[:, recipe.crop // 2, recipe.crop // 2].mean() * 255)
        names.append(min(GREY, key=lambda name: abs(GREY[name] - middle)))
    return names


@pytest.mark.parametrize(("partners", "of_b"), [("others", "ac"), ("all", "abc")])
def test_pairs_share_a_class(partners: Any, of_b: str) -> None:
    recipe = replace(SMALL, partners=partners, jitter=(0.0, 0.0, 0.0, 0.0))
    pairs = Pairs(DATA, recipe)
    found = set()
    for seed in range(40):
        sample = pairs.sample(1, np.random.default_rng(seed))
        first, second = seen(sample, recipe)
        assert first == "b"
        expected = np.zeros((2, 4))
        for row, name in enumerate((first, second)):
            expected[row, list(LABELS[name])] = 1
        assert sample["label"].tolist() == expected.tolist()
        found.add(second)
    assert found == {*of_b}
    for alone in (3, 4):  # without a class; with one that no other has
        sample = pairs.sample(alone, np.random.default_rng(0))
        assert seen(sample, recipe) == [[*LABELS][alone]] * 2


@pytest.mark.numerical
def test_the_loss_is_the_mean_over_both_images_and_all_classes() -> None:
    network = network_of().eval()
    batch = {"images": torch.randn(1, 2, 3, 24, 24), "label": torch.eye(4)[None, :2]}
    (phase,) = Method(SMALL, Path(), 4).phases(network, DATA)
    with torch.inference_mode():
        scores: Tensor = network(batch["images"]).double()
        found = phase.loss({"pairs": batch}, 0)["classification"]
    signs = 2 * batch["label"] - 1
    assert_close_in_norm(found, np.log1p(np.exp(-(signs * scores).numpy())).mean(), FLOAT32)


def test_a_training_shorter_than_its_warm_up_only_warms_up() -> None:
    recipe = replace(SMALL, steps=10, warm_up=20, warm_up_from=0.1)
    (phase,) = Method(recipe, Path(), 4).phases(network_of(recipe), DATA)
    assert [phase.schedule(step) for step in (0, 9)] == pytest.approx([0.1, 0.1 + 0.9 * 9 / 20])


def test_maps_are_those_of_the_classes_that_were_asked_for() -> None:
    method, network = Method(SMALL, Path(), 4), network_of().eval()
    rgb = np.random.default_rng(0).integers(0, 256, (33, 50, 3)).astype(np.uint8)
    with torch.inference_mode():
        both = method.activations(network, Image("a", rgb, np.array([1, 3])), DATA)
        one = method.activations(network, Image("a", rgb, np.array([3])), DATA)
    assert (both.shape, both.dtype) == ((2, 33, 50), np.uint8)
    np.testing.assert_array_equal(both[1:], one)


def test_the_imagenet_file_fills_the_backbone_alone() -> None:
    method, network = Method(SMALL, Path(), 4), network_of()
    published = {
        resnet38_published_name(name): value + 1
        for name, value in network.backbone.state_dict().items()
    }
    before = {name: value.clone() for name, value in network.state_dict().items()}
    method.load_initial(network, published, "backbone")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] + name.startswith("backbone.")), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"hidden": 7}, "even"), ({"heads": 3}, "heads"), ({"image_rows": 1}, "2")],
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(SMALL, **changes)  # type: ignore[arg-type]
