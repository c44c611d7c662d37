"""What the reference cases do not show; those are in test_conformance_cam_mcis*.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.cam import CamData
from stages.cam._pairs import drawn, partner
from stages.cam.mcis import COPIES, RECIPES, CoAttention, Method, Pairs, merged
from stages.ops.images import imagenet_rgb, resize_bilinear
from stages.runtime.method import Image
from wsssbed_hub.utils.errors import UsageError

SMALL = replace(RECIPES["shapes"], width=2, size=32, copies=(0.75, 2.0))
LABELS = {"a": (0,), "b": (0, 1), "c": (1, 2), "d": (0,), "e": (), "f": (3,)}


class Drawn(CamData):
    """Pictures that are drawn by their names, of four classes."""

    def __init__(self) -> None:
        super().__init__(None, [*LABELS])  # type: ignore[arg-type]

    @property
    def num_classes(self) -> int:
        return 4

    def read_image(self, image_id: str) -> np.ndarray:
        return np.random.default_rng(ord(image_id)).integers(0, 256, (40, 30, 3)).astype(np.uint8)

    def image_labels(self, image_id: str) -> tuple[int, ...]:
        return LABELS[image_id]


class Reading(Drawn):
    """Notes which images are read."""

    @cached_property
    def read(self) -> list[str]:
        return []

    def read_image(self, image_id: str) -> np.ndarray:
        self.read.append(image_id)
        return super().read_image(image_id)


DATA = Drawn()


def network_of(recipe: Any = SMALL) -> CoAttention:
    torch.manual_seed(0)
    return Method(recipe, Path(), 4).build().eval()


def test_the_images_of_each_class() -> None:
    assert DATA.images_by_class == [["a", "b", "d"], ["b", "c"], ["c"], ["f"]]


def test_a_partner_has_a_class_of_the_image_each_as_likely() -> None:
    rng = np.random.default_rng(0)
    found = Counter(partner(DATA, "b", rng) for _ in range(1200))
    # Class 0 half of the time, of a, b and d; class 1 else, of b and c.
    expected = {"a": 200, "b": 500, "c": 300, "d": 200}
    assert found.keys() == expected.keys()
    assert all(abs(found[name] - count) < 75 for name, count in expected.items())  # 4 deviations
    assert partner(DATA, "e", rng) == "e"


def test_a_partner_may_have_to_be_another_image() -> None:
    rng = np.random.default_rng(0)
    found = Counter(partner(DATA, "b", rng, itself=False) for _ in range(400))
    assert found.keys() == {"a", "c", "d"}
    assert abs(found["c"] - 200) < 40
    assert {partner(DATA, "a", rng, itself=False) for _ in range(50)} == {"b", "d"}
    assert partner(DATA, "f", rng, itself=False) == "f"  # there is no other


def test_drawing_is_with_replacement_and_reaches_all() -> None:
    found = drawn(["x", "y", "z"], 60, np.random.default_rng(0))
    assert (len(found), {*found}) == (60, {"x", "y", "z"})


def test_a_pair_is_jittered_and_the_copies_of_the_first_are_not() -> None:
    pairs = Pairs(DATA, replace(SMALL, jitter=(0.3, 0.3, 0.3, 0.1)))
    plain = {name: resize_bilinear(DATA.read_image(name), 32, 32) for name in LABELS}
    partners = set()
    for seed in range(30):
        sample = pairs.sample(1, np.random.default_rng(seed))
        own = DATA.read_image("b")
        np.testing.assert_array_equal(sample["mirrored"], imagenet_rgb(plain["b"])[..., ::-1])
        for name, side in (("small", 24), ("large", 64)):
            np.testing.assert_array_equal(
                sample[name], imagenet_rgb(resize_bilinear(own, side, side))
            )
        assert sample["label1"].tolist() == [1, 1, 0, 0]
        likely = {
            name: np.corrcoef(sample["image2"].ravel(), imagenet_rgb(rgb).ravel())[0, 1]
            for name, rgb in plain.items()
        }
        second = max(likely, key=lambda name: likely[name])
        assert likely[second] > 0.5
        label = np.zeros(4)
        label[list(LABELS[second])] = 1
        assert sample["label2"].tolist() == label.tolist()
        partners.add(second)
        for number, name in ((1, "b"), (2, second)):
            assert not np.array_equal(sample[f"image{number}"], imagenet_rgb(plain[name]))
    assert partners == {"a", "b", "c", "d"}


def test_without_self_pairs_there_are_neither_copies_nor_their_losses() -> None:
    recipe = replace(SMALL, self_pairs=False)
    sample = Pairs(DATA, recipe).sample(0, np.random.default_rng(0))
    assert not {*COPIES} & sample.keys()
    batch = {name: torch.from_numpy(value)[None] for name, value in sample.items()}
    terms = losses(recipe, batch)
    assert terms.keys() == {"basic", "co", "contrastive1", "contrastive2"}


def losses(recipe: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the last step of a training."""
    network, method = network_of(recipe), Method(recipe, Path(), 4)
    (phase,) = method.phases(network, DATA)
    with torch.inference_mode():
        return phase.loss({"pairs": batch}, phase.steps - 1)


def pair(label1: list[list[float]], label2: list[list[float]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    sizes = {"image1": 32, "image2": 32, "mirrored": 32, "small": 24, "large": 64}
    found = {name: torch.randn(len(label1), 3, side, side) for name, side in sizes.items()}
    return found | {"label1": torch.tensor(label1), "label2": torch.tensor(label2)}


BOTH, ONE, NONE = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("label1", "label2", "count"),
    [
        ([ONE, ONE], [ONE, ONE], (False, False)),
        ([ONE, BOTH], [ONE, ONE], (True, False)),
        ([ONE, ONE], [BOTH, ONE], (False, True)),
        ([BOTH, ONE], [ONE, BOTH], (True, True)),
    ],
)
def test_contrastive_losses_count_where_some_pair_has_a_class_that_is_not_shared(
    label1: list[list[float]], label2: list[list[float]], count: tuple[bool, bool]
) -> None:
    """And then all pairs count, those without one with no class at all."""
    batch = pair(label1, label2)
    found = losses(replace(SMALL, contrastive="unshared"), batch)
    always = losses(replace(SMALL, contrastive="always"), batch)
    for name, counts in zip(("contrastive1", "contrastive2"), count, strict=True):
        assert always[name] > 0
        assert found[name] == (always[name] if counts else 0)
    late = losses(replace(SMALL, contrastive="always", contrastive_from=99), batch)
    assert late["contrastive1"] == late["contrastive2"] == 0


def test_the_common_label_is_that_of_the_co_attention() -> None:
    """Large scores for the shared class alone cost the co-attention nothing."""
    network = network_of()
    batch = pair([BOTH], [ONE])
    features = [network(batch[f"image{n}"]) for n in (1, 2)]
    with torch.no_grad():
        found = [one.mean((2, 3)) for one in network.co_maps(*features)]
        (phase,) = Method(SMALL, Path(), 4).phases(network, DATA)
        terms = phase.loss({"pairs": batch}, 0)
    scores, label = torch.cat(found), torch.tensor([ONE, ONE])
    expected = -(label * scores.sigmoid().log() + (1 - label) * (-scores).sigmoid().log()).mean()
    assert terms["co"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_merged_maps_by_hand() -> None:
    low, high = -30.0, 60.0  # the sigmoid of the mean is below 0.1, or not
    first = torch.tensor([[[low, 2.0]], [[0.0, 1.0]]])
    rejected = torch.tensor([[[low, 3.0]], [[high, low]]])
    found = merged([first, rejected, first], 0.1)
    # Class 0: the first map counts whatever its mean, and only there. Class 1: all three.
    assert found.dtype == np.uint8
    assert found.tolist() == [[[0, 85]], [[85, 170]]]
    assert merged([first, first * 0, -first.abs()], 0.1)[1].tolist() == [[0, 85]]
    above, below = (torch.full((1, 1, 2), value) for value in (-2.19, -2.2))  # sigmoid about 0.1
    bright = torch.tensor([[[10.0, -14.4]]])
    sure = merged([torch.zeros(1, 1, 2), bright + (above - bright.mean())], 0.1)
    unsure = merged([torch.zeros(1, 1, 2), bright + (below - bright.mean())], 0.1)
    assert (sure.tolist(), unsure.tolist()) == ([[[127, 0]]], [[[0, 0]]])


def test_related_images_depend_on_the_image_its_class_and_the_seed_alone() -> None:
    method, network = Method(replace(SMALL, related=5), Path(), 4), network_of()

    def read_for(image_id: str, class_ids: list[int], method: Method = method) -> list[str]:
        data = Reading()
        rgb = DATA.read_image(image_id)
        with torch.inference_mode():
            method.activations(network, Image(image_id, rgb, np.array(class_ids)), data)
        return data.read

    both = read_for("b", [0, 1])
    assert {*both[:5]} <= {"a", "b", "d"}
    assert {*both[5:]} <= {"b", "c"}
    assert read_for("b", [1]) == both[5:]
    read_for("a", [0])
    assert read_for("b", [0, 1]) == both
    assert read_for("a", [0]) != both[:5]
    other = Method(replace(SMALL, related=5, related_seed=1), Path(), 4)
    assert read_for("b", [0, 1], other) != both


def test_maps_have_the_size_of_the_image_also_without_classes() -> None:
    method, network = Method(SMALL, Path(), 4), network_of()
    rgb = DATA.read_image("b")
    with torch.inference_mode():
        two = method.activations(network, Image("b", rgb, np.array([0, 1])), DATA)
        again = method.activations(network, Image("b", rgb, np.array([1])), DATA)
        none = method.activations(network, Image("e", rgb, np.zeros(0, np.int64)), DATA)
    assert (two.shape, two.dtype) == ((2, 40, 30), np.uint8)
    np.testing.assert_array_equal(two[1:], again)
    assert (none.shape, none.dtype) == ((0, 40, 30), np.uint8)


def test_other_lengths_of_training_keep_the_shares_of_its_epochs() -> None:
    recipe = replace(RECIPES["published"], width=2, epochs=10, steps=100, drops=(5, 9))
    (phase,) = Method(recipe, Path(), 4).phases(network_of(recipe), DATA)
    rates = [phase.schedule(step) for step in (49, 50, 89, 90)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_the_imagenet_file_fills_the_trunk_alone() -> None:
    recipe = replace(RECIPES["published"], width=2)
    method, network = Method(recipe, Path(), 4), network_of(recipe)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trunk = {name: value + 1 for name, value in network.backbone.trunk.state_dict().items()}
    method.load_initial(network, trunk | {"classifier.0.weight": torch.ones(2, 2)}, "backbone")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] + name.startswith("backbone.trunk")), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"size": 9}, "8 are needed"), ({"copies": (0.1, 2.0)}, "3 pixels"), ({"related": 0}, "1 or")],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(SMALL, **changes)
