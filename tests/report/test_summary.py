"""The README's table: made from the numbers of a demo run, and checked against them."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports import full_report

from wsssbed_hub.artifacts.manifest import Environment
from wsssbed_hub.report.summary import Summary, main, summarise, summary_table, with_table
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
        with_table("nothing", summary)


def test_the_readme_has_the_committed_numbers() -> None:
    assert main(["--check", str(ROOT / "docs" / "demo.json"), str(ROOT / "README.md")]) == 0
