"""Hand-crafted saliency: MC and RBD, on superpixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from closeness import FLOAT64, assert_close_in_norm

from stages.sod._mc import NUMBER, SIGMA2, absorbed_time, mc_saliency
from stages.sod._rbd import (
    BACKGROUND,
    SMOOTHNESS,
    background_probability,
    background_weighted_contrast,
    rbd_saliency,
    saliency,
)
from stages.sod._superpixels import Superpixels, superpixels
from wsssbed_hub.datasets import open_sod_dataset
from wsssbed_hub.datasets.image_files import read_rgb

METHODS = [mc_saliency, rbd_saliency]
Produce = Callable[[np.ndarray], np.ndarray]


def picture(height: int, width: int) -> np.ndarray:
    """A red disk on a background from blue to green, with grain."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([0 * x + 40, 60 + 80 * x // width, 140 - 60 * y // height], 2)
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 4) ** 2
    rgb[inside] = (210, 50, 40)
    return (rgb + np.random.default_rng(0).integers(-8, 9, rgb.shape)).astype(np.uint8)


def line(*colours: float, border: tuple[int, ...]) -> Superpixels:
    """Regions in a row that differ in lightness; region n is column n of the image."""
    count = len(colours)
    adjacent = np.abs(np.subtract.outer(np.arange(count), np.arange(count))) == 1
    return Superpixels(
        labels=np.arange(count)[None],
        lab=np.stack([np.array(colours), np.zeros(count), np.zeros(count)], 1),
        places=np.stack([np.zeros(count), np.linspace(0, 1, count)], 1),
        at_border=np.isin(np.arange(count), border),
        adjacent=adjacent,
    )


@pytest.mark.parametrize("produce", METHODS)
@pytest.mark.parametrize("size", [(60, 90), (128, 100)])
def test_a_disk_stands_out_from_its_background(produce: Produce, size: tuple[int, int]) -> None:
    height, width = size
    found = produce(picture(height, width))
    assert (found.shape, found.dtype) == (size, np.uint8)
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - height / 2, x - width / 2) / (min(size) / 4)
    assert np.median(found[away < 0.8]) > 200
    assert np.median(found[away > 1.5]) < 50
    assert found[away < 0.8].min() > found[away > 1.5].max()


@pytest.mark.parametrize("produce", METHODS)
def test_objects_of_shapes_are_found(produce: Produce, shapes: Path) -> None:
    data = open_sod_dataset("shapes-small", shapes)
    masks = np.stack([data.read_mask(image_id) > 127 for image_id in data.image_ids])
    maps = np.stack([produce(read_rgb(data.image_path(i))) for i in data.image_ids])
    wrong = ((maps > 127) != masks).mean()
    assert wrong < 0.5 * masks.mean()  # of a map without any object it is the mean


@pytest.mark.parametrize("produce", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 3), (61, 38), (2, 200)])
def test_any_size_has_a_map_of_that_size(produce: Produce, size: tuple[int, int]) -> None:
    found = produce(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    assert (found.shape, found.dtype) == (size, np.uint8)


@pytest.mark.parametrize("produce", METHODS)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_image_of_one_colour_has_the_same_map_twice(produce: Produce, grey: int) -> None:
    image = np.full((50, 70, 3), grey, np.uint8)
    np.testing.assert_array_equal(produce(image), produce(image))


def test_superpixels_are_a_partition_with_means() -> None:
    rgb = picture(80, 120)
    regions = superpixels(rgb, NUMBER)
    count = len(regions.lab)
    assert 0.6 * NUMBER < count < 1.4 * NUMBER
    assert set(np.unique(regions.labels)) == set(range(count))
    assert regions.at_border[regions.labels[0]].all()
    assert not regions.at_border[regions.labels[40, 60]]
    assert (regions.adjacent == regions.adjacent.T).all()
    assert not regions.adjacent.diagonal().any()
    a, b = regions.labels[40, 60], regions.labels[0, 0]
    y, x = np.nonzero(regions.labels == a)
    np.testing.assert_allclose(regions.places[a], (y.mean() / 79, x.mean() / 119))
    assert regions.lab[a, 1] > 40 > regions.lab[b, 1]  # red is far along a
    assert not regions.adjacent[a, b]
    height, width = np.mgrid[:80, :120]
    inside = (height - 40) ** 2 + (width - 60) ** 2 < 20**2
    share = np.bincount(regions.labels[inside], minlength=count) / np.bincount(regions.labels.flat)
    assert np.minimum(share, 1 - share)[regions.labels].mean() < 0.01  # they follow the disk's edge


@pytest.mark.parametrize(
    ("colours", "weighted"),
    [
        ((0.0, 5.0, 100.0, 99.0, 98.0, 10.0, 0.0), False),  # times are high or low
        ((0.0, 30.0, 100.0, 60.0, 40.0, 35.0, 10.0), True),
    ],
)
def test_absorbed_time_is_the_mean_length_of_the_walk(
    colours: tuple[float, ...], weighted: bool
) -> None:
    count, border = len(colours), [0, len(colours) - 1]
    weights = np.zeros((count, count))
    for one in range(count):
        for other in range(count):
            if abs(one - other) <= 2 or {one, other} <= {*border}:
                distance = abs(colours[one] - colours[other])
                weights[one, other] = np.exp(-distance / largest_step(colours) / SIGMA2)
    total = weights.sum(1) + weights[:, border].sum(1)
    chain = weights / total[:, None]

    def walked(reward: np.ndarray) -> np.ndarray:
        time = np.zeros(count)
        for _ in range(1_000_000):
            time += reward
            reward = chain @ reward
            if reward.max() < 1e-14:
                return (time - time.min()) / (time.max() - time.min())
        raise AssertionError("the walk does not end")

    levels = np.minimum(np.floor(walked(np.ones(count)) * 10) + 1, 10)
    assert (np.minimum(levels, 11 - levels).mean() >= 2) == weighted
    # The equilibrium of a walk on a graph is as the sums of weights.
    expected = walked(1 / weights.sum(1) if weighted else np.ones(count))
    assert_close_in_norm(absorbed_time(line(*colours, border=(*border,))), expected, FLOAT64)


def largest_step(colours: tuple[float, ...]) -> float:
    """The largest distance between regions that are joined."""
    near = [abs(a - b) for step in (1, 2) for a, b in zip(colours, colours[step:], strict=False)]
    return max(*near, abs(colours[0] - colours[-1]))


def test_background_is_what_is_like_the_border() -> None:
    # Lightness 50 and 90 are an object; 0 to 3 at both ends is background.
    regions = line(0.0, 2.0, 50.0, 90.0, 3.0, 0.0, border=(0, 5))
    found = background_probability(regions)
    # Steps below the mean least step, (2 + 2 + 40 + 40 + 3 + 3) / 6 = 15, count nothing.
    apart = np.zeros((6, 6))
    apart[2, [0, 1, 4, 5]] = apart[[0, 1, 4, 5], 2] = 48
    apart[3, [0, 1, 4, 5]] = apart[[0, 1, 4, 5], 3] = 87
    apart[2, 3] = apart[3, 2] = 40
    like = np.exp(-(apart**2) / 200)
    connectivity = like[:, [0, 5]].sum(1) / np.sqrt(like.sum(1))
    np.testing.assert_allclose(found, 1 - np.exp(-(connectivity**2) / 2), atol=1e-7)
    assert found[[0, 1, 4, 5]].min() > 0.3
    assert found[[2, 3]].max() < 1e-8


def test_contrast_counts_near_background() -> None:
    regions = line(0.0, 10.0, 40.0, border=(0, 2))
    found = background_weighted_contrast(regions, np.array([1.0, 0.5, 0.0]))
    near = np.exp(-(0.5**2) / (2 * 0.25**2))
    far = np.exp(-(1.0**2) / (2 * 0.25**2))
    raw = np.array([0.5 * 10 * near, 10 * near, 40 * far + 0.5 * 30 * near])
    assert_close_in_norm(found, raw / raw.max(), FLOAT64)


def test_saliency_is_the_least_of_the_cost() -> None:
    regions = line(0.0, 5.0, 60.0, 58.0, 4.0, 0.0, border=(0, 5))
    background = background_probability(regions)
    contrast = background_weighted_contrast(regions, background)

    def cost(values: np.ndarray) -> float:
        total = BACKGROUND * (background * values**2).sum()
        total += (contrast * (values - 1) ** 2).sum()
        for one in range(5):
            difference = regions.lab[one, 0] - regions.lab[one + 1, 0]
            weight = np.exp(-(difference**2) / 200) + SMOOTHNESS
            total += weight * (values[one] - values[one + 1]) ** 2
        return float(total)

    found = saliency(regions)
    least = cost(found)
    for place in range(6):
        for step in (-1e-3, 1e-3):
            other = found.copy()
            other[place] += step
            assert cost(other) > least
