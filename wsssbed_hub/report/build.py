"""From what the hub measures to the rows of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wsssbed_hub.artifacts.manifest import Result, Threshold
from wsssbed_hub.evaluation.metrics import class_iou, mean_iou, or_none
from wsssbed_hub.report.data import (
    Basis,
    Curve,
    LabelScore,
    OwnLabelScore,
    ResultRow,
    SaliencyScore,
    SegmentationScore,
)

if TYPE_CHECKING:
    from wsssbed_hub.evaluation import metrics
    from wsssbed_hub.evaluation.curves import ThresholdCurve

MIOU = "mIoU"  # what results call it


def label_score(
    curve: ThresholdCurve, threshold: Threshold, split: str, image_list: str | None = None
) -> LabelScore:
    """The labels at ``threshold``, read off ``curve``, which was measured on ``split``.

    Raises UsageError unless tau is in [0, 1].
    """
    index = curve.index_of(threshold.tau)
    per_class = class_iou(curve.confusion[index], curve.ignored[index])
    gate = curve.sal_threshold
    saliency = "none" if gate is None else f"above {gate:g}" if gate else "soft"
    return LabelScore(
        threshold=threshold,
        miou_ignored_missed=or_none(curve.miou_ignored_missed[index]),
        miou=or_none(curve.miou[index]),
        coverage=or_none(curve.coverage[index]),
        per_class=[or_none(value) for value in per_class],
        basis=Basis(
            split=split,
            images=curve.images,
            image_list=image_list,
            details={"rule": curve.rule, "saliency": saliency},
        ),
    )


def own_label_score(
    score: metrics.SegmentationMetrics, split: str, image_list: str | None = None
) -> OwnLabelScore:
    """Labels that were made elsewhere; ``score`` counts 255 as missed, over all of ``split``."""
    return OwnLabelScore(
        miou_ignored_missed=or_none(score.mean_iou()),
        miou=or_none(float(mean_iou(score.confusion))),
        coverage=or_none(score.coverage),
        per_class=[or_none(value) for value in score.class_iou],
        basis=Basis(split=split, images=score.images, image_list=image_list),
    )


def row_of(
    name: str,
    curve: ThresholdCurve,
    split: str,
    *,
    activations: str,
    fixed: Threshold | None = None,
    image_list: str | None = None,
    saliency: SaliencyScore | None = None,
    segmentation: SegmentationScore | None = None,
) -> ResultRow:
    """The row of the labels from one saliency map (or, if the curve has none, from none).

    ``name`` is what the row is called, the saliency map's key as a rule; ``fixed`` the published
    or given tau; ``image_list`` the digest of the ids of ``split``.
    Raises UsageError unless tau is in [0, 1], HubError if the curve saw no ground truth.
    """
    best = Threshold(tau=curve.best_tau(), origin="curve", split=split)
    return ResultRow(
        name=name,
        role="saliency" if curve.sal_threshold is not None else "no saliency",
        activations=activations,
        saliency=saliency,
        fixed=None if fixed is None else label_score(curve, fixed, split, image_list),
        best=label_score(curve, best, split, image_list),
        curve=_curve(curve),
        segmentation=segmentation,
    )


def saliency_score(
    measures: Mapping[str, float], dataset: str, images: int, image_list: str | None = None
) -> SaliencyScore:
    """``mae``, ``max_f`` and ``s_measure`` of ``measures`` (see
    ``wsssbed_hub.evaluation.saliency_metrics``), measured on ``images`` images of ``dataset``."""
    known = {name: measures[name] for name in ("mae", "max_f", "s_measure") if name in measures}
    return SaliencyScore(**known, basis=Basis(split=dataset, images=images, image_list=image_list))


def segmentation_score(
    result: Result, network: str, per_class: Sequence[float | None] = ()
) -> SegmentationScore:
    """A stage's ``result`` (mIoU) as a cell of the table; ``per_class`` background first."""
    details = {"network": network, "CRF": "yes" if result.crf else "no"}
    if result.initial_weights:
        details["initial weights"] = result.initial_weights
    return SegmentationScore(
        miou=result.value,
        standard_error=result.standard_error,
        seeds=result.seeds,
        threshold=result.threshold,
        per_class=list(per_class),
        basis=Basis(
            split=result.split,
            images=result.images,
            image_list=result.image_list,
            details=details,
        ),
    )


def _curve(curve: ThresholdCurve) -> Curve:
    return Curve(
        taus=curve.thresholds.tolist(),
        miou_ignored_missed=[or_none(value) for value in curve.miou_ignored_missed],
        miou=[or_none(value) for value in curve.miou],
        coverage=[or_none(value) for value in curve.coverage],
    )
