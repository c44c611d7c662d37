"""Saliency measures: the reference case in both protocols, and maps that do not fit."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import conformance
import numpy as np
import pytest

from wsssbed_hub.evaluation.saliency_metrics import SaliencyMetrics, SSNetSaliencyMetrics, f_measure
from wsssbed_hub.utils.errors import HubError, UsageError

INPUTS, OUTPUTS = conformance.load("metrics-saliency")
PAIRS = sorted({name.split(".")[0] for name in INPUTS})
ORDINARY = ["good", "noisy", "inverted", "other_size", "gt_grey_pred_levels", "perfect"]
SETS = {"ALL": PAIRS, "ORDINARY": ORDINARY} | {pair: [pair] for pair in PAIRS}
TOLERANCE = 1e-6  # the case's


def score_of(program: str) -> SaliencyMetrics | SSNetSaliencyMetrics:
    if program == "pysodmetrics":
        return SaliencyMetrics(resize="nearest")
    return SSNetSaliencyMetrics(resize="nearest" if program == "jsws_nearest" else "bicubic")


@pytest.mark.parametrize(
    ("program", "name"), sorted({tuple(key.split(".")[:2]) for key in OUTPUTS})
)
def test_reference_case(program: str, name: str) -> None:
    prefix = f"{program}.{name}."
    expected = {key.removeprefix(prefix): v for key, v in OUTPUTS.items() if key.startswith(prefix)}
    score = score_of(program)
    for pair in SETS[name]:
        score.add(INPUTS[f"{pair}.pred"], INPUTS[f"{pair}.gt"], pair)
    actual: dict[str, Any] = {**score.result(), **score.curves()}
    for quantity, value in expected.items():
        np.testing.assert_allclose(
            actual[quantity], value, rtol=0, atol=TOLERANCE, err_msg=quantity
        )


def test_the_protocols_differ_as_described() -> None:
    """A white map: everything for one, nothing for the other."""
    truth = np.array([[255, 255, 255, 0]], np.uint8)
    white = np.full((1, 4), 255, np.uint8)
    ours, theirs = SaliencyMetrics(["mae"]), SSNetSaliencyMetrics()
    for score in (ours, theirs):
        score.add(white, truth, "white")
    assert ours.result()["mae"] == 1 / 4
    assert theirs.result()["mae"] == 3 / 4


def test_two_halves_together_are_the_whole() -> None:
    pairs = [(INPUTS[f"{pair}.pred"], INPUTS[f"{pair}.gt"], pair) for pair in PAIRS]
    whole, total = SSNetSaliencyMetrics(), SSNetSaliencyMetrics()
    halves = SSNetSaliencyMetrics(), SSNetSaliencyMetrics()
    for number, pair in enumerate(pairs):
        whole.add(*pair)
        halves[number % 2].add(*pair)
    for half in halves:
        total.merge(half)
    total.merge(SSNetSaliencyMetrics())
    assert total.images == whole.images
    assert total.result() == pytest.approx(whole.result(), rel=1e-12)  # another order of adding


def test_153_lies_below_the_threshold_of_three_fifths() -> None:
    score = SSNetSaliencyMetrics()
    prediction = np.array([[0, 153, 255]], np.uint8)
    score.add(prediction, np.array([[0, 255, 255]], np.uint8), "a")
    assert score.curves()["recall"][11:13].tolist() == [1, 0.5]


def test_only_the_measures_asked_for() -> None:
    score = SaliencyMetrics(["s", "mae"])
    score.add(INPUTS["good.pred"], INPUTS["good.gt"], "good")
    assert set(score.result()) == {"mae", "s_measure"}
    assert score.curves() == {}
    with pytest.raises(UsageError, match=r"no saliency measure 'auc'.*weighted_f"):
        SaliencyMetrics(["auc"])


def test_f_of_nothing_is_zero() -> None:
    assert f_measure(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("score", [SaliencyMetrics, lambda: SSNetSaliencyMetrics(resize=None)])
def test_maps_that_do_not_fit_are_named_and_not_counted(score: Any) -> None:
    score = score()
    grey = np.zeros((4, 5), np.uint8)
    for prediction, truth, words in (
        (grey[:3], grey, "saliency map is 3x5 and the mask 4x5"),
        (grey / 255, grey, r"saliency map must be uint8\[H, W\], not float64"),
        (grey, grey > 0, "mask must be uint8"),
        (grey[:0], grey[:0], r"uint8\[0, 5\]"),
    ):
        with pytest.raises(HubError, match=f"^sun_a: .*{words}"):
            score.add(prediction, truth, "sun_a")
    assert score.images == 0
    with pytest.raises(HubError, match="No saliency map"):
        score.result()


@pytest.mark.parametrize("score", [SaliencyMetrics, SSNetSaliencyMetrics])
def test_unknown_filter(score: Any) -> None:
    with pytest.raises(UsageError, match="resize is 'lanczos'"):
        score(resize="lanczos")


def test_pysodmetrics_is_imported_only_where_it_is_used() -> None:
    code = (
        "import sys; from wsssbed_hub.evaluation.saliency_metrics import SSNetSaliencyMetrics; "
        "SSNetSaliencyMetrics(); sys.exit('py_sod_metrics' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
