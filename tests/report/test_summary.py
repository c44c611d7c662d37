"""The README's table: made from the numbers of a demo run, and checked against them."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports import full_report

from wsssbed_hub.artifacts.manifest import Environment
from wsssbed_hub.report.matrices import NetworkCell
from wsssbed_hub.report.summary import (
    Summary,
    SummaryRow,
    main,
    summarise,
    summary_table,
    with_tables,
)
from wsssbed_hub.utils.errors import HubError

ROOT = Path(__file__).parents[2]
PLACE = "text\n<!-- the table of docs/demo.json -->\n\nold\n\n<!-- end of the table -->\nmore\n"


@pytest.fixture
def summary() -> Summary:
    environment = Environment(python="3.11", torch="2.14.1")
    return summarise(full_report(), "wsssbed-hub demo --with ssnet", environment, 9.6)


def test_the_table_says_what_it_was_measured_with(summary: Summary) -> None:
    report = full_report()
    table = summary_table(summary).splitlines()
    first = report.rows[0]
    assert first.saliency is not None
    assert first.best is not None
    assert first.segmentation is not None
    cells = [cell.strip() for cell in table[2].split("|")[1:-1]]
    assert cells == [
        f"`{first.name}`",
        f"{first.saliency.mae:.3f}",
        f"{first.saliency.max_f:.3f}",
        *([f"{first.saliency.s_measure:.3f}"] if first.saliency.s_measure else []),
        "76.5 %",
        f"95.9 % (tau {first.best.threshold.tau:.3f})",
        f"{100 * (first.segmentation.miou or 0):.1f} %",
    ]
    assert len(table) == 2 + len(report.rows) + 2
    assert table[-1] == "Measured with `wsssbed-hub demo --with ssnet`, 10 minutes: torch 2.14.1."


def test_the_table_goes_between_its_lines(summary: Summary, tmp_path: Path) -> None:
    page, source = tmp_path / "README.md", tmp_path / "demo.json"
    page.write_text(PLACE)
    source.write_text(summary.dump())
    words = [str(source), str(page)]
    assert main(["--check", *words]) == 1
    assert main(words) == 0
    assert main(["--check", *words]) == 0
    text = page.read_text()
    assert text.startswith("text\n<!-- the table of docs/demo.json -->\n\n| saliency maps from |")
    assert text.endswith("<!-- end of the table -->\nmore\n")
    assert "old" not in text
    with pytest.raises(HubError, match="There are no lines"):
        with_tables("nothing", summary, "demo.json")


def test_each_file_of_numbers_has_its_own_place(summary: Summary) -> None:
    page = PLACE + PLACE.replace("demo.json", "zoo.json")
    text = with_tables(page, summary, "zoo.json")
    assert text.startswith(PLACE)
    assert "<!-- the table of docs/zoo.json -->\n\n| saliency maps from |" in text


def test_a_page_has_those_tables_that_it_has_lines_for(summary: Summary) -> None:
    lines = "<!-- the {0} of docs/zoo.json -->\n<!-- end of the {0} -->\n"
    page = lines.format("networks") + lines.format("matrix")
    cell = NetworkCell(network="seg-knet", labels="sal/move", miou=0.5, seeds=1)
    text = with_tables(page, summary.model_copy(update={"networks": (cell,)}), "zoo.json")
    first, _, second = text.partition("<!-- end of the networks -->")
    assert "| MOVE on the images of `shapes`, without masks | 50.0 |" in first
    assert "no matrix" in second
    assert "max F" not in text


def test_columns_are_those_of_which_something_is_known() -> None:
    rows = [
        SummaryRow(name="sal/vst-shapes", mae=0.1, s_measure=0.8, minutes=2.5),
        SummaryRow(name="sal/move", mae=0.2),
        SummaryRow(name="sal/own", mae=0.3),
    ]
    environment = Environment(python="3.11")
    table = summary_table(Summary(command="x", environment=environment, rows=rows)).splitlines()
    assert table[0] == "| saliency maps from | MAE | S-measure | minutes of training |"
    assert table[2] == "| VST trained on `shapes`, 300 images | 0.100 | 0.800 | 2.5 |"
    assert table[3].startswith("| MOVE on the images of `shapes`, without masks | 0.200 |  |  |")
    assert table[4].startswith("| `sal/own` |")


def test_trainings_and_rows_that_the_report_has_not() -> None:
    report = full_report()
    name = report.rows[0].name.partition("@")[0]
    mean = SummaryRow(name="mean of the masks", mae=0.25)
    made = summarise(
        report, "x", Environment(python="3.11"), trained={name: 1.26, "sal/no": 1}, more=[mean]
    )
    assert made.rows[0].minutes == 1.3
    assert all(row.minutes is None for row in made.rows[1:])
    assert made.rows[-1] == mean


def test_pages_have_the_committed_numbers() -> None:
    docs = ROOT / "docs"
    pages = {docs / "demo.json": ROOT / "README.md", docs / "zoo.json": docs / "zoo.md"}
    for numbers, page in pages.items():
        assert main(["--check", str(numbers), str(page)]) == 0
