"""Segmentation measures: the reference case, its conventions, and what is no prediction."""

from __future__ import annotations

import json
from typing import Any

import conformance
import numpy as np
import pytest

from wsssbed_hub.evaluation.metrics import CONVENTIONS, SegmentationMetrics, class_iou, mean_iou
from wsssbed_hub.utils.errors import HubError, UsageError

INPUTS, OUTPUTS = conformance.load("metrics-segmentation")
SETS = sorted({name.split(".")[0] for name in INPUTS})
# What each published program does with 255 in predictions and with other sizes. The release has no
# check at all and counts a 255 in the wrong place; we reject it, as the VOC kit does.
SCORES: dict[str, dict[str, Any]] = {
    "stream": {},
    "crf_scores": {},
    "voc": {},
    "jsws": {"undecided": "missed", "resize": "nearest"},
}
REJECTED_ON_PURPOSE = {("voc_pred255_low", "stream"), ("voc_pred255_low", "crf_scores")}
RATIO = 1e-9  # the case's tolerance


def score_set(name: str, **options: Any) -> SegmentationMetrics:
    score = SegmentationMetrics(int(INPUTS[f"{name}.n_classes"]) - 1, **options)
    number = 0
    while f"{name}.gt{number}" in INPUTS:
        score.add(INPUTS[f"{name}.pred{number}"], INPUTS[f"{name}.gt{number}"], f"image{number}")
        number += 1
    assert score.images == number > 0
    return score


IN_JSON = {
    "mean_iou": "miou",
    "class_iou": "class_iou",
    "overall_acc": "pixel_accuracy",
    "mean_acc": "mean_accuracy",
    "freqw_iou": "frequency_weighted_iou",
}
COUNTS = ("confusion", "intersection", "union")


@pytest.mark.parametrize("program", SCORES)
@pytest.mark.parametrize("name", SETS)
def test_reference_case(name: str, program: Any) -> None:
    expected = {
        key.split(".")[2]: value
        for key, value in OUTPUTS.items()
        if key.startswith(f"{name}.{program}.")
    }
    if expected.pop("failed") or (name, program) in REJECTED_ON_PURPOSE:
        with pytest.raises(HubError, match=r"^image\d: the prediction"):
            score_set(name, **SCORES[program])
        return
    score = score_set(name, **SCORES[program])
    measures = score.as_dict(program)
    assert expected
    for quantity, value in expected.items():
        if quantity in COUNTS:
            np.testing.assert_array_equal(getattr(score, quantity), value, quantity)
            continue
        actual = np.array(measures[IN_JSON[quantity]], float)  # null becomes NaN
        np.testing.assert_allclose(actual, value, rtol=0, atol=RATIO, err_msg=quantity)


def test_where_the_conventions_part() -> None:
    """Class 0 halved, class 1 right, class 2 only predicted, class 3 nowhere."""
    score = SegmentationMetrics(3)
    score.add(np.array([[0, 2, 1, 1]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8), "a")
    assert [score.mean_iou(convention) for convention in CONVENTIONS] == pytest.approx(
        [(0.5 + 1 + 0) / 3, (0.5 + 1) / 2, (0.5 + 1 + 0 + 0) / 4, np.nan], nan_ok=True
    )
    with pytest.raises(UsageError, match="convention 'coco'"):
        score.as_dict("coco")  # type: ignore[arg-type]


def test_missed_pixels_are_false_negatives_and_no_false_positives() -> None:
    score = SegmentationMetrics(1, undecided="missed")
    score.add(
        np.array([[0, 255, 1, 255, 255]], np.uint8), np.array([[0, 0, 1, 1, 255]], np.uint8), "a"
    )
    assert score.missed.tolist() == [1, 1]
    assert score.class_iou.tolist() == [0.5, 0.5]
    assert score.coverage == score.pixel_accuracy == score.mean_accuracy == 0.5
    assert class_iou(score.confusion).tolist() == [1, 1]


def test_many_matrices_at_once() -> None:
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 9, (5, 2, 4, 4))
    missed = rng.integers(0, 9, (5, 2, 4))
    confusion[3, 1] = missed[3, 1] = 0
    for convention in CONVENTIONS:
        together = mean_iou(confusion, missed, convention)
        for index in np.ndindex(5, 2):
            alone = mean_iou(confusion[index], missed[index], convention)
            np.testing.assert_array_equal(together[index], alone)


GOOD = np.array([[0, 1, 2]], np.uint8)


@pytest.mark.parametrize(
    ("prediction", "truth", "words"),
    [
        (np.array([[0, 1, 3]], np.uint8), GOOD, "prediction has the value 3, .* from 0 to 2"),
        (np.array([[0, 1, 255]], np.uint8), GOOD, "value 255.*counted as missed"),
        # Even where the truth is 255, as the VOC kit has it.
        (np.array([[0, 1, 255]], np.uint8), np.array([[0, 1, 255]], np.uint8), "value 255"),
        (GOOD, np.array([[0, 1, 7]], np.uint8), "truth has the value 7.*another target"),
        (GOOD, np.array([[0, 1]], np.uint8), "prediction is 1x3 and the ground truth 1x2"),
        (GOOD.astype(np.int64), GOOD, "prediction must be uint8"),
        (GOOD, GOOD[0], "truth must be uint8"),
    ],
)
def test_what_is_no_prediction_is_named_and_not_counted(
    prediction: np.ndarray, truth: np.ndarray, words: str
) -> None:
    score = SegmentationMetrics(2)
    score.add(GOOD, GOOD, "first")
    with pytest.raises(HubError, match=f"^2007_000032: .*{words}"):
        score.add(prediction, truth, "2007_000032")
    assert score.images == 1
    assert score.confusion.tolist() == np.eye(3).tolist()


def test_other_values_are_an_error_even_where_255_is_missed() -> None:
    score = SegmentationMetrics(2, undecided="missed")
    with pytest.raises(HubError, match=r"value 254, and classes go from 0 to 2\.$"):
        score.add(np.array([[0, 254, 255]], np.uint8), GOOD, "a")


@pytest.mark.parametrize(
    "options",
    [{"num_classes": 0}, {"num_classes": 255}, {"undecided": "maybe"}, {"resize": "bicubic"}],
)
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SegmentationMetrics(**{"num_classes": 2, **options})


def test_as_json() -> None:
    score = SegmentationMetrics(3)
    empty = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert empty["miou"] is None
    assert empty["pixel_accuracy"] is None
    score.add(GOOD, GOOD, "a")
    full = json.loads(json.dumps(score.as_dict("jsws"), allow_nan=False))
    assert full["miou"] == 0.75
    assert full["class_iou"] == [1, 1, 1, 0]
    assert full["convention"] == "jsws"
    assert score.as_dict()["class_iou"] == [1, 1, 1, None]
    assert full["images"] == 1
