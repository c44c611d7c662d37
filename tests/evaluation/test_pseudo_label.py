"""Pseudo labels: the reference cases to the bit, Algorithm 1 pixel by pixel, and bad input."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import conformance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.utils.errors import HubError, UsageError

RELEASE_INPUTS, RELEASE_OUTPUTS = conformance.load("labels-release")
PAPER_INPUTS, PAPER_OUTPUTS = conformance.load("labels-paper")


def settings(name: str) -> tuple[bool, dict[str, Any]]:
    """Whether a setting of labels-release has saliency, and its arguments."""
    mode, *numbers = name.replace("salthresh", "tau").split("_tau")
    arguments: dict[str, Any] = {"tau": float(numbers[0])}
    if len(numbers) > 1:
        arguments["sal_threshold"] = float(numbers[1])
    arguments["ignore"] = mode.endswith("_ignore")
    return not mode.startswith("wosal"), arguments


@pytest.mark.parametrize("setting", sorted({name.split(".", 1)[1] for name in RELEASE_OUTPUTS}))
def test_release_case(setting: str) -> None:
    with_saliency, arguments = settings(setting)
    names = [name for name in RELEASE_OUTPUTS if name.split(".", 1)[1] == setting]
    assert names
    for name in names:
        image = name.split(".", 1)[0]
        label = pseudo_label(
            RELEASE_INPUTS[f"{image}.activation"],
            RELEASE_INPUTS[f"{image}.classes"],
            RELEASE_INPUTS[f"{image}.saliency"] if with_saliency else None,
            **arguments,
            rule="release",
        )
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, RELEASE_OUTPUTS[name], name)


def test_all_settings_of_the_release_are_read() -> None:
    assert settings("soft_noignore_tau0.2_salthresh0.0") == (
        True,
        {"tau": 0.2, "sal_threshold": 0.0, "ignore": False},
    )
    assert settings("sal_ignore_tau0.5") == (True, {"tau": 0.5, "ignore": True})
    assert settings("wosal_tau0.3") == (False, {"tau": 0.3, "ignore": False})


@pytest.mark.parametrize("name", sorted(PAPER_OUTPUTS))
def test_paper_case(name: str) -> None:
    image, tau = name.split(".tau")
    maps = [PAPER_INPUTS[f"{image}.{part}"] for part in ("activation", "classes", "saliency")]
    np.testing.assert_array_equal(pseudo_label(*maps, float(tau)), PAPER_OUTPUTS[name])


@pytest.mark.parametrize("grey", range(256))
def test_equality_at_every_grey_value(grey: int) -> None:
    """tau = k/255 is met exactly by grey value k, in both precisions."""
    activations = np.array([[[max(0, grey - 1), grey, min(255, grey + 1)]]], np.uint8)
    saliency = np.full((1, 3), 255, np.uint8)
    above = 255 if grey == 255 else 1  # there is no grey value above 255

    def label(sal: np.ndarray | None, rule: Any) -> list[int]:
        return pseudo_label(activations, [0], sal, grey / 255, rule=rule)[0].tolist()

    assert label(saliency, "paper") == [255, 255, above]
    assert label(saliency, "release") == [255, 1 if grey else 255, 1]
    assert label(None, "paper") == label(None, "release") == [0, 0, above % 255]


def algorithm_1(
    activations: np.ndarray,
    class_ids: list[int],
    saliency: np.ndarray | None,
    tau: Fraction,
    sal_threshold: Fraction,
    ignore: bool,
) -> np.ndarray:
    """The paper's rule, one pixel at a time, in exact fractions."""
    label = np.zeros(activations.shape[1:], np.uint8)
    for y, x in np.ndindex(label.shape):
        scores = {
            c: Fraction(int(a[y, x]), 255) for c, a in zip(class_ids, activations, strict=True)
        }
        scores = {c: a for c, a in scores.items() if a > tau}
        background, salient = Fraction(0), False
        if saliency is not None:
            grey = Fraction(int(saliency[y, x]), 255)
            salient = grey > sal_threshold
            background = 1 - grey if sal_threshold == 0 else Fraction(int(not salient))
        best = max(scores, key=lambda c: (scores[c], -c), default=None)
        if best is not None and scores[best] > background:
            label[y, x] = best + 1
        elif salient and ignore:
            label[y, x] = 255
    return label


GREYS = st.integers(0, 255)


@st.composite
def one_image(draw: st.DrawFn) -> tuple[np.ndarray, list[int], np.ndarray]:
    ids = draw(st.lists(st.integers(0, 253), max_size=4, unique=True))
    pixels = draw(st.integers(1, 8))
    # Few grey values, so that ties and sums of 255 are common.
    greys = st.sampled_from([*draw(st.lists(GREYS, min_size=1, max_size=3)), 0, 255])
    count = (len(ids) + 1) * pixels
    flat = np.array(draw(st.lists(greys, min_size=count, max_size=count)), np.uint8)
    maps = flat.reshape(len(ids) + 1, 1, pixels)
    return maps[1:], ids, maps[0]


@given(one_image(), GREYS, GREYS, st.booleans(), st.booleans())
def test_is_algorithm_1(
    image: tuple[np.ndarray, list[int], np.ndarray],
    tau: int,
    sal_threshold: int,
    ignore: bool,
    with_saliency: bool,
) -> None:
    activations, ids, saliency = image
    given_saliency = saliency if with_saliency else None
    label = pseudo_label(
        activations,
        np.array(ids),
        given_saliency,
        tau / 255,
        sal_threshold=sal_threshold / 255,
        ignore=ignore,
    )
    expected = algorithm_1(
        activations,
        ids,
        given_saliency,
        Fraction(tau, 255),
        Fraction(sal_threshold, 255),
        ignore,
    )
    np.testing.assert_array_equal(label, expected)


def release_rule(
    activations: np.ndarray,
    class_ids: list[int],
    saliency: np.ndarray | None,
    tau: float,
    sal_threshold: float,
    ignore: bool,
) -> np.ndarray:
    """The six steps of the reference case's description, with a score for every class."""
    scores = np.zeros((255, *activations.shape[1:]), np.float32)
    scores[[c + 1 for c in class_ids]] = activations.astype(np.float32) / np.float32(255)
    if saliency is None:
        scores[0] = tau
        return scores.argmax(axis=0).astype(np.uint8)
    soft = saliency.astype(np.float32) / np.float32(255)
    salient = soft > np.float32(sal_threshold)
    scores[1:][scores[1:] < np.float32(tau)] = 0
    scores[0] = 1 - (soft if sal_threshold == 0 else salient.astype(np.float32))
    label = scores.argmax(axis=0).astype(np.uint8)
    return np.where((label == 0) & salient & ignore, np.uint8(255), label)


@given(one_image(), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans())
def test_is_the_release(
    image: tuple[np.ndarray, list[int], np.ndarray],
    tau: float,
    sal_threshold: float,
    ignore: bool,
    with_saliency: bool,
) -> None:
    activations, ids, saliency = image
    maps = (activations, ids, saliency if with_saliency else None)
    for threshold in (sal_threshold, 0):
        label = pseudo_label(*maps, tau, sal_threshold=threshold, rule="release", ignore=ignore)
        expected = release_rule(*maps, tau, threshold, ignore)
        np.testing.assert_array_equal(label, expected)


@given(one_image(), GREYS, st.sampled_from(["paper", "release"]), st.randoms())
def test_order_of_the_classes_does_not_matter(
    image: tuple[np.ndarray, list[int], np.ndarray], tau: int, rule: Any, random: Any
) -> None:
    activations, ids, saliency = image
    order = list(range(len(ids)))
    random.shuffle(order)
    label = pseudo_label(activations, np.array(ids), saliency, tau / 255, rule=rule)
    again = pseudo_label(activations[order], np.array(ids)[order], saliency, tau / 255, rule=rule)
    np.testing.assert_array_equal(label, again)


@pytest.mark.parametrize("rule", ["paper", "release"])
def test_image_without_classes(rule: Any) -> None:
    none, saliency = np.zeros((0, 1, 3), np.uint8), np.array([[0, 51, 52]], np.uint8)
    assert pseudo_label(none, [], saliency, 0, rule=rule).tolist() == [[0, 0, 255]]
    assert pseudo_label(none, [], saliency, 0, rule=rule, ignore=False).tolist() == [[0, 0, 0]]
    soft = pseudo_label(none, [], saliency, 0, rule=rule, sal_threshold=0)
    assert soft.tolist() == [[0, 255, 255]]
    assert pseudo_label(none, [], None, 0, rule=rule).tolist() == [[0, 0, 0]]


def test_inputs_stay_as_they_are() -> None:
    activations = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    saliency = np.full((3, 4), 200, np.uint8)
    activations.flags.writeable = saliency.flags.writeable = False
    for ids in ([4], [4, 1]):
        label = pseudo_label(activations[: len(ids)], ids, saliency, 0.02)
        assert label.flags.writeable


A, S = np.zeros((2, 3, 4), np.uint8), np.zeros((3, 4), np.uint8)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ((A.astype(float), [0, 1], S), "float64"),
        ((A[0], [0, 1], S), r"not uint8\[3, 4\]"),
        ((A, [0], S), "2 activation maps"),
        ((A, [[0, 1]], S), r"shape \[1, 2\]"),
        ((A, [0.0, 1.0], S), "integers, not float64"),
        ((A, [3, 3], S), r"twice: \[3, 3\]"),
        ((A, [-1, 3], S), "0 to 253"),
        ((A, [3, 254], S), "0 to 253"),
        ((A, [0, 1], S.astype(np.int64)), "int64"),
        ((A, [0, 1], A), r"not uint8\[2, 3, 4\]"),
        ((A, [0, 1], S.T), "4x3 and the activation maps are 3x4"),
    ],
)
def test_maps_that_do_not_fit(maps: tuple[Any, Any, Any], words: str) -> None:
    activations, ids, saliency = maps
    with pytest.raises(HubError, match=words) as caught:
        pseudo_label(activations, np.array(ids), saliency, 0.1)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("number", [-0.1, 1.1, 51, float("nan"), float("inf"), "0.2", True, None])
@pytest.mark.parametrize("name", ["tau", "sal_threshold"])
def test_numbers_out_of_range(name: str, number: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} is "):
        pseudo_label(A, np.array([0, 1]), S, **{"tau": 0.1, name: number})


def test_unknown_rule() -> None:
    with pytest.raises(UsageError, match="Did you mean 'release'"):
        pseudo_label(A, np.array([0, 1]), S, 0.1, rule="relaese")  # type: ignore[arg-type]


def test_highest_class_and_highest_thresholds() -> None:
    white = np.full((1, 1, 1), 255, np.uint8)
    assert pseudo_label(white, [253], white[0], 0.5).tolist() == [[254]]
    assert pseudo_label(white, [253], white[0], 0.5, sal_threshold=1).tolist() == [[0]]
    assert pseudo_label(white, [253], white[0], 1).tolist() == [[255]]
    assert pseudo_label(white, [253], white[0], 1, rule="release").tolist() == [[254]]
