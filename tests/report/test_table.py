"""The table of results: what is best, what is missing, what it was measured on."""

from __future__ import annotations

from reports import BAD, GOOD, basis, full_report, labels, network, own_labels, quality, row

from wsssbed_hub.report import Report, ResultRow
from wsssbed_hub.report.table import NOTHING, Table, class_table, results_table


def table_of(*rows: ResultRow) -> Table:
    return results_table(Report(title="t", target="shapes", rows=list(rows)))


def column(table: Table, group: str, title: str) -> list:
    place = [(c.group, c.title) for c in table.columns].index((group, title))
    return [line.cells[place] for section in table.sections for line in section.lines]


def test_best_of_each_column():
    table = table_of(
        row("a", GOOD, 0.68, 0.70, network(0.61, 0.004)),
        row("b", BAD, 0.69, 0.66, network(0.57, 0.004)),
        ResultRow(
            name="truth", role="ground truth", activations="cam/cam", segmentation=network(0.8)
        ),
    )
    mae = column(table, "Saliency", "MAE")
    assert [(cell.text, cell.best) for cell in mae] == [
        ("0.030", True),
        ("0.090", False),
        (NOTHING, False),
    ]
    fixed = column(table, "Labels, published tau 0.100", "mIoU")
    assert [(cell.text, cell.best) for cell in fixed[:2]] == [("68.0", False), ("69.0", True)]
    segmentation = column(table, "Segmentation", "mIoU")
    assert [(str(cell), cell.best) for cell in segmentation] == [
        ("61.0 ± 0.4", True),
        ("57.0 ± 0.4", False),
        ("80.0", False),  # above all others, but it is the bound, not a competitor
    ]


def test_equal_numbers_are_all_best_and_a_lone_one_is_not():
    table = table_of(row("a", None, 0.70001, 0.7), row("b", None, 0.70004, None))
    assert [c.best for c in column(table, "Labels, published tau 0.100", "mIoU")] == [True, True]
    assert [c.best for c in column(table, "Labels, best tau", "mIoU")] == [False, False]


def test_columns_of_nothing_are_left_out():
    table = table_of(row("a", quality(0.1, None, None), 0.7), row("b", None, 0.6))
    assert {c.group for c in table.columns} == {"Saliency", "Labels, published tau 0.100"}
    assert [c.title for c in table.columns if c.group == "Saliency"] == ["MAE"]


def test_labels_made_elsewhere_have_a_column_of_their_own():
    pair = row("a", GOOD, 0.6, 0.7, network(0.61)), row("b", BAD, 0.5, 0.6, network(0.57))
    whole = table_of(*pair, own_labels("label/x", 0.72, 1.0, network(0.65)))
    assert [c.title for c in whole.columns if c.group == "Labels, own"] == ["mIoU"]
    own = column(whole, "Labels, own", "mIoU")
    assert [cell.text for cell in own] == [NOTHING, NOTHING, "72.0"]
    assert column(whole, "Labels, best tau", "mIoU")[2].text == NOTHING
    assert [c.best for c in column(whole, "Segmentation", "mIoU")] == [False, False, True]
    assert [line.role for line in whole.sections[0].lines] == ["", "", "own labels"]
    assert any("made elsewhere" in text and "train (3 images" in text for _, text in whole.notes)

    partly = table_of(*pair, own_labels("label/x", 0.72, 0.9, None))
    said = {c.title: column(partly, "Labels, own", c.title)[2].text for c in partly.columns[-4:-1]}
    assert said == {"mIoU": "72.0", "labelled": "73.0", "coverage": "90.0"}


def test_classes_of_labels_made_elsewhere():
    report = Report(
        title="t",
        target="shapes",
        classes=["disc", "star"],
        rows=[own_labels("label/x", 0.72, 1.0, None)],
    )
    table = class_table(report)
    assert table is not None
    assert [(c.group, c.title) for c in table.columns] == [("Labels, own", "label/x")]
    texts = [line.cells[0].text for line in table.sections[0].lines]
    assert texts == ["90.0", NOTHING, "72.0", "72.0"]


def test_taus_that_differ_stand_in_a_column():
    other = row("b", None, 0.6).model_copy(update={"fixed": labels(0.6, origin="given", tau=0.25)})
    table = table_of(row("a", None, 0.7), other)
    taus = column(table, "Labels, published or given tau", "tau")
    assert [cell.text for cell in taus] == ["0.100", "0.250"]


def test_rows_stand_with_their_activation_maps():
    table = table_of(
        row("a", None, 0.7, cam="cam/cam"),
        row("b", None, 0.7, cam="cam/drs"),
        row("c", None, 0.7, cam="cam/cam"),
        ResultRow(name="truth", role="ground truth", segmentation=network(0.8)),
    )
    found = [(s.heading, [line.name for line in s.lines]) for s in table.sections]
    assert found == [("cam/cam", ["a", "c"]), ("cam/drs", ["b"]), ("", ["truth"])]


def test_one_footnote_for_what_is_measured_alike():
    table = table_of(row("a", GOOD, 0.7, 0.7), row("b", BAD, 0.6, 0.6))
    assert [mark for mark, _ in table.notes] == ["a", "b"]
    assert "shapes-te (3 images, list sha256:abababababab)" in table.notes[0][1]
    assert "upper bound" in table.notes[1][1]
    assert all(cell.mark == "" for line in table.sections[0].lines for cell in line.cells)


def test_a_footnote_for_each_number_that_is_measured_otherwise():
    other = network(0.6, 0.01).model_copy(update={"basis": basis("val", CRF="yes")})
    table = table_of(row("a", seg=network(0.7, 0.01)), row("b", seg=other))
    marks = [cell.mark for cell in column(table, "Segmentation", "mIoU")]
    texts = dict(table.notes)
    assert "CRF: yes" not in texts[marks[0]]
    assert "CRF: yes" in texts[marks[1]]


def test_footnote_says_at_which_tau_the_training_labels_were():
    scores = [
        network(0.7).model_copy(update={"threshold": labels(0.7, tau=tau).threshold})
        for tau in (0.2, 0.4)
    ]
    table = table_of(row("a", seg=scores[0]), row("b", seg=scores[1]))
    assert "trained on the labels at the best tau" in table.notes[0][1]
    assert "One seed (0), so no standard error." in table.notes[0][1]


def test_classes():
    report = full_report()
    table = class_table(report)
    assert table is not None
    names = [line.name for line in table.sections[0].lines]
    assert names == ["background", "wordsa", "wordsb", "mean"]
    first = column(table, "Segmentation", "words40")
    assert [cell.text for cell in first] == ["90.0", NOTHING, "30.0", "56.0"]


def test_classes_of_several_activation_maps():
    report = full_report()
    other = report.rows[0].model_copy(update={"activations": "cam/drs"})
    table = class_table(report.model_copy(update={"rows": [*report.rows, other]}))
    assert table is not None
    assert [c.title for c in table.columns if c.group == "Segmentation"] == [
        "words40 words",
        "words150 words",
        "words40 cam/drs",
    ]


def test_no_class_table_without_classes():
    assert class_table(Report(title="t", target="shapes", rows=[row("a", GOOD, 0.7)])) is None
