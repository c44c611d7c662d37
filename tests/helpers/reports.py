"""Small reports for tests, and stand-ins for a target and for maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wsssbed_hub.artifacts.lineage import Link, Node
from wsssbed_hub.artifacts.manifest import Threshold
from wsssbed_hub.evaluation.curves import ThresholdCurve, threshold_curve
from wsssbed_hub.report import (
    Basis,
    LabelScore,
    OwnLabelScore,
    Report,
    ResultRow,
    SaliencyScore,
    SegmentationScore,
    make_gallery,
    row_of,
)

CLASSES = ("disc", "star")
IDS = ["img-1", "img-2", "img-3"]
LABELS = {"img-1": (0,), "img-2": (1,), "img-3": (0, 1)}
PUBLISHED = Threshold(tau=0.1, origin="published")
DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32


class MapsOf:
    """Maps that lie in a dictionary."""

    def __init__(self, kind: str, maps: Mapping[str, Any]) -> None:
        self.kind, self.maps = kind, maps
        self.image_ids = sorted(maps)

    def read(self, image_id: str) -> Any:
        return self.maps[image_id]


class Pictures:
    """Three images: a disc, a star, and both."""

    def __init__(self, classes: tuple[str, ...] = CLASSES) -> None:
        self.classes = classes

    def read_image(self, image_id: str) -> np.ndarray:
        return np.random.default_rng(int(image_id[-1])).integers(
            0, 256, (12, 16, 3), dtype=np.uint8
        )

    def image_labels(self, image_id: str) -> tuple[int, ...]:
        return LABELS[image_id]


def truth() -> MapsOf:
    maps = {}
    for image_id in IDS:
        label = np.zeros((12, 16), np.uint8)
        for class_id in LABELS[image_id]:
            label[3:9, 1 + 8 * class_id : 6 + 8 * class_id] = class_id + 1
        label[0] = 255
        maps[image_id] = label
    return MapsOf("label", maps)


def saliency(noise: int) -> MapsOf:
    """The objects, off by up to ``noise`` grey values."""
    rng = np.random.default_rng(7)
    maps = {}
    for image_id, label in truth().maps.items():
        grey = np.where((label > 0) & (label < 255), 200, 20)
        grey = grey + rng.integers(-noise, noise + 1, label.shape)
        maps[image_id] = grey.clip(0, 255).astype(np.uint8)
    return MapsOf("sal", maps)


def activations() -> MapsOf:
    rng = np.random.default_rng(11)
    maps = {}
    for image_id, label in truth().maps.items():
        ids = np.array(LABELS[image_id])
        stack = [np.where(label == c + 1, 160, 30) + rng.integers(0, 90, label.shape) for c in ids]
        maps[image_id] = (np.stack(stack).astype(np.uint8), ids)
    return MapsOf("cam", maps)


def curve(noise: int) -> ThresholdCurve:
    return threshold_curve(activations(), truth(), saliency(noise), num_classes=2)


def basis(split: str = "val", **details: str) -> Basis:
    return Basis(split=split, images=3, image_list=DIGEST, details=details)


def quality(mae: float | None, max_f: float | None, s: float | None) -> SaliencyScore:
    return SaliencyScore(mae=mae, max_f=max_f, s_measure=s, basis=basis("shapes-te"))


def labels(
    miou: float | None, *, labelled: float | None = None, origin: str = "curve", tau: float = 0.4
) -> LabelScore:
    split = "train" if origin == "curve" else None
    return LabelScore(
        threshold=Threshold.model_validate({"tau": tau, "origin": origin, "split": split}),
        miou_ignored_missed=miou,
        miou=miou if labelled is None else labelled,
        coverage=0.9,
        basis=basis("train"),
    )


def network(
    miou: float | None, error: float | None = None, split: str = "val"
) -> SegmentationScore:
    seeds = [0] if error is None else [0, 1, 2]
    return SegmentationScore(miou=miou, standard_error=error, seeds=seeds, basis=basis(split))


def row(
    name: str,
    sal: SaliencyScore | None = None,
    fixed: float | None = None,
    best: float | None = None,
    seg: SegmentationScore | None = None,
    *,
    cam: str = "cam/cam",
) -> ResultRow:
    """A row of plain numbers; None leaves a score out."""
    return ResultRow(
        name=name,
        activations=cam,
        saliency=sal,
        fixed=None if fixed is None else labels(fixed, origin="published", tau=0.1),
        best=None if best is None else labels(best),
        segmentation=seg,
    )


def own_labels(name: str, miou: float, coverage: float, seg: SegmentationScore | None) -> ResultRow:
    """The row of labels that were made elsewhere; with 0.01 more where only labelled ones count."""
    score = OwnLabelScore(
        miou_ignored_missed=miou,
        miou=miou if coverage == 1 else miou + 0.01,
        coverage=coverage,
        per_class=[0.9, None, miou],
        basis=basis("train"),
    )
    return ResultRow(name=name, role="labels", activations="cam/cam", own=score, segmentation=seg)


GOOD, BAD = quality(0.03, 0.93, 0.91), quality(0.09, 0.80, 0.78)


def full_report(words: str = "words") -> Report:
    """A report that has everything; every text that somebody else could write is ``words``."""
    node = Node(
        role=words,
        name=words,
        target=words,
        digest=DIGEST,
        remark=words,
        facts={words: words, "command": words},
        links=[
            Link(text=words, url=words),
            Link(text=words, url="https://example.org/" + words.replace(" ", "")),
        ],
        made_from=[Node(role=words, name=words + "2", digest=OTHER_DIGEST)],
    )
    rows = [
        row_of(
            f"{words}{noise}",
            curve(noise),
            words,
            activations=words,
            fixed=PUBLISHED,
            image_list=DIGEST,
            saliency=score,
            segmentation=SegmentationScore(
                miou=0.6 - noise / 1000,
                standard_error=0.004,
                seeds=[0, 1, 2],
                per_class=[0.9, None, 0.3],
                threshold=Threshold(tau=0.3, origin="curve", split=words),
                basis=basis(words, **{words: words}),
            ),
        )
        for noise, score in ((40, GOOD), (150, BAD))
    ]
    pictures = Pictures((words + "a", words + "b"))
    columns = [(words, saliency(40)), (words, activations()), (words, truth())]
    gallery = make_gallery(pictures, columns, IDS)
    named = [r.model_copy(update={"image_id": words}) for r in gallery.rows]
    return Report(
        title=words,
        target=words,
        settings={words: words},
        classes=[words + "a", words + "b"],
        rows=[
            *rows,
            ResultRow(name=words, role="ground truth", segmentation=network(0.76, 0.003, words)),
        ],
        gallery=gallery.model_copy(update={"rows": named}),
        provenance=[node],
        made_by=words,
    )
