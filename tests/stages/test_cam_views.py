"""Random views of images, their labels and their saliency maps."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.cam._views import Views
from stages.cam.cam import RECIPES
from stages.ops.images import MEAN_RGB, STD_RGB
from wsssbed_hub.utils.errors import HubError

LABELS = {"a": (0,), "b": (1, 3), "c": ()}
STILL = (0.0, 0.0, 0.0, 0.0)  # no jitter


def dataset(saliency: np.ndarray | None = None) -> Any:
    rgb = np.full((60, 90, 3), 200, np.uint8)
    rgb[:, :45] = 30  # the left half is dark
    maps = SimpleNamespace(name="maps", read=lambda image_id: saliency)
    return SimpleNamespace(
        image_ids=list(LABELS),
        num_classes=4,
        read_image=lambda image_id: rgb,
        image_labels=LABELS.__getitem__,
        saliency=None if saliency is None else maps,
    )


def views(saliency: np.ndarray | None = None, **changes: Any) -> Views:
    return Views(dataset(saliency), replace(RECIPES["shapes"], **changes))


@pytest.mark.parametrize(("index", "hot"), [(0, [1, 0, 0, 0]), (1, [0, 1, 0, 1]), (2, [0] * 4)])
def test_labels_are_multi_hot(index: int, hot: list[int]) -> None:
    label = views().sample(index, np.random.default_rng(0))["label"]
    assert label.dtype == np.float32
    assert label.tolist() == hot


def test_the_long_side_takes_every_length_of_its_range() -> None:
    lengths = set()
    source = views(long_side=(40, 43), crop=64, jitter=STILL)
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


def test_without_saliency_maps_a_view_has_none() -> None:
    assert views().sample(0, np.random.default_rng(0)).keys() == {"image", "label"}


@pytest.mark.parametrize("crop", [32, 100])
def test_saliency_goes_through_the_geometry_of_its_image(crop: int) -> None:
    """A map that is the image itself, in grey, is still the image in every view."""
    grey = dataset().read_image("a")[..., 0]
    source = views(grey, long_side=(50, 120), crop=crop, jitter=STILL)
    padded = 0
    for seed in range(30):
        view = source.sample(0, np.random.default_rng(seed))
        assert (view["saliency"].shape, view["saliency"].dtype) == ((1, crop, crop), np.float32)
        shown = view["image"].any(0)
        grey_again = (view["image"] * np.array(STD_RGB)[:, None, None]).T + MEAN_RGB
        found = np.where(shown, grey_again.mean(-1).T, 0)
        np.testing.assert_allclose(view["saliency"][0], found, atol=1e-5)
        padded += int((~shown).sum())
    assert (padded > 0) == (crop == 100)


def test_colours_are_jittered_and_saliency_is_not() -> None:
    salient = np.full((60, 90), 128, np.uint8)
    source = views(salient, long_side=(90, 90), crop=60, flip=0.0, jitter=(0.9, 0.0, 0.0, 0.0))
    drawn = [source.sample(0, np.random.default_rng(seed)) for seed in range(5)]
    assert len({view["image"].max() for view in drawn}) == 5
    for view in drawn:
        np.testing.assert_array_equal(view["saliency"], np.float32(128 / 255))


def test_a_saliency_map_of_another_size_is_named() -> None:
    source = views(np.zeros((60, 91), np.uint8))
    with pytest.raises(HubError, match=r"maps: the saliency map of b has \(60, 91\) .*\(60, 90\)"):
        source.sample(1, np.random.default_rng(0))
