"""How SSNet's output becomes labels and saliency maps; the output itself is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ssnets import Fixed, method, picture, red_square

from stages.ops.densecrf import SSNET
from stages.ssnet.ssnet import pseudo_scores

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("classes", [(), (0,), (3, 1), (0, 1, 2, 3, 4, 5)])
def test_pseudo_labels_obey_the_labels_of_the_image(classes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    one = method("M")
    network = Fixed((5 * torch.randn(7, 64, 64)).softmax(0))
    with torch.inference_mode():
        label, again = (
            one.pseudo_label(network, picture(classes=classes))  # type: ignore[arg-type]
            for _ in range(2)
        )
    assert (label.shape, label.dtype) == ((50, 70), np.uint8)
    assert set(np.unique(label)) <= {0, *(c + 1 for c in classes)}
    np.testing.assert_array_equal(label, again)


def test_a_network_that_is_sure_of_an_absent_class_gives_no_such_label() -> None:
    probability = torch.full((7, 64, 64), 1e-9)
    probability[2] = 1 - 6e-9
    label = method("M").pseudo_label(Fixed(probability), picture(classes=[4]))  # type: ignore[arg-type]
    assert set(np.unique(label)) <= {0, 5}


def test_the_label_is_refined_along_the_image() -> None:
    """A rough square of a class on a square of another colour fills that square after the CRF."""
    image = red_square([2])
    probability = torch.full((7, 64, 64), 0.02)
    probability[0], probability[3] = 0.7, 0.22
    probability[0, 20:44, 20:44], probability[3, 20:44, 20:44] = 0.22, 0.7
    with torch.inference_mode():
        label = method("M").pseudo_label(Fixed(probability), image)  # type: ignore[arg-type]
    expected = np.where(image.rgb[..., 0] > 0, 3, 0)
    assert (label == expected).mean() > 0.98
    assert ((probability.argmax(0).numpy() != 0) == (expected != 0)).mean() < 0.9


def test_segmentation_does_not_look_at_labels_or_neighbours() -> None:
    probability = torch.rand(7, 64, 64, generator=torch.Generator().manual_seed(0))
    label = method("MS").segmentation(Fixed(probability), picture(64, 64))  # type: ignore[arg-type]
    np.testing.assert_array_equal(label, probability.argmax(0))
    assert label.dtype == np.uint8
    larger = method("MS").segmentation(Fixed(probability), picture(128, 192))  # type: ignore[arg-type]
    np.testing.assert_array_equal(larger, label.repeat(2, 0).repeat(3, 1))


def test_saliency_maps_raw_and_refined() -> None:
    image = red_square()
    saliency = torch.full((64, 64), 0.3)
    saliency[20:44, 20:44] = 0.8
    network: Any = Fixed(torch.rand(7, 64, 64), saliency)
    raw = method("MM").saliency(network, image)
    np.testing.assert_array_equal(raw, np.rint(saliency.numpy() * 255).astype(np.uint8))
    refined = method("MM").saliency(network, image, SSNET)
    assert (refined.shape, refined.dtype) == ((64, 64), np.uint8)
    assert refined[18, 18] > 200  # of the red square, though not of the rough one
    assert refined[5, 5] < 30
    assert method("MM").saliency(network, picture(33, 47), SSNET).shape == (33, 47)


def test_the_marginals_of_masked_classes_are_nothing() -> None:
    scores = pseudo_scores(torch.rand(7, 16, 16).softmax(0), picture(16, 16).rgb, [1], SSNET)
    assert scores[[0, 2]].sum(0).min() > 0.9
    assert not scores[[1, 3, 4, 5, 6]].any()
