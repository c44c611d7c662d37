"""The tables of activation methods with saliency maps, and of networks on labels."""

from __future__ import annotations

from wsssbed_hub.report.matrices import (
    LabelScore,
    MatrixCell,
    NetworkCell,
    matrix_table,
    network_table,
)


def score(tau: float, miou: float | None, coverage: float | None = 0.942) -> LabelScore:
    return LabelScore(tau=tau, miou=miou, coverage=coverage)


def cell(method: str, saliency: str, published: LabelScore | None, best: LabelScore) -> MatrixCell:
    return MatrixCell(
        method=method,
        saliency=saliency,
        at_label_time=method != "eps",
        published=published,
        best=best,
    )


def tables(text: str) -> list[list[list[str]]]:
    """Of each table the rows, of each row the cells."""
    found: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        if block.startswith("| "):
            rows = [line.split("|")[1:-1] for line in block.splitlines()]
            found.append([[one.strip() for one in row] for row in rows])
    return found


def test_methods_by_saliency_maps() -> None:
    cells = [
        cell("cam", "sal/a", score(0.1, 0.7911), score(0.208, 0.797, 0.5)),
        cell("cam", "sal/b", score(0.1, None, None), score(0.2, 0.4)),
        cell("eps", "sal/b", score(0.2, 0.6), score(0.25, 0.61)),
        cell("new", "sal/a", None, score(0.5, 0.3)),
    ]
    text = matrix_table(cells, str.upper)
    published, best = tables(text)
    assert published[0] == ["saliency maps from", "CAM (0.1)", "EPS (0.2)", "NEW"]
    assert published[2:] == [
        ["SAL/A", "79.1 (94 %)", "", ""],
        ["SAL/B", "– (–)", "60.0 (94 %)", ""],
    ]
    assert best[0] == ["saliency maps from", "CAM", "EPS", "NEW"]
    assert best[2:] == [
        ["SAL/A", "79.7 (50 %, 0.21)", "", "30.0 (94 %, 0.50)"],
        ["SAL/B", "40.0 (94 %, 0.20)", "61.0 (94 %, 0.25)", ""],
    ]
    assert text.endswith("Trained with the saliency maps, and labelled without: EPS.")


def test_networks_by_labels() -> None:
    cells = [
        NetworkCell(
            network="seg-knet", labels="sal/a", miou=0.71234, standard_error=0.0026, seeds=3
        ),
        NetworkCell(network="seg-knet", labels="ground truth", miou=0.8, seeds=1),
        NetworkCell(network="seg-new", labels="sal/a", miou=None, seeds=1),
    ]
    (table,) = tables(network_table(cells, str.upper))
    assert table[0] == ["labels of CAM and", "`seg-knet`", "`seg-new`"]
    assert table[2:] == [["SAL/A", "71.2 ± 0.3", "–"], ["GROUND TRUTH", "80.0", ""]]


def test_nothing_to_show_is_said() -> None:
    assert "no matrix" in matrix_table([], str)
    assert "no segmentation networks" in network_table([], str)
