"""Curves on the page: what is drawn lies where the numbers say, and takes the page's colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from reports import PUBLISHED, curve, full_report

from wsssbed_hub.report import ResultRow, render_html, row_of
from wsssbed_hub.report.diagram import BOTTOM, LEFT, RIGHT, TOP, draw
from wsssbed_hub.report.plots import PANELS, by_activations

SVG = re.compile(r'<svg role="img".*?</svg>', re.DOTALL)


def rows() -> list[ResultRow]:
    return [
        row_of(name, curve(level), "train", activations="cam/cam", fixed=PUBLISHED)
        for name, level in (("a", 40), ("b", 100))
    ]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


@pytest.mark.parametrize("panel", PANELS)
def test_lines_are_the_curves_and_marks_lie_on_them(panel) -> None:
    drawn = rows()
    diagram = draw(by_activations(drawn)["cam/cam"], panel)
    highest = float(diagram.rows[-1].text)

    def value(y: float) -> float:
        return (BOTTOM - y) / (BOTTOM - diagram.rows[-1].place) * highest / 100

    def tau(x: float) -> float:
        return (x - LEFT) / (RIGHT - LEFT)

    for row, line in zip(drawn, diagram.lines, strict=True):
        assert row.curve is not None
        expected = zip(row.curve.taus, getattr(row.curve, panel.field), strict=True)
        known = [(t, v) for t, v in expected if v is not None]
        assert [(tau(x), value(y)) for x, y in points(line.path)] == [
            # a place is rounded to a hundredth of a point, of about 144 in all
            (pytest.approx(t, abs=1e-4), pytest.approx(v, abs=1e-4))
            for t, v in known
        ]
    scores = [score for row in drawn for score in (row.fixed, row.best)]
    assert [(tau(m.x), value(m.y), m.filled) for m in diagram.marks] == [
        (
            pytest.approx(s.threshold.tau, abs=1e-4),
            pytest.approx(getattr(s, panel.field), abs=1e-4),
            filled,
        )
        for s, filled in zip(scores, (False, True) * 2, strict=True)
    ]
    assert [tau(x) for x in diagram.rules] == [pytest.approx(0.1, abs=1e-4)]


def test_ticks_are_round_numbers_inside_the_axes() -> None:
    for panel in PANELS:
        diagram = draw(by_activations(rows())["cam/cam"], panel)
        places = [tick.place for tick in diagram.rows]
        assert places[0] == BOTTOM
        assert all(TOP <= place <= BOTTOM for place in places)
        assert 3 <= len(places) <= 6
        assert [tick.text for tick in diagram.columns] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_undefined_values_leave_a_gap() -> None:
    row = rows()[0]
    assert row.curve is not None
    taus = row.curve.taus[:4]
    broken = row.curve.model_copy(
        update={"taus": taus, "miou": [0.5, None, 0.25, 0.5], "miou_ignored_missed": [0.5] * 4}
    )
    diagram = draw(by_activations([row.model_copy(update={"curve": broken})])["cam/cam"], PANELS[1])
    assert re.sub(r"[\d. ]+", "", diagram.lines[0].path) == "MML"


def test_the_page_takes_them_as_they_are() -> None:
    page = render_html(full_report())
    drawings = SVG.findall(page)
    assert len(drawings) == len(PANELS)
    for text in drawings:
        ElementTree.fromstring(text)
        assert "var(--series-0)" in text
        assert "#" not in text  # no colour of its own
        assert "font-family" not in text
    assert render_html(full_report()) == page
