"""Reports: what was measured, as a page, as text, as curves, as data.

``Report`` (``data``) holds everything; ``row_of``, ``saliency_score``, ``segmentation_score``,
``make_gallery`` and ``provenance_tree`` fill it; ``write_html``, ``terminal_table``, ``markdown``,
``curves_png`` and ``Report.dump`` show it.
"""

from wsssbed_hub.artifacts.lineage import Node, provenance_tree
from wsssbed_hub.report.build import (
    label_score,
    own_label_score,
    row_of,
    saliency_score,
    segmentation_score,
)
from wsssbed_hub.report.data import (
    Basis,
    LabelScore,
    OwnLabelScore,
    Report,
    ResultRow,
    SaliencyScore,
    SegmentationScore,
)
from wsssbed_hub.report.gallery import choose_images, make_gallery
from wsssbed_hub.report.html import render_html, write_html
from wsssbed_hub.report.pairs import find
from wsssbed_hub.report.plots import curves_png
from wsssbed_hub.report.text import markdown, terminal_table
from wsssbed_hub.report.thumbnails import thumbnail_gallery

__all__ = [
    "Basis",
    "LabelScore",
    "Node",
    "OwnLabelScore",
    "Report",
    "ResultRow",
    "SaliencyScore",
    "SegmentationScore",
    "choose_images",
    "curves_png",
    "find",
    "label_score",
    "make_gallery",
    "markdown",
    "own_label_score",
    "provenance_tree",
    "render_html",
    "row_of",
    "saliency_score",
    "segmentation_score",
    "terminal_table",
    "thumbnail_gallery",
    "write_html",
]
