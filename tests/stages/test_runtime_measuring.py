"""Means over seeds, and what manifests state of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.runtime.measuring import in_words, mean_and_error, of_all_processes, results
from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.evaluation.metrics import SegmentationMetrics

HOW = {"split": "val", "initial": "random"}


def test_the_standard_error_is_that_of_the_mean() -> None:
    values = [0.1, 0.4, 0.7, 0.2]
    found = mean_and_error(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["standard_error"] == pytest.approx(np.std(values, ddof=1) / 2)
    assert mean_and_error([0.5]) == {"mean": 0.5, "standard_error": None}
    nothing = {"mean": None, "standard_error": None}
    assert mean_and_error([0.5, None]) == mean_and_error([]) == nothing
    assert in_words([0.5, 0.7]) == "0.6000 ± 0.1000 (2 seeds)"
    assert in_words([0.5]) == "0.5000"


def test_several_seeds_state_their_mean_and_each_its_own() -> None:
    values = {0: 0.2, 3: 0.4}
    mean, own = results("mIoU", values, 3, ["a", "b", "c"], note="by hand", **HOW)
    assert (mean.value, mean.seeds, mean.note) == (
        pytest.approx(0.3),
        [0, 3],
        "mean of 2 seeds, by hand",
    )
    assert mean.standard_error == pytest.approx(0.1)
    assert (own.value, own.seeds, own.standard_error) == (0.4, [3], None)
    assert own.note == "these weights alone, by hand"
    assert (own.images, own.image_list) == (3, list_digest(["a", "b", "c"]))
    assert (own.split, own.initial_weights, own.crf) == ("val", "random", False)
    assert len(results("IoU cat", values, 3, ["a"], own=False, **HOW)) == 1
    (refined,) = results("MAE", {1: 0.2}, 1, ["a"], crf=True, **HOW)
    assert (refined.crf, refined.note, refined.seeds) == (True, None, [1])
    (given,) = results("MAE", {None: 0.2}, None, ["a"], **HOW)
    assert given.seeds == []
    assert results("IoU dog", {0: 0.2, 3: None}, 3, ["a"], **HOW) == []


def test_one_process_has_the_whole_score() -> None:
    score = SegmentationMetrics(2)
    label = np.array([[0, 1], [2, 2]], np.uint8)
    score.add(label, label, "one")
    expected = score.as_dict() | {"images": 5}
    assert of_all_processes(score, 5, torch.device("cpu")) == expected
