"""Whole artifacts against the truth: which images are asked for, and what counts as salient."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from samples import InMemory

from wsssbed_hub.evaluation.score import Foreground, MeanMask, score_labels, score_saliency
from wsssbed_hub.utils.errors import HubError


def label(maps: Mapping[str, np.ndarray]) -> InMemory:
    return InMemory("label", maps)


def grey(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


TRUTH = label({"a": grey([0, 1], [2, 255]), "b": grey([1, 1], [0, 0])})


def test_labels_are_scored_over_all_images_of_the_truth() -> None:
    labels = label({"a": grey([0, 1], [255, 7]), "b": grey([1, 0], [0, 0]), "c": grey([9])})
    score = score_labels(labels, TRUTH, num_classes=9, undecided=True)
    assert score.images == 2
    # By hand: truth 0 (3 pixels) all found, one of class 1 called background; class 2 ignored.
    assert score.confusion[0, 0] == 3
    assert score.confusion[1].tolist()[:2] == [1, 2]
    assert score.missed[2] == 1


def test_an_image_without_labels_is_named() -> None:
    with pytest.raises(HubError, match=r"1 of 2 images have no labels in given: b\."):
        score_labels(label({"a": grey([0, 0], [0, 0])}), TRUTH, num_classes=2, undecided=True)


def test_255_in_a_segmentation_is_an_error() -> None:
    labels = label({"a": grey([0, 1], [2, 0]), "b": grey([1, 255], [0, 0])})
    with pytest.raises(HubError, match="b"):
        score_labels(labels, TRUTH, num_classes=2, undecided=False)


def test_foreground_is_whatever_is_not_background() -> None:
    foreground = Foreground(TRUTH)
    assert foreground.image_ids == ["a", "b"]
    assert foreground.read("a").tolist() == [[0, 255], [255, 255]]


def test_saliency_measures_that_were_asked_for() -> None:
    truth = Foreground(TRUTH)
    perfect = InMemory("sal", {name: truth.read(name) for name in truth.image_ids})
    seen = []
    measures = score_saliency(
        perfect, truth, measures=("mae",), progress=lambda done, of: seen.append((done, of))
    )
    assert measures == {"mae": 0}
    assert seen == [(1, 2), (2, 2)]
    assert set(score_saliency(perfect, truth, protocol="ssnet")) >= {"mae", "max_f"}


class TwoMasks:
    """Two masks of a SOD dataset: the left half, and everything."""

    image_ids = ("half", "whole")

    def __len__(self) -> int:
        return 2

    def read_mask(self, image_id: str) -> np.ndarray:
        mask = np.full((40, 80), 255, dtype=np.uint8)
        if image_id == "half":
            mask[:, 40:] = 0
        return mask


def test_the_mean_mask_has_the_size_of_each_image() -> None:
    sizes = label({"a": np.zeros((30, 20), np.uint8), "b": np.zeros((512, 600), np.uint8)})
    mean = MeanMask(TwoMasks(), sizes)  # type: ignore[arg-type]
    assert mean.image_ids == ["a", "b"]
    for name in ("a", "b"):
        grey = mean.read(name)
        assert grey.shape == sizes.read(name).shape
        assert grey.dtype == np.uint8
        quarter = grey.shape[1] // 4
        assert (grey[:, :quarter] == 255).all()
        assert np.isin(grey[:, -quarter:], (127, 128)).all()  # the mean of 0 and 255, rounded
