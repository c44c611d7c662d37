"""The results in the terminal and as Markdown."""

from __future__ import annotations

import io

import pytest
from reports import BAD, GOOD, full_report, network, own_labels, row
from rich.console import Console

from wsssbed_hub.report import Report, ResultRow, markdown, terminal_table


def printed(report: Report, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(terminal_table(report))
    return file.getvalue()


@pytest.fixture
def report() -> Report:
    return Report(
        title="t",
        target="shapes",
        rows=[
            row("sal/poolnet-shapes@1.0.0", GOOD, 0.681, 0.702, network(0.61, 0.004)),
            row("sal/poolnet-shapes-small@1.0.0", BAD, 0.61, 0.66, network(0.57, 0.004)),
            ResultRow(name="ground truth", role="ground truth", segmentation=network(0.8, 0.002)),
        ],
    )


def test_names_stand_beside_the_numbers_where_they_fit(report):
    lines = printed(report, 120).splitlines()
    first = next(line for line in lines if "poolnet-shapes@1.0.0" in line)
    assert first.split() == [
        "sal/poolnet-shapes@1.0.0", "0.030", "0.930", "0.910", "68.1", "90.0", "0.400", "70.2",
        "90.0", "61.0", "±", "0.4",
    ]  # fmt: skip
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_labels_made_elsewhere_fit_beside_the_others(report, width):
    rows = [*report.rows, own_labels("label/ssnet-shapes@1.0.0", 0.72, 1.0, network(0.65))]
    text = printed(report.model_copy(update={"rows": rows}), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    assert "label/ssnet-shapes@1.0.0" in text
    assert any(line.split()[-2:] == ["72.0", "65.0"] for line in text.splitlines())


def test_names_stand_below_where_they_do_not(report):
    text = printed(report, 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    assert "\n 1  0.030" in text
    assert "\n2  sal/poolnet-shapes-small@1.0.0\n" in text
    assert "Better saliency gave better labels" in text


def test_several_activation_maps(report):
    rows = [row("a", GOOD, 0.7, 0.7, cam="cam/cam"), row("a", GOOD, 0.6, 0.6, cam="cam/drs")]
    both = report.model_copy(update={"rows": rows})
    assert "labels from cam/drs" in printed(both, 120)
    assert "2  a with cam/drs" in printed(both, 50)
    assert "| `a` with `cam/drs` |" in markdown(both)


def test_the_terminal_is_not_steered():
    hostile = full_report("[red]\x1b[2J[/red][link=file:///x]")
    text = printed(hostile, 200)
    assert "\x1b" not in text
    assert "[red][2J[/red][link=file:///x]40" in text


def test_markdown(report):
    lines = markdown(report).splitlines()
    assert lines[0] == (
        "**Better saliency gave better labels at the published tau, better labels at the best tau "
        "and better segmentation.**"
    )
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| `sal/poolnet-shapes@1.0.0` | **0.030** | **0.930** | **0.910** |")
    assert table[-1].endswith("| 80.0 ± 0.2 |")
    assert any(line.startswith("<sup>a</sup> Mean absolute error") for line in lines)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b`c", "`a·b·c`"),
        ("<img src=x>", "`<img src=x>`"),  # inside code nothing is HTML
        ("", "` `"),
    ],
)
def test_names_cannot_leave_their_cell(name, shown):
    text = markdown(Report(title="t", target="shapes", rows=[row(name, GOOD, 0.7)]))
    assert f"| {shown} |" in text


def test_words_outside_code_are_disarmed():
    name = "- <b>x</b> [y](http://z) @someone #1 www.z *k*"
    rows = [row(name, GOOD, 0.7, 0.7), row("b", BAD, 0.6, 0.6)]
    text = markdown(Report(title="t", target="shapes", rows=rows))
    detail = next(line for line in text.splitlines() if "against b" in line)
    for live in ("<b>", " [y]", "://z", "@someone", "#1", "www.z", " *k*"):
        assert live not in detail
    assert not detail.startswith("-")
    assert detail.replace("\u2060", "").startswith(
        "- &lt;b&gt;x&lt;/b&gt; \\[y\\](http://z) @someone #1 www.z \\*k\\* against b:"
    )
