"""The authors' label rules: their reference cases, each rule in words pixel by pixel, bad input."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, get_args

import conformance
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wsssbed_hub.artifacts.manifest import Rule
from wsssbed_hub.evaluation.method_rules import (
    RULES,
    label_drs,
    label_edam,
    useless_settings,
)
from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.utils.errors import UsageError

OAA_IN, OAA_OUT = conformance.load("cam-oaa-labels")
DRS_IN, DRS_OUT = conformance.load("cam-drs-labels")
EDAM_IN, EDAM_OUT = conformance.load("cam-edam-inference")


@pytest.mark.parametrize("rule", ["oaa", "mcis"])
def test_oaa_case(rule: Any) -> None:
    for number, label in enumerate(OAA_OUT[f"label_{rule}"]):
        there = (OAA_IN["label"][number] > 0) & (OAA_IN["missing"][number] == 0)
        (ids,) = np.nonzero(there)
        maps = OAA_IN["attention"][number][ids], ids, OAA_IN["saliency"][number]
        np.testing.assert_array_equal(pseudo_label(*maps, 0.3, rule=rule), label, f"image {number}")


@pytest.mark.parametrize("name", ["evaluation", "saved"])
def test_drs_case(name: str) -> None:
    for number, label in enumerate(DRS_OUT[f"label_{name}"]):
        (ids,) = np.nonzero(DRS_IN["label"][number])
        scores = DRS_IN["maps"][number][ids]
        found = label_drs(scores, ids, DRS_IN["saliency"][number], ignore=name == "saved")
        np.testing.assert_array_equal(found, label, f"image {number}")


# pred_crf has no part of the rule in it: the best of the CRF's classes, the background included.
@pytest.mark.parametrize(
    "name", sorted(name for name in EDAM_OUT if name.startswith("pred_") and name != "pred_crf")
)
def test_edam_case(name: str) -> None:
    """The maps themselves, and with saliency also what a CRF made of them."""
    settings = dict(named_number(part) for part in name.split("_") if part[-1].isdigit())
    ids, saliency = EDAM_OUT["classes"], EDAM_IN["saliency_uint8"]
    scores = EDAM_OUT["crf"][1:] if "crf" in name else EDAM_OUT["fused"]
    if "nosal" in name:
        found = label_edam(scores, ids, None, tau=settings["theta"])
    else:
        how = {"sal_threshold": settings["theta"], "beta": settings["beta"]}
        found = label_edam(scores, ids, saliency, tau=settings["alpha"], **how)
    np.testing.assert_array_equal(found, EDAM_OUT[name])


def named_number(part: str) -> tuple[str, float]:
    """``alpha1e-06``: the name and its number."""
    name = next(name for name in ("theta", "alpha", "beta") if part.startswith(name))
    return name, float(part.removeprefix(name))


@st.composite
def one_image(draw: st.DrawFn) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Few grey values, those beside the rules' levels among them, so that ties are common."""
    ids = draw(st.lists(st.integers(0, 253), max_size=4, unique=True))
    pixels = draw(st.integers(1, 8))
    near = [0, 20, 21, 31, 32, 50, 51, 76, 77, 229, 230, 242, 243, 255]
    greys = st.sampled_from([*draw(st.lists(st.integers(0, 255), min_size=1, max_size=3)), *near])
    count = (len(ids) + 1) * pixels
    flat = np.array(draw(st.lists(greys, min_size=count, max_size=count)), np.uint8)
    maps = flat.reshape(len(ids) + 1, 1, pixels)
    return maps[1:], ids, maps[0]


def best(scores: dict[int, Fraction], background: Fraction) -> int:
    """The label of the highest score; of equal ones the background's, then the lowest class'."""
    winner = min(scores, key=lambda c: (-scores[c], c), default=None)
    return 0 if winner is None or scores[winner] <= background else winner + 1


def oaa_in_words(
    activations: np.ndarray, ids: list[int], saliency: np.ndarray, tau: Fraction, levels: Any
) -> np.ndarray:
    """The six steps of the case's description, one pixel at a time, in exact fractions.

    The 1e-8 that keeps the stretching from dividing by 0 is part of it.
    """
    conflict, high = levels
    label = np.zeros(saliency.shape, np.uint8)
    for at in np.ndindex(label.shape):
        scores = {}
        for c, one in zip(ids, activations, strict=True):
            low, span = int(one.min()), int(one.max()) - int(one.min())
            scores[c] = Fraction(int(one[at]) - low) / (span + Fraction(1, 10**8))
        certain = saliency[at] >= 32 or any(score > high for score in scores.values())
        background = 1 - Fraction(int(saliency[at]), 255)
        background = background if background >= tau else Fraction(0)
        kept = {c: score if score >= tau else Fraction(0) for c, score in scores.items()}
        label[at] = best(kept, background)
        if sum(score > conflict for score in (background, *kept.values())) > 1 or (
            label[at] == 0 and certain
        ):
            label[at] = 255
    share = Fraction(int(((label != 0) & (label != 255)).sum()), label.size)
    return np.full_like(label, 255) if share < Fraction(1, 100) else label


@given(one_image(), st.sampled_from(["oaa", "mcis"]), st.integers(0, 999).filter(lambda k: k % 5))
def test_is_the_rule_of_oaa(image: tuple[Any, list[int], Any], rule: Any, tau: int) -> None:
    """tau lies beside every quotient of grey values, where float32 and fractions may differ."""
    activations, ids, saliency = image
    exact = Fraction(tau, 1000) + Fraction(1, 7919)
    levels = (
        (Fraction(9, 10), Fraction(8, 10))
        if rule == "oaa"
        else (Fraction(99, 100), Fraction(95, 100))
    )
    near = {
        (int(v) - int(one.min())) / max(1, int(one.max()) - int(one.min())) - level
        for one in activations
        for v in one.ravel()
        for level in map(float, (exact, *levels))
    }
    assume(all(abs(distance) > 1e-6 for distance in near))
    expected = oaa_in_words(activations, ids, saliency, exact, levels)
    found = pseudo_label(activations, np.array(ids), saliency, float(exact), rule=rule)
    np.testing.assert_array_equal(found, expected)


def drs_in_words(
    activations: np.ndarray, ids: list[int], saliency: np.ndarray, tau: float, ignore: bool
) -> np.ndarray:
    label = np.zeros(saliency.shape, np.uint8)
    for at in np.ndindex(label.shape):
        greys = {c: int(one[at]) for c, one in zip(ids, activations, strict=True)}
        kept = {c: Fraction(v, 255) if v / 255 >= tau else Fraction(0) for c, v in greys.items()}
        salient = saliency[at] > 50
        background = Fraction(0 if salient else 1)
        label[at] = best(kept, background)
        if ignore:
            crowd = sum(score > Fraction(9, 10) for score in (background, *kept.values()))
            if crowd > 2 or (salient and label[at] == 0):
                label[at] = 255
    return label


@given(one_image(), st.integers(0, 254), st.booleans())
def test_is_the_rule_of_drs(image: tuple[Any, list[int], Any], below: int, ignore: bool) -> None:
    activations, ids, saliency = image
    tau = (below + 0.5) / 255
    found = pseudo_label(activations, np.array(ids), saliency, tau, rule="drs", ignore=ignore)
    np.testing.assert_array_equal(found, drs_in_words(activations, ids, saliency, tau, ignore))


def edam_in_words(
    activations: np.ndarray,
    ids: list[int],
    saliency: np.ndarray,
    alpha: float,
    theta: float,
    beta: float,
) -> np.ndarray:
    """As the case's description: a pixel that is not salient is background unless a class is above
    beta; a salient one is the best class unless all are below alpha."""
    label = np.zeros(saliency.shape, np.uint8)
    for at in np.ndindex(label.shape):
        scores = {c: int(one[at]) / 255 for c, one in zip(ids, activations, strict=True)}
        above = [c for c in sorted(scores) if scores[c] > beta and scores[c] >= alpha]
        kept = {c: Fraction(score) for c, score in scores.items() if score >= alpha}
        if above:
            label[at] = above[0] + 1
        elif saliency[at] > theta * 100:
            label[at] = best(kept, Fraction(0))
    return label


@given(one_image(), st.integers(0, 254), st.integers(0, 254), st.integers(0, 100))
def test_is_the_rule_of_edam(
    image: tuple[Any, list[int], Any], below: int, above: int, theta: int
) -> None:
    activations, ids, saliency = image
    alpha, beta = (below + 0.5) / 255, (above + 0.5) / 255
    how = {"sal_threshold": theta / 100, "beta": beta}
    found = pseudo_label(activations, np.array(ids), saliency, alpha, rule="edam", **how)
    expected = edam_in_words(activations, ids, saliency, alpha, theta / 100, beta)
    np.testing.assert_array_equal(found, expected)


def test_edam_without_saliency_is_the_release() -> None:
    rng = np.random.default_rng(0)
    activations = rng.integers(0, 256, (3, 20, 30), np.uint8)
    for tau in (0.0, 0.4, 102 / 255, 0.5, 1.0):
        one, other = (
            pseudo_label(activations, [7, 2, 5], None, tau, rule=rule)
            for rule in ("edam", "release")
        )
        np.testing.assert_array_equal(one, other)


def test_equal_to_a_level_of_the_rules() -> None:
    """Salient is above 50 (DRS), above 20 (EDAM's 0.2); tau itself is enough: 51 is 0.2 of 255."""
    saliency = np.array([[20, 21, 50, 51]], np.uint8)
    activations = np.array([[[51, 51, 51, 51]]], np.uint8)
    assert pseudo_label(activations, [3], saliency, 0.2, rule="drs").tolist() == [[0, 0, 0, 4]]
    assert pseudo_label(activations, [3], saliency, 0.2, rule="edam").tolist() == [[0, 4, 4, 4]]


@pytest.mark.parametrize(("pixels", "ignored"), [(100, False), (101, True)])
def test_one_percent_of_an_image(pixels: int, ignored: bool) -> None:
    """One pixel of a class among many of background, none of them in doubt."""
    activations = np.zeros((1, 1, pixels), np.uint8)
    saliency = np.zeros((1, pixels), np.uint8)
    activations[..., 0], saliency[..., 0] = 200, 200
    expected = [255] * pixels if ignored else [1] + [0] * (pixels - 1)
    for rule in ("oaa", "mcis"):
        assert pseudo_label(activations, [0], saliency, 0.3, rule=rule).tolist() == [expected]


@pytest.mark.parametrize("rule", ["oaa", "mcis", "drs", "edam"])
def test_image_without_classes(rule: Any) -> None:
    none, saliency = np.zeros((0, 1, 3), np.uint8), np.array([[0, 31, 200]], np.uint8)
    expected = {"drs": [0, 0, 255], "edam": [0, 0, 0]}.get(rule, [255, 255, 255])
    assert pseudo_label(none, [], saliency, 0.25, rule=rule).tolist() == [expected]


def test_inputs_stay_as_they_are() -> None:
    activations = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    saliency = np.full((3, 4), 200, np.uint8)
    activations.flags.writeable = saliency.flags.writeable = False
    for rule in ("oaa", "drs", "edam"):
        pseudo_label(activations, [4, 1], saliency, 0.02, rule=rule)


A, S = np.zeros((1, 3, 4), np.uint8), np.zeros((3, 4), np.uint8)


@pytest.mark.parametrize(
    ("rule", "saliency", "settings", "words"),
    [
        ("oaa", None, {}, "oaa needs saliency maps"),
        ("mcis", None, {}, "mcis needs saliency maps"),
        ("drs", None, {}, "drs needs saliency maps"),
        ("oaa", S, {"ignore": False}, "oaa always ignores"),
        ("edam", S, {"beta": 1.5}, "beta is 1.5"),
    ],
)
def test_labels_that_a_rule_cannot_make(
    rule: Any, saliency: Any, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        pseudo_label(A, np.array([0]), saliency, 0.3, rule=rule, **settings)


def test_the_rules_have_the_same_names_everywhere() -> None:
    assert get_args(Rule) == RULES


@pytest.mark.parametrize(
    ("rule", "with_saliency"),
    [*((rule, True) for rule in RULES), ("paper", False), ("release", False), ("edam", False)],
)
def test_settings_that_are_said_to_be_useless_are(rule: Any, with_saliency: bool) -> None:
    """Of every setting: whether another value gives other labels, where the rule takes it."""
    rng = np.random.default_rng(1)
    activations = rng.choice(np.array([0, 60, 128, 240, 250, 255], np.uint8), (2, 20, 20))
    saliency = rng.choice(np.array([0, 10, 30, 60, 200], np.uint8), (20, 20))
    maps = (activations, np.array([1, 5]), saliency if with_saliency else None)
    useless = {
        name for names, _ in useless_settings(rule, saliency=with_saliency) for name in names
    }
    before = pseudo_label(*maps, 0.3, rule=rule)
    for name, value in (("sal_threshold", 0.9), ("ignore", False), ("beta", 0.3)):
        try:
            after = pseudo_label(*maps, 0.3, rule=rule, **{name: value})
        except UsageError:
            assert name in useless
            continue
        assert np.array_equal(before, after) == (name in useless), name
