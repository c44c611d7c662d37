"""MMSegmentation's samples on fixed draws, its loss and its inference, with values by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT32, FLOAT64, assert_close_in_norm
from scripted import Scripted
from torch import Tensor

from stages.ops.images import imagenet_rgb
from stages.seg._mmseg import (
    Crops,
    MMSegRecipe,
    mean_over_all_pixels,
    mean_over_labelled_pixels,
    predict,
    random_window,
    slide,
    weighted_losses,
)
from wsssbed_hub.utils.errors import HubError, UsageError

NO, YES = 0.9, 0.1
UNCHANGED = (NO, NO, NO, NO, NO)  # colours
MEAN = np.array([123.675, 116.28, 103.53])
DEVIATION = np.array([58.395, 57.12, 57.375])


def crops(rgb: np.ndarray, label: np.ndarray, **changes: Any) -> Crops:
    data = SimpleNamespace(
        image_ids=["one"],
        read_image=lambda image_id: rgb,
        read_label=lambda image_id: label,
        labels=SimpleNamespace(name="label/any"),
    )
    return Crops(data, replace(MMSegRecipe(), **changes))  # type: ignore[arg-type]


def drawn(source: Crops, *draws: float) -> tuple[np.ndarray, np.ndarray, Scripted]:
    """Grey levels float[H, W, 3] and label of the sample, and what was asked for."""
    rng = Scripted(draws)
    sample = source.sample(0, rng)  # type: ignore[arg-type]
    assert not rng.draws
    assert (sample["image"].dtype, sample["label"].dtype) == (torch.float32, torch.int64)
    image = sample["image"].numpy().astype(float).transpose(1, 2, 0)
    return image * DEVIATION + MEAN, sample["label"].numpy(), rng


ROWS, COLUMNS = np.mgrid[:6, :8]
PICTURE = np.stack([10 * ROWS, 10 * COLUMNS, 0 * ROWS + 200], 2).astype(np.uint8)
LABEL = (ROWS % 2 + 2 * (COLUMNS % 3)).astype(np.uint8)
OWN_SIZE = {"scale": (8, 6)}  # at ratio 1


def test_a_window_mirrored() -> None:
    source = crops(PICTURE, LABEL, **OWN_SIZE, crop=4)
    levels, label, rng = drawn(source, 1.0, 2, 3, YES, *UNCHANGED)
    np.testing.assert_allclose(levels, PICTURE[2:6, 6:2:-1], atol=1e-3)
    np.testing.assert_array_equal(label, LABEL[2:6, 6:2:-1])
    assert rng.asked[:4] == [
        ("uniform", 0.5, 2.0),
        ("integers", 0, 3),
        ("integers", 0, 5),
        ("random", 0.0, 1.0),
    ]


def test_one_ratio_for_both_bounds_rounded_down() -> None:
    """(8, 6) times 0.7 is (5, 4), of 5.6 and 4.2: 6 x 8 becomes 4 x 5 (5 / 8 < 4 / 6: 3.75)."""
    source = crops(PICTURE, LABEL, **OWN_SIZE, crop=7)
    levels, label, _ = drawn(source, 0.7, 0, 0, NO, *UNCHANGED)
    np.testing.assert_array_equal(label != 255, np.pad(np.ones((4, 5), bool), ((0, 3), (0, 2))))
    rows, columns = (0, 1, 3, 4), (0, 1, 3, 4, 6)  # floor(n * 6 / 4), floor(n * 8 / 5)
    np.testing.assert_array_equal(label[:4, :5], LABEL[np.ix_(rows, columns)])
    # Centres (n + 0.5) * 8 / 5 - 0.5 = 0.3, 1.9, 3.5, 5.1, 6.7
    np.testing.assert_allclose(levels[0, :5, 1], [3, 19, 35, 51, 67], atol=1e-3)


@pytest.mark.parametrize(("padding", "value"), [("black", 0 * MEAN), ("mean", MEAN)])
def test_the_padding(padding: str, value: np.ndarray) -> None:
    """Black before the normalisation, or the mean colour, which is 0 after it; below and right."""
    source = crops(PICTURE, LABEL, **OWN_SIZE, crop=10, padding=padding)
    levels, label, _ = drawn(source, 1.0, 0, 0, NO, *UNCHANGED)
    np.testing.assert_allclose(levels[:6, :8], PICTURE, atol=1e-3)
    for part in (levels[6:], levels[:, 8:]):
        np.testing.assert_allclose(part, np.broadcast_to(value, part.shape), atol=1e-3)
    np.testing.assert_array_equal(label[:6, :8], LABEL)
    assert (label[6:] == 255).all()
    assert (label[:, 8:] == 255).all()


def test_colours_are_changed_after_the_crop_and_before_the_padding() -> None:
    source = crops(PICTURE, LABEL, **OWN_SIZE, crop=10)
    levels, _, _ = drawn(source, 1.0, 0, 0, NO, YES, 30.5, NO, NO, NO, NO)
    expected = np.minimum(PICTURE.astype(int) + 30, 255)
    np.testing.assert_allclose(levels[:6, :8], expected, atol=1e-3)
    np.testing.assert_allclose(levels[6:], 0, atol=1e-3)


def test_a_label_of_another_size_is_an_error() -> None:
    with pytest.raises(HubError, match=r"label/any: the label of one .*\(6, 7\).*\(6, 8\)"):
        crops(PICTURE, LABEL[:, 1:]).sample(0, np.random.default_rng(0))


HALVES = np.repeat(np.array([[1] * 8 + [2] * 4]), 4, 0).astype(np.uint8)  # 4 x 12


@pytest.mark.parametrize(
    ("lefts", "taken"),
    [
        ([6], 6),  # half of each class
        ([0, 4, 6], 6),  # class 1 alone, twice
        ([5, 7, 6], 6),  # 3 of 4 columns are not less than 0.75, whichever class it is
        ([0] * 10 + [4], 4),  # the eleventh is taken as it comes
    ],
)
def test_a_crop_with_too_much_of_one_class_is_drawn_again(lefts: list[int], taken: int) -> None:
    rng = Scripted([draw for left in lefts for draw in (0, left)])
    rows, columns = random_window(HALVES, 4, 0.75, rng)  # type: ignore[arg-type]
    assert not rng.draws
    assert (rows, columns) == (slice(0, 4), slice(taken, taken + 4))


def test_ignored_pixels_are_no_class() -> None:
    label = np.full((4, 8), 255, np.uint8)
    label[0, :4] = 1, 1, 2, 2
    label[1, 4:] = 3
    rng = Scripted([0, 4, 0, 0])  # one class and ignored ones; then two classes, half each
    assert random_window(label, 4, 0.75, rng)[1] == slice(0, 4)  # type: ignore[arg-type]
    assert not rng.draws


def test_without_a_limit_the_first_window_is_taken() -> None:
    rng = Scripted([0, 0])
    assert random_window(HALVES, 4, 1.0, rng) == (slice(0, 4), slice(0, 4))  # type: ignore[arg-type]


def by_hand(logits: Tensor, label: Tensor) -> Tensor:
    """The loss of each labelled pixel, in float64."""
    inside = label != 255
    scores = logits.double().movedim(1, -1)[inside]
    return torch.logsumexp(scores, 1) - scores[torch.arange(len(scores)), label[inside]]


@pytest.fixture
def scored() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    label = torch.randint(0, 5, (2, 6, 7))
    label[0, 2:] = 255
    return torch.randn(2, 5, 6, 7), label


@pytest.mark.numerical
def test_the_two_means_differ_in_what_they_divide_by(scored: tuple[Tensor, Tensor]) -> None:
    losses = by_hand(*scored)
    assert len(losses) == 2 * 42 - 28
    assert_close_in_norm(mean_over_all_pixels(*scored), losses.sum() / 84, FLOAT32)
    assert_close_in_norm(mean_over_labelled_pixels(*scored), losses.mean(), FLOAT32)


@pytest.mark.numerical
def test_the_recipe_names_the_mean_and_heads_have_weights(scored: tuple[Tensor, Tensor]) -> None:
    logits, label = scored
    losses = by_hand(logits, label)
    for flag, mean in ((False, losses.sum() / 84), (True, losses.mean())):
        recipe = replace(MMSegRecipe(), avg_non_ignore=flag)
        found = weighted_losses({"decode": logits, "aux": logits}, {"aux": 0.4}, label, recipe)
        assert_close_in_norm(found["decode"], mean, FLOAT32)
        assert_close_in_norm(found["aux"], 0.4 * mean, FLOAT32)


def test_logits_are_brought_to_the_label(scored: tuple[Tensor, Tensor]) -> None:
    """Constant planes stay what they are."""
    _, label = scored
    planes = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).view(1, 5, 1, 1)
    small, full = planes.expand(2, 5, 3, 2), planes.expand(2, 5, 6, 7)
    assert_close_in_norm(mean_over_all_pixels(small, label), by_hand(full, label).sum() / 84, 1e-6)


def test_labels_without_any_labelled_pixel_give_no_nan() -> None:
    logits, label = torch.randn(1, 5, 3, 3), torch.full((1, 3, 3), 255)
    assert mean_over_all_pixels(logits, label) == mean_over_labelled_pixels(logits, label) == 0


class Recorder:
    """A network of stride 1 whose logits are the red and green channels; it notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return image[:, :2]


RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def test_the_whole_image_at_the_size_of_the_test() -> None:
    network = Recorder()
    recipe = replace(MMSegRecipe(), test_scale=(100, 12))
    found = predict(network, RGB, recipe, "cpu")
    (image,) = network.seen
    assert image.shape == (1, 3, 12, 16)  # the short side has 12 pixels
    assert found.shape == (2, 6, 8)
    own = predict(network, RGB, replace(recipe, test_scale=(8, 6)), "cpu")
    np.testing.assert_array_equal(own.numpy(), imagenet_rgb(RGB)[:2])


def test_windows_cover_the_image_and_their_mean_is_taken() -> None:
    """11 columns, windows of 5 by 3: at 0, 3 and 6; 4 rows: at 0 alone."""
    starts: list[tuple[int, int]] = []

    def network(image: Tensor) -> Tensor:
        row, column = (int(image[0, channel, 0, 0]) for channel in (0, 1))
        starts.append((row, column))
        assert image.shape[2:] == (4, 5)
        return torch.full((1, 1, 4, 5), float(len(starts)))

    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(11.0), indexing="ij")
    image = torch.stack([rows, columns, rows])[None]
    recipe = replace(MMSegRecipe(), test_window=5, test_stride=3)
    found = slide(network, image, recipe)
    assert starts == [(0, 0), (0, 3), (0, 6)]
    expected = [1, 1, 1, 1.5, 1.5, 2, 2.5, 2.5, 3, 3, 3]
    np.testing.assert_array_equal(found[0, 0].numpy(), np.tile(expected, (4, 1)))


def test_the_last_window_lies_at_the_edge() -> None:
    image = torch.arange(13.0).expand(1, 3, 13, 13)
    seen = []

    def network(window: Tensor) -> Tensor:
        seen.append(int(window[0, 0, 0, 0]))
        return window

    recipe = replace(MMSegRecipe(), test_window=6, test_stride=4)
    found = slide(network, image, recipe)
    assert seen == [0, 4, 7] * 3
    np.testing.assert_array_equal(found.numpy(), image.numpy())


def test_sliding_by_name() -> None:
    network = Recorder()
    recipe = replace(
        MMSegRecipe(), test_mode="slide", test_scale=(8, 6), test_window=4, test_stride=4
    )
    found = predict(network, RGB, recipe, "cpu")
    assert [tuple(image.shape[2:]) for image in network.seen] == [(4, 4)] * 4
    np.testing.assert_array_equal(found.numpy(), imagenet_rgb(RGB)[:2])


def test_a_sliding_window_without_gaps() -> None:
    with pytest.raises(UsageError, match="test_stride=9, test_window=8"):
        MMSegRecipe(test_window=8, test_stride=9)


@pytest.mark.numerical
def test_several_scales_and_the_mirror_image() -> None:
    """The mean softmax of four views, each turned back and brought to the image's size."""
    network = Recorder()
    recipe = replace(MMSegRecipe(), test_ratios=(1.0, 2.0), test_flip=True)
    found = predict(network, RGB, recipe, "cpu")
    assert [tuple(image.shape[2:]) for image in network.seen] == [(6, 8)] * 2 + [(12, 16)] * 2
    one, mirrored, two, two_mirrored = network.seen
    assert torch.equal(mirrored, one.flip(3))
    assert torch.equal(two_mirrored, two.flip(3))
    # This network is blind to mirroring. Halving by bilinear sampling is the mean of 2 x 2.
    halved = two[0, :2].unflatten(1, (6, 2)).unflatten(3, (8, 2)).mean((2, 4))
    expected = (one[0, :2].double().softmax(0) + halved.double().softmax(0)) / 2
    assert_close_in_norm(found.exp(), expected, FLOAT32)
    assert_close_in_norm(found.double().exp().sum(0), torch.ones(6, 8), 100 * FLOAT64)


def test_mirrored_logits_are_turned_back() -> None:
    """A network that always says the left is class 0: with the mirror image it cannot tell."""

    def left(image: Tensor) -> Tensor:
        plane = torch.zeros(1, 2, *image.shape[2:])
        plane[:, 0, :, :4] = plane[:, 1, :, 4:] = 3.0
        return plane

    recipe = replace(MMSegRecipe(), test_scale=(8, 6), test_flip=True)
    found = predict(left, RGB, recipe, "cpu").exp()
    assert_close_in_norm(found, torch.full((2, 6, 8), 0.5), FLOAT32)
