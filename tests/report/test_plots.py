"""Curves as pictures: what is drawn where, and always the same bytes."""

from __future__ import annotations

import io
import math
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from reports import PUBLISHED, curve, full_report

from wsssbed_hub.report import ResultRow, curves_png, row_of
from wsssbed_hub.report.plots import COLOURS, PANELS, _draw, by_activations


def rows(*names: str, cam: str = "cam/cam") -> list[ResultRow]:
    return [
        row_of(name, curve(40 + 60 * i), "train", activations=cam, fixed=PUBLISHED)
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("panel", PANELS)
def test_lines_are_the_curves_and_marks_lie_on_them(panel):
    axis = Figure().subplots()
    drawn = rows("a", "b")
    _draw(axis, by_activations(drawn)["cam/cam"], panel)
    first, second, rule, *marks = axis.get_lines()
    for line, row in ((first, drawn[0]), (second, drawn[1])):
        expected = [math.nan if v is None else 100 * v for v in getattr(row.curve, panel.field)]
        np.testing.assert_array_equal(line.get_xdata(), row.curve.taus)
        np.testing.assert_array_equal(line.get_ydata(), expected)
    assert list(rule.get_xdata()) == [0.1, 0.1]
    scores = [score for row in drawn for score in (row.fixed, row.best)]
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks] == [
        (score.threshold.tau, 100 * getattr(score, panel.field)) for score in scores
    ]


def test_a_saliency_map_keeps_its_colour():
    groups = by_activations([*rows("a", "b"), *rows("b", "c", cam="cam/drs")])
    colours = {name: [(s.row.name, s.colour) for s in group] for name, group in groups.items()}
    assert colours == {
        "cam/cam": [("a", COLOURS[0]), ("b", COLOURS[1])],
        "cam/drs": [("b", COLOURS[1]), ("c", COLOURS[2])],
    }


def test_a_row_without_curve_is_not_drawn():
    assert by_activations([ResultRow(name="ground truth", role="ground truth")]) == {}
    with pytest.raises(ValueError, match="no curves"):
        curves_png([ResultRow(name="ground truth", role="ground truth")])


def test_the_same_curves_give_the_same_bytes():
    assert curves_png(rows("a")) == curves_png(rows("a"))


@pytest.mark.parametrize("name", ["_hidden", "$\\frac{", "x" * 300, "日本語"])
def test_names_are_not_formulas(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = curves_png(rows(name), dpi=50)
    picture = Image.open(io.BytesIO(encoded))
    picture.load()
    assert "date" not in {key.lower() for key in picture.info}


def test_png_has_three_diagrams_for_each_activation_map():
    one = Image.open(io.BytesIO(curves_png(rows("a"), dpi=50)))
    two = Image.open(io.BytesIO(curves_png([*rows("a"), *rows("a", cam="cam/drs")], dpi=50)))
    assert one.width == two.width
    assert abs(two.height - 2 * one.height) <= 1  # rounding to whole pixels


def test_undefined_values_leave_a_gap():
    report = full_report()
    row = report.rows[0]
    assert row.curve is not None
    gap = [None, *row.curve.miou[1:]]
    row = row.model_copy(update={"curve": row.curve.model_copy(update={"miou": gap})})
    axis = Figure().subplots()
    _draw(axis, by_activations([row])["words"], PANELS[1])
    assert math.isnan(axis.get_lines()[0].get_ydata()[0])


def test_a_persons_own_settings_do_not_matter():
    expected = curves_png(rows("a"), dpi=50)
    with matplotlib.rc_context({"axes.labelsize": 30, "savefig.bbox": "tight"}):
        assert curves_png(rows("a"), dpi=50) == expected
        assert matplotlib.rcParams["axes.labelsize"] == 30
