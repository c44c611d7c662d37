"""The report as data: JSON, and words that steer nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from reports import (
    DIGEST,
    OTHER_DIGEST,
    PUBLISHED,
    activations,
    curve,
    full_report,
    saliency,
    truth,
)

from wsssbed_hub.artifacts.manifest import Result
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.report import Report, row_of, saliency_score, segmentation_score
from wsssbed_hub.utils.text import MOST, printable


def test_json_and_back():
    report = full_report()
    assert Report.model_validate_json(report.dump(pictures=True)) == report


def test_json_without_pictures_has_everything_else():
    report = full_report()
    data = json.loads(report.dump())
    assert "gallery" not in data
    assert Report.model_validate(data) == report.model_copy(update={"gallery": None})


def test_json_has_null_for_what_is_not_defined():
    data = json.loads(full_report().dump())
    assert data["rows"][0]["segmentation"]["per_class"] == [0.9, None, 0.3]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("sal/vst-duts@1.0.0", "sal/vst-duts@1.0.0"),
        ("a\x1b[31mred\x07", "a[31mred"),
        ("two\nlines\tand more", "two lines and more"),
        ("abc\u202ecba", "abccba"),  # turns the direction of what follows
        ("β² ± 0.3", "β² ± 0.3"),
        ("x" * (MOST + 1), "x" * (MOST - 1) + "…"),
    ],
)
def test_printable(text, kept):
    assert printable(text) == kept


def test_used_lists_each_artifact_once():
    report = full_report()
    twice = report.model_copy(update={"provenance": report.provenance * 2})
    assert [(node.name, node.digest) for node in twice.used] == [
        ("words", DIGEST),
        ("words2", OTHER_DIGEST),
    ]


def test_row_of_is_what_labelling_and_scoring_gives():
    found = row_of("a", curve(150), "train", activations="cam/cam", fixed=PUBLISHED)
    for score in (found.fixed, found.best):
        assert score is not None
        direct = SegmentationMetrics(2, undecided="missed")
        for image_id, label in truth().maps.items():
            maps = activations().read(image_id)
            sal = saliency(150).read(image_id)
            direct.add(pseudo_label(*maps, sal, score.threshold.tau), label, image_id)
        # the same integers divided the same way
        assert score.miou_ignored_missed == direct.mean_iou()
        assert score.per_class == direct.class_iou.tolist()
        assert score.coverage == direct.coverage
    assert found.best is not None
    assert found.curve is not None
    assert found.best.miou_ignored_missed == max(v for v in found.curve.miou_ignored_missed if v)
    assert found.role == "saliency"


def test_scores_carry_what_they_were_measured_on():
    measures = {"mae": 0.1, "max_f": 0.8, "mean_f": 0.7, "s_measure": 0.75}
    sal = saliency_score(measures, "ecssd", 1000, DIGEST)
    assert (sal.mae, sal.max_f, sal.s_measure, sal.basis.images) == (0.1, 0.8, 0.75, 1000)
    result = Result(
        metric="mIoU", value=0.61, standard_error=0.002, seeds=[0, 1], images=9, image_list=DIGEST,
        split="val", crf=True, initial_weights="timm/resnet101",
    )  # fmt: skip
    seg = segmentation_score(result, "DeepLab-V2", np.array([0.5, 0.6]).tolist())
    assert seg.miou == 0.61
    assert seg.basis.details == {
        "network": "DeepLab-V2",
        "CRF": "yes",
        "initial weights": "timm/resnet101",
    }
