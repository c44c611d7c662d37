"""Curves: equal to labelling and scoring at each threshold, and what is read off them."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import conformance
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from samples import InMemory

from wsssbed_hub.evaluation.curves import CRITERIA, ThresholdCurve, _Histogram, threshold_curve
from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.utils.errors import HubError, UsageError

RULES = ("paper", "release", "drs", "edam")
INPUTS, _ = conformance.load("labels-release")


def given_maps(maps: dict[str, Any], name: str = "given") -> InMemory:
    """Maps in memory; the curve asks for no kind."""
    return InMemory("", maps, name)


def label_and_score(
    images: list[tuple[Any, Any, Any, Any]],
    num_classes: int,
    tau: float,
    **settings: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrix and ignored pixels of (truth, activations, class ids, saliency) at tau."""
    counts = np.zeros((256, 256), np.int64)
    for truth, activations, class_ids, saliency in images:
        label = pseudo_label(activations, class_ids, saliency, tau, **settings)
        np.add.at(counts, (truth.ravel(), label.ravel()), 1)
    known = slice(0, num_classes + 1)
    return counts[known, known], counts[known, 255]


def check_every_threshold(
    images: list[tuple[Any, Any, Any, Any]], num_classes: int, **settings: Any
) -> ThresholdCurve:
    names = [f"image{number}" for number in range(len(images))]
    truths, activations, ids, saliencies = zip(*images, strict=True)
    curve = threshold_curve(
        given_maps(dict(zip(names, zip(activations, ids, strict=True), strict=True))),
        given_maps(dict(zip(names, truths, strict=True))),
        None if saliencies[0] is None else given_maps(dict(zip(names, saliencies, strict=True))),
        num_classes=num_classes,
        **settings,
    )
    assert curve.images == len(images)
    np.testing.assert_array_equal(curve.thresholds, [k / 255 for k in range(256)])
    for index, tau in enumerate(curve.thresholds):
        confusion, ignored = label_and_score(images, num_classes, tau, **settings)
        np.testing.assert_array_equal(curve.confusion[index], confusion, f"tau {index}/255")
        np.testing.assert_array_equal(curve.ignored[index], ignored, f"tau {index}/255")
    return curve


@st.composite
def some_images(draw: st.DrawFn) -> tuple[int, list[tuple[Any, Any, Any, Any]]]:
    num_classes = draw(st.integers(1, 6))
    few = draw(st.lists(st.integers(0, 255), min_size=1, max_size=5))  # so that ties are common
    greys = st.sampled_from([*few, 0, 255])
    with_saliency = draw(st.booleans())
    images = []
    for _ in range(draw(st.integers(1, 3))):
        ids = draw(st.lists(st.integers(0, num_classes - 1), max_size=4, unique=True))
        pixels = draw(st.integers(1, 12))
        count = (len(ids) + 1) * pixels
        flat = np.array(draw(st.lists(greys, min_size=count, max_size=count)), np.uint8)
        maps = flat.reshape(len(ids) + 1, 1, pixels)
        values = st.sampled_from([*range(num_classes + 1), 255])
        truth = np.array([draw(st.lists(values, min_size=pixels, max_size=pixels))], np.uint8)
        saliency = maps[0] if with_saliency else None
        images.append((truth, maps[1:], np.array(ids, np.int64), saliency))
    return num_classes, images


@given(
    some_images(),
    st.sampled_from(RULES),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]) | st.integers(0, 255).map(lambda k: k / 255),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]) | st.integers(0, 255).map(lambda k: k / 255),
)
@hypothesis_settings(max_examples=60)
def test_equals_labelling_and_scoring(
    case: tuple[int, list[tuple[Any, Any, Any, Any]]], rule: str, sal_threshold: float, beta: float
) -> None:
    num_classes, images = case
    assume(rule != "drs" or images[0][-1] is not None)
    how = {"sal_threshold": sal_threshold, "beta": beta}
    check_every_threshold(images, num_classes, rule=rule, **how)


def reference_images(prefix: str, num_classes: int, saliency: bool) -> list[Any]:
    """The inputs of labels-release with a truth that has something to do with them."""
    rng = np.random.default_rng(0)
    images = []
    for name in sorted({key.split(".")[0] for key in INPUTS if key.startswith(prefix)}):
        maps = [INPUTS[f"{name}.{part}"] for part in ("activation", "classes", "saliency")]
        truth = np.where(maps[0].max(axis=0) > 100, maps[1][maps[0].argmax(axis=0)] + 1, 0)
        noise = rng.integers(0, num_classes + 1, truth.shape)
        truth = np.where(rng.random(truth.shape) < 0.2, noise, truth).astype(np.uint8)
        truth[rng.random(truth.shape) < 0.1] = 255
        images.append((truth, maps[0], maps[1], maps[2] if saliency else None))
    return images


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sal_threshold", [0.2, 0.0, None])
@pytest.mark.parametrize(("prefix", "num_classes"), [("img", 20), ("coco", 80)])
def test_equals_on_the_reference_inputs(
    prefix: str, num_classes: int, sal_threshold: float | None, rule: str
) -> None:
    if rule == "drs" and sal_threshold is None:
        pytest.skip("DRS makes no labels without saliency")
    images = reference_images(prefix, num_classes, sal_threshold is not None)
    settings: dict[str, Any] = {"rule": rule}
    if sal_threshold is not None:
        settings["sal_threshold"] = sal_threshold
    curve = check_every_threshold(images, num_classes, **settings)
    assert curve.sal_threshold == (50 / 255 if rule == "drs" else sal_threshold)
    if sal_threshold is None:
        assert not curve.ignored.any()


def test_more_classes_in_an_image_than_fit_into_a_byte() -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.arange(400, dtype=np.int64) % 31).astype(np.uint8).reshape(20, 20)
    activations = rng.integers(0, 256, (30, 20, 20), dtype=np.uint8)
    saliency = rng.integers(0, 256, (20, 20), dtype=np.uint8)
    check_every_threshold([(truth, activations, rng.permutation(30), saliency)], 30)


def test_memory_of_an_image_does_not_depend_on_absent_classes() -> None:
    activations = np.full((1, 20, 20), 7, np.uint8)
    truth = np.ones((20, 20), np.uint8)
    peaks = []
    for num_classes in (1, 254):
        histogram = _Histogram(num_classes, 0.2, "paper")
        histogram.add(truth, activations, np.array([0]), activations[0])  # fills numpy's caches
        tracemalloc.start()
        histogram.add(truth, activations, np.array([0]), activations[0])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The tables of 254 classes would take 254 * 256 * 8 bytes more for each true class.
    assert peaks[1] < peaks[0] + 10_000


def by_hand() -> ThresholdCurve:
    """Six pixels: background, four of class 0 with value 10, 10, 20 and 40, one without truth."""
    activations = np.array([[[0, 10, 10, 20, 40, 9]]], np.uint8)
    saliency = np.array([[0, 255, 255, 255, 255, 255]], np.uint8)
    truth = np.array([[0, 1, 0, 1, 1, 255]], np.uint8)
    cam = given_maps({"a": (activations, np.array([0]))})
    return threshold_curve(
        cam, given_maps({"a": truth}), given_maps({"a": saliency}), num_classes=2
    )


def test_numbers_by_hand() -> None:
    curve = by_hand()
    # At tau 0 the class takes all four: 3 right, 1 wrong; the background keeps 1 of its 2.
    np.testing.assert_array_equal(curve.iou[0], [1 / 2, 3 / 4, np.nan])
    assert curve.miou[0] == curve.miou_ignored_missed[0] == 5 / 8
    assert curve.coverage[0] == 1
    # From tau = 10/255 the two pixels of value 10 are ignored, one of each true class.
    np.testing.assert_array_equal(curve.iou[10], [1, 1, np.nan])
    assert curve.miou[10] == 1
    assert curve.miou_ignored_missed[10] == (1 / 2 + 2 / 3) / 2
    assert curve.coverage[10] == 3 / 5
    # From 40/255 no object is labelled: class 0 is no longer in the mean over labelled pixels.
    np.testing.assert_array_equal(curve.iou[40], [1, np.nan, np.nan])
    assert curve.miou[40] == 1
    assert curve.miou_ignored_missed[40] == (1 / 2 + 0) / 2


def test_best_is_the_lowest_of_equals_by_the_criterion_asked_for() -> None:
    curve = by_hand()
    assert curve.best_index() == 0
    assert curve.best_index("miou") == 10
    assert curve.best_tau("miou") == 10 / 255
    with pytest.raises(UsageError, match=r"criterion 'iou'.*miou_ignored_missed"):
        curve.best_index("iou")  # type: ignore[arg-type]


@given(st.floats(0, 1), st.sampled_from(RULES), st.booleans())
def test_every_tau_has_an_index(tau: float, rule: Any, with_saliency: bool) -> None:
    assume(rule != "drs" or with_saliency)
    greys = np.arange(256, dtype=np.uint8).reshape(1, 1, 256)
    truth = np.ones((1, 256), np.uint8)
    saliency = np.full((1, 256), 255, np.uint8) if with_saliency else None
    images = [(truth, greys, np.array([0]), saliency)]
    curve = threshold_curve(
        given_maps({"a": (greys, np.array([0]))}),
        given_maps({"a": truth}),
        given_maps({"a": saliency}) if with_saliency else None,
        num_classes=1,
        rule=rule,
    )
    confusion, ignored = label_and_score(images, 1, tau, rule=rule)
    index = curve.index_of(tau)
    np.testing.assert_array_equal(curve.confusion[index], confusion)
    np.testing.assert_array_equal(curve.ignored[index], ignored)
    assert curve.row(tau)["coverage"] == curve.coverage[index]


def test_as_json() -> None:
    curve = by_hand()
    read = json.loads(json.dumps(curve.as_dict(), allow_nan=False))
    assert read["images"] == 1
    assert len(read["thresholds"]) == len(read["miou"]) == len(read["iou"]) == 256
    assert read["iou"][0] == [0.5, 0.75, None]
    assert set(read["best"]) == set(CRITERIA)
    assert read["best"]["miou"] == {
        "tau": 10 / 255,
        "miou_ignored_missed": (1 / 2 + 2 / 3) / 2,
        "miou": 1.0,
        "coverage": 0.6,
    }


CAM = given_maps(
    {name: (np.zeros((1, 2, 2), np.uint8), np.array([1])) for name in "abcdef"}, "cam/x"
)
TRUTH = given_maps({name: np.zeros((2, 2), np.uint8) for name in "abcdef"})
SAL = given_maps({name: np.zeros((2, 2), np.uint8) for name in "abcdef"}, "sal/y")


def test_maps_may_cover_more_images_than_the_truth() -> None:
    steps: list[tuple[int, int]] = []
    curve = threshold_curve(
        CAM,
        given_maps({"b": TRUTH.read("b"), "d": TRUTH.read("d")}),
        SAL,
        num_classes=2,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert curve.confusion[0].sum() == 8
    assert steps == [(1, 2), (2, 2)]


def test_missing_images_are_named() -> None:
    few = given_maps({"a": CAM.read("a")}, "cam/few")
    with pytest.raises(HubError, match=r"5 of 6 .* activation maps in cam/few: b, c, d, \.\.\."):
        threshold_curve(few, TRUTH, SAL, num_classes=2)
    one = given_maps({name: SAL.read(name) for name in "abcde"}, "sal/few")
    with pytest.raises(HubError, match=r"1 of 6 .* saliency maps in sal/few: f\."):
        threshold_curve(CAM, TRUTH, one, num_classes=2)


@pytest.mark.parametrize(
    ("part", "maps", "words"),
    [
        ("truth", np.zeros((2, 3), np.uint8), "truth is 2x3 and the activation maps are 2x2"),
        ("truth", np.full((2, 2), 3, np.uint8), "truth has the value 3"),
        ("truth", np.zeros((2, 2), bool), "truth must be uint8"),
        ("sal", np.zeros((3, 2), np.uint8), "3x2 and the activation maps are 2x2"),
        ("cam", (np.zeros((1, 2, 2), np.uint8), np.array([2])), "class 2, and the target has 2"),
    ],
)
def test_wrong_maps_are_named(part: str, maps: Any, words: str) -> None:
    given = {"cam": CAM, "truth": TRUTH, "sal": SAL}
    given[part] = given_maps({**given[part]._maps, "e": maps})
    with pytest.raises(HubError, match=f"^e: .*{words}"):
        threshold_curve(given["cam"], given["truth"], given["sal"], num_classes=2)


def test_nothing_to_score() -> None:
    with pytest.raises(HubError, match="no images"):
        threshold_curve(CAM, given_maps({}), num_classes=2)
    nowhere = given_maps({"a": np.full((2, 2), 255, np.uint8)})
    curve = threshold_curve(CAM, nowhere, num_classes=2)
    assert np.isnan(curve.coverage).all()
    with pytest.raises(HubError, match="255 everywhere"):
        curve.best_tau()


@pytest.mark.parametrize("settings", [{"rule": "paprika"}, {"sal_threshold": 51}])
def test_settings_are_checked_before_anything_is_read(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        threshold_curve(given_maps({}), given_maps({}), num_classes=2, **settings)
    with pytest.raises(UsageError, match="255 classes"):
        threshold_curve(CAM, TRUTH, num_classes=255)


@pytest.mark.parametrize("rule", ["oaa", "mcis"])
def test_rules_without_a_curve(rule: Any) -> None:
    maps = given_maps({"a": (np.zeros((1, 1, 1), np.uint8), [0])})
    grey = given_maps({"a": np.zeros((1, 1), np.uint8)})
    with pytest.raises(UsageError, match=f"no curve by the rule {rule}: it stretches each map"):
        threshold_curve(maps, grey, grey, num_classes=1, rule=rule)
