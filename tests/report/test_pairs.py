"""Pairs of saliency maps, and the verdict on them: for every state that the numbers can be in."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import BAD, GOOD, basis, labels, network, quality, row

from wsssbed_hub.report import Report, ResultRow, SaliencyScore, find
from wsssbed_hub.report.table import pairs_table


def pair(fixed: tuple, best: tuple, seg: tuple, errors: tuple = (0.004, 0.004)) -> list[ResultRow]:
    """The row of the better saliency map, then that of the worse."""
    return [
        row(name, sal, f, b, None if s is None else network(s, e))
        for name, sal, f, b, s, e in zip(
            ("a", "b"), (GOOD, BAD), fixed, best, seg, errors, strict=True
        )
    ]


def test_better_everywhere():
    finding = find(pair((0.68, 0.61), (0.70, 0.66), (0.61, 0.57)))
    assert finding.verdict == "yes"
    assert finding.sentence == (
        "Better saliency gave better labels at the published tau, better labels at the best tau "
        "and better segmentation."
    )
    assert [(one.better.name, one.worse.name) for one in finding.pairs] == [("a", "b")]
    assert finding.remarks == ()


@pytest.mark.parametrize(
    ("fixed", "best", "seg", "verdict", "signs"),
    [
        ((0.6, 0.7), (0.6, 0.7), (0.5, 0.6), "no", (-1, -1, -1)),
        ((0.6, 0.6), (0.7, 0.7), (0.5, 0.6), "no", (0, 0, -1)),
        ((0.7, 0.6), (0.7, 0.6), (0.5, 0.6), "in part", (1, 1, -1)),
        ((0.6, 0.7), (0.6, 0.7), (0.6, 0.5), "in part", (-1, -1, 1)),
        ((0.7, 0.6), (0.6, 0.7), (0.6, 0.5), "in part", (1, -1, 1)),
        # 0.6 points are within two standard errors of the difference, 2 x 0.57 points
        ((0.7, 0.6), (0.7, 0.6), (0.606, 0.6), "in part", (1, 1, 0)),
    ],
)
def test_one_pair(fixed, best, seg, verdict, signs):
    finding = find(pair(fixed, best, seg))
    assert finding.verdict == verdict
    (one,) = finding.pairs
    assert one.outcomes == tuple(
        (*numbers, sign) for numbers, sign in zip((fixed, best, seg), signs, strict=True)
    )
    words = [("equally good", "better", "worse")[sign] for sign in signs]
    assert finding.sentence == (
        f"Better saliency gave {words[0]} labels at the published tau, {words[1]} labels at the "
        f"best tau and {words[2]} segmentation."
    )


def test_the_table_of_pairs():
    rows = pair((0.68, 0.61), (0.66, 0.66), (None, 0.57))
    report = Report(title="T", target="t", rows=rows)
    table = pairs_table(report, find(rows))
    assert table is not None
    assert [f"{column.group}: {column.title}" for column in table.columns] == [
        *("Saliency: MAE", "Saliency: max F", "Saliency: S"),
        *("Labels, published tau: mIoU", "Labels, best tau: mIoU"),
    ]
    (line,) = table.sections[0].lines
    assert line.name == "a against b"
    assert [(cell.text, cell.best) for cell in line.cells] == [
        ("0.030 : 0.090", True),
        ("0.930 : 0.800", True),
        ("0.910 : 0.780", True),
        ("68.0 : 61.0", True),
        ("66.0 ≈ 66.0", False),
    ]
    assert pairs_table(report, find(rows[:1])) is None


def test_what_prints_the_same_is_tied():
    """Labels of 0.6999 and 0.7001 are both 70.0 %."""
    finding = find(pair((0.7001, 0.6999), (0.7001, 0.6999), (0.7, 0.6)))
    assert [one.sign for one in finding.pairs[0].outcomes[:2]] == [0, 0]


def test_two_standard_errors_are_the_limit():
    error = 0.01 / 2**0.5  # of each, so that of the difference it is 0.01
    just_tied = find(pair((0.7, 0.6), (0.7, 0.6), (0.62, 0.6001), (error, error)))
    just_better = find(pair((0.7, 0.6), (0.7, 0.6), (0.6202, 0.6), (error, error)))
    assert just_tied.pairs[0].outcomes[-1].sign == 0
    assert any("two standard errors" in remark for remark in just_tied.remarks)
    assert just_better.verdict == "yes"


@pytest.mark.parametrize(
    ("fixed", "best", "seg", "sentence"),
    [
        (
            (0.7, 0.6),
            (0.7, 0.6),
            (None, 0.6),
            "Better saliency gave better labels at the published tau and better labels at the best "
            "tau. There are no segmentation results to compare.",
        ),
        ((None, None), (None, 0.5), (0.7, 0.6), "Better saliency gave better segmentation."),
        (
            (None, None),
            (0.7, 0.6),
            (None, None),
            "Better saliency gave better labels at the best tau. There are no segmentation results "
            "to compare.",
        ),
    ],
)
def test_missing_numbers_are_said(fixed, best, seg, sentence):
    finding = find(pair(fixed, best, seg))
    assert finding.sentence == sentence
    assert finding.verdict == "in part"


def test_nothing_measured_but_saliency():
    finding = find(pair((None, None), (None, None), (None, None)))
    assert finding.verdict == "cannot tell"
    assert finding.sentence.startswith("There are no labels and no segmentation to compare")


def test_without_a_published_tau_the_best_is_enough():
    assert find(pair((None, None), (0.7, 0.6), (0.7, 0.6))).verdict == "yes"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (quality(0.02, 0.80, 0.78), "MAE, max F and S-measure disagree"),
        (GOOD, "equally good"),
        (quality(None, None, None), "no measure of saliency is known of both"),
        (
            SaliencyScore(mae=0.2, max_f=0.5, s_measure=0.5, basis=basis("ecssd")),
            "measured on different images",
        ),
    ],
)
def test_saliency_maps_without_an_order(other, why):
    finding = find([row("a", GOOD, 0.7, 0.7), row("b", other, 0.6, 0.6)])
    assert finding.verdict == "cannot tell"
    assert len(finding.remarks) == 1
    assert why in finding.remarks[0]


def test_one_measure_is_enough_and_lower_mae_is_better():
    finding = find(
        [
            row("a", quality(0.1, None, None), 0.6, 0.6),
            row("b", quality(0.05, None, None), 0.7, 0.7),
        ]
    )
    (one,) = finding.pairs
    assert (one.better.name, one.saliency) == ("b", ((0.05, 0.1, 1), None, None))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("a", GOOD, 0.7, 0.7)],
        [row("a", GOOD, 0.7, 0.7), row("b", None, 0.6, 0.6)],
        [row("a", GOOD, 0.7, 0.7), row("b", BAD, 0.6, 0.6, cam="cam/drs")],
    ],
)
def test_nothing_to_compare(rows):
    finding = find(rows)
    assert finding.verdict == "cannot tell"
    assert "two saliency maps" in finding.sentence.lower()


def test_labels_of_other_images_are_not_compared():
    rows = pair((0.7, 0.6), (0.7, 0.6), (0.7, 0.6))
    elsewhere = labels(0.6).model_copy(update={"basis": basis("another split")})
    rows[1] = rows[1].model_copy(update={"best": elsewhere})
    finding = find(rows)
    assert finding.sentence == (
        "Better saliency gave better labels at the published tau and better segmentation."
    )


def test_networks_trained_at_different_kinds_of_tau_are_not_compared():
    rows = pair((0.7, 0.6), (0.7, 0.6), (0.7, 0.6))
    at_best = network(0.7, 0.004).model_copy(update={"threshold": labels(0.7).threshold})
    rows[0] = rows[0].model_copy(update={"segmentation": at_best})
    assert "There are no segmentation results to compare." in find(rows).sentence


def test_several_pairs_are_counted():
    middle = quality(0.05, 0.9, 0.85)
    rows = [
        row("a", GOOD, 0.70, 0.70, network(0.70, 0.001)),
        row("b", middle, 0.65, 0.72, network(0.60, 0.001)),
        row("c", BAD, 0.60, 0.60, network(0.6005, 0.001)),
    ]
    finding = find(rows)
    assert finding.verdict == "in part"
    assert finding.sentence == (
        "Better saliency gave better labels at the published tau in 3 of 3 pairs, better labels "
        "at the best tau in 2 of 3 pairs and better segmentation in 2 of 3 pairs (1 too close to "
        "tell)."
    )


def test_doubt_if_ignoring_turns_the_order():
    rows = pair((0.7, 0.6), (0.7, 0.6), (0.7, 0.6))
    rows[1] = rows[1].model_copy(update={"best": labels(0.6, labelled=0.9)})
    assert any("turns around" in remark for remark in find(rows).remarks)


def test_doubt_about_a_single_seed():
    finding = find(pair((0.7, 0.6), (0.7, 0.6), (0.7, 0.6), (None, None)))
    assert any("one seed" in remark for remark in finding.remarks)


def test_a_given_tau_is_called_so():
    rows = [
        r.model_copy(update={"fixed": labels(m, origin="given", tau=0.2)})
        for r, m in zip(pair((0, 0), (0.6, 0.7), (0.7, 0.6)), (0.7, 0.6), strict=True)
    ]
    assert "better labels at the given tau" in find(rows).sentence


@given(
    st.lists(
        st.tuples(*[st.none() | st.sampled_from([0.1, 0.5, 0.5004, 0.9])] * 6),
        min_size=2,
        max_size=3,
    )
)
def test_the_order_of_the_rows_does_not_matter(numbers):
    rows = [
        row(str(i), quality(a, b, c), d, e, network(f, 0.01))
        for i, (a, b, c, d, e, f) in enumerate(numbers)
    ]
    said = {(f.verdict, f.sentence) for f in (find(order) for order in permutations(rows))}
    assert len(said) == 1


def test_reasons_are_given_once_and_not_without_end():
    rows = [
        row(name, quality(0.1, 0.5, 0.5), 0.7, 0.7, cam=cam)
        for cam in ("cam/cam", "cam/drs")
        for name in "abcd"
    ]
    details = find(rows).remarks
    assert len(details) == 6  # of the six pairs of four maps
    more = find([*rows, row("e", quality(0.1, 0.5, 0.5), 0.7, 0.7)]).remarks
    assert more[-1] == "Nor are 4 more pairs."
