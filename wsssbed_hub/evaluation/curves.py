"""Every threshold in one pass: how good pseudo labels are at each of the 256 distinct taus.

A pixel's label depends on tau only through the winning class and its value. So one pass over the
maps fills a histogram (true class, winning class, value), and summing it from the highest value
down gives the confusion matrix at every threshold, equal to the last integer to labelling with
``pseudo_label`` and scoring at each threshold separately.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from wsssbed_hub.evaluation.method_rules import (
    EDAM_BETA,
    check_curve_rule,
    check_rule,
    check_settings,
    salient_above,
)
from wsssbed_hub.evaluation.metrics import (
    check_label_map,
    check_truth,
    class_iou,
    mean_iou,
    or_none,
    ratio,
)
from wsssbed_hub.evaluation.pseudo_label import (
    IGNORE,
    check_inputs,
    dimensions,
    first_label_value,
    saliency_gate,
    winners,
)
from wsssbed_hub.evaluation.spans import ALWAYS, Span, drs_spans, edam_spans
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.progress import Progress

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule

Criterion = Literal["miou_ignored_missed", "miou"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)


class MapReader(Protocol):
    """Maps by image id, as much as a curve asks of them (see ``wsssbed_hub.artifacts.maps``)."""

    @property
    def image_ids(self) -> Sequence[str]: ...

    def read(self, image_id: str) -> Any: ...


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """Pseudo labels scored at tau = 0/255, 1/255, ... 255/255.

    ``thresholds``: float64[256]. ``confusion``: int64[256, C + 1, C + 1], row truth, column label.
    ``ignored``: int64[256, C + 1], pixels of each true class that are labelled 255. ``images``: how
    many were counted. ``rule``, ``sal_threshold`` and ``beta`` are those of ``pseudo_label``;
    ``sal_threshold`` is None for labels without saliency. Pixels whose truth is 255 count nowhere.
    """

    thresholds: np.ndarray
    confusion: np.ndarray
    ignored: np.ndarray
    images: int
    rule: Rule
    sal_threshold: float | None
    beta: float = EDAM_BETA

    @cached_property
    def iou(self) -> np.ndarray:
        """IoU of each class over the labelled pixels: float64[256, C + 1], NaN for 0/0."""
        return class_iou(self.confusion)

    @cached_property
    def miou(self) -> np.ndarray:
        """mIoU over the labelled pixels: float64[256]; convention ``stream`` of ``mean_iou``."""
        return mean_iou(self.confusion)

    @cached_property
    def miou_ignored_missed(self) -> np.ndarray:
        """mIoU in which an ignored pixel is a miss of its true class: float64[256]."""
        return mean_iou(self.confusion, self.ignored)

    @cached_property
    def coverage(self) -> np.ndarray:
        """Share of the pixels with a truth that are labelled: float64[256], NaN without any."""
        labelled = self.confusion.sum(axis=(1, 2))
        return ratio(labelled, labelled + self.ignored.sum(axis=1))

    def best_index(self, criterion: Criterion = "miou_ignored_missed") -> int:
        """Index of the threshold with the highest mIoU, the lowest one of equals.

        By default an ignored pixel is a miss. The mIoU over labelled pixels alone rewards a high
        tau for ignoring whatever is difficult: near tau = 1 hardly any object is labelled, and the
        few labels that are left are right. It can be asked for as ``miou``. Without saliency
        nothing is ignored and the two are the same.

        Raises HubError if no pixel has a truth, UsageError for an unknown criterion.
        """
        if criterion not in CRITERIA:
            raise UsageError(
                f"There is no criterion {criterion!r}. Choose one of {', '.join(CRITERIA)}."
            )
        values = self.miou if criterion == "miou" else self.miou_ignored_missed
        if np.isnan(values).all():
            raise HubError("The ground truth is 255 everywhere: there is no best threshold.")
        return int(np.nanargmax(values))

    def best_tau(self, criterion: Criterion = "miou_ignored_missed") -> float:
        """The tau at ``best_index``, in [0, 1]."""
        return float(self.thresholds[self.best_index(criterion)])

    def index_of(self, tau: float) -> int:
        """Index of the threshold that gives the same labels as ``tau``: every tau has one.

        Raises UsageError unless tau is in [0, 1].
        """
        check_settings(tau, 0, self.rule)
        wanted = first_label_value(tau, rule=self.rule, saliency=self.sal_threshold is not None)
        return _first_label_values(self.rule, self.sal_threshold is not None).index(wanted)

    def row(self, tau: float) -> dict[str, float | None]:
        """One row of a table: the measures of the labels at ``tau``, which need not be k/255."""
        index = self.index_of(tau)
        return {
            "tau": tau,
            "miou_ignored_missed": or_none(self.miou_ignored_missed[index]),
            "miou": or_none(self.miou[index]),
            "coverage": or_none(self.coverage[index]),
        }

    def as_dict(self) -> dict[str, Any]:
        """The curve as JSON has it, NaN as null; without the confusion matrices."""
        series = {
            name: [or_none(value) for value in getattr(self, name)]
            for name in ("miou_ignored_missed", "miou", "coverage")
        }
        return {
            "images": self.images,
            "rule": self.rule,
            "sal_threshold": self.sal_threshold,
            "best": {name: self.row(self.best_tau(name)) for name in CRITERIA},
            "thresholds": self.thresholds.tolist(),
            **series,
            "iou": [[or_none(value) for value in row] for row in self.iou],
        }


def threshold_curve(
    cam: MapReader,
    ground_truth: MapReader,
    sal: MapReader | None = None,
    *,
    num_classes: int,
    sal_threshold: float = 0.2,
    rule: Rule = "paper",
    beta: float = EDAM_BETA,
    progress: Progress | None = None,
) -> ThresholdCurve:
    """Scores the pseudo labels of all images of ``ground_truth`` at all 256 thresholds.

    ``cam``, ``ground_truth`` and ``sal`` are opened artifacts, or anything that gives the maps of
    an id; ``cam`` and ``sal`` may cover more images. ``num_classes`` is C, background not counted.
    Without ``sal`` the labels are those without saliency. ``sal_threshold``, ``rule`` and ``beta``
    are those of ``pseudo_label``; the rules oaa and mcis have no curve, see ``check_curve_rule``.
    ``progress`` is told the images done and their number.

    Time and memory do not depend on the number of thresholds, and for each image only on the
    classes that occur in it.

    Raises UsageError for the settings; HubError if maps are missing, differ in size or hold values
    that are none of the target's classes.
    """
    check_settings(0, sal_threshold, rule)
    check_curve_rule(rule)
    check_rule(rule, saliency=sal is not None, ignore=True, beta=beta)
    ids = ground_truth.image_ids
    if len(ids) == 0:
        raise HubError("The ground truth has no images: there is nothing to score.")
    require_ids(ids, cam, "activation maps")
    if sal is not None:
        require_ids(ids, sal, "saliency maps")
    threshold = None if sal is None else salient_above(rule, sal_threshold)
    by_spans = sal is not None and rule in ("drs", "edam")
    histogram = (_SpanHistogram if by_spans else _Histogram)(num_classes, threshold, rule, beta)
    for done, image_id in enumerate(ids, 1):
        activations, class_ids = cam.read(image_id)
        saliency = None if sal is None else sal.read(image_id)
        try:
            histogram.add(ground_truth.read(image_id), activations, class_ids, saliency)
        except HubError as error:
            raise HubError(f"{image_id}: {error}") from None
        if progress is not None:
            progress(done, len(ids))
    return histogram.curve()


def require_ids(ids: Sequence[str], maps: MapReader, what: str) -> None:
    """Raises HubError if ``maps`` lack an image of ``ids``; ``what`` they are, for the message."""
    have = set(maps.image_ids)
    missing = [image_id for image_id in ids if image_id not in have]
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        where = f" in {maps.name}" if hasattr(maps, "name") else ""
        raise HubError(
            f"{len(missing)} of {len(ids)} images have no {what}{where}: {few}. "
            "Use maps of the same target, or a split that they cover."
        )


def _first_label_values(rule: str, saliency: bool) -> list[int]:
    return [first_label_value(k / 255, rule=rule, saliency=saliency) for k in range(256)]


class _Histogram:
    """Pixels by true class, by winning class and by the winner's value.

    Column 0 holds what is background at any tau: pixels that are not salient. A pixel that no tau
    gives a class, though it is salient, stands at value 0 of some class, which never passes.
    """

    def __init__(
        self, num_classes: int, sal_threshold: float | None, rule: Rule, beta: float = EDAM_BETA
    ) -> None:
        if not 1 <= num_classes < IGNORE:
            raise UsageError(f"{num_classes} classes do not fit into 8-bit label maps: 1 to 254.")
        self.num_classes = num_classes
        self.sal_threshold = sal_threshold
        self.rule = rule
        self.beta = beta
        self.images = 0
        self.counts = self._no_counts()

    def _no_counts(self) -> np.ndarray:
        return np.zeros((self.num_classes + 1, self.num_classes + 1, 256), np.int64)

    def add(
        self,
        truth: np.ndarray,
        activations: np.ndarray,
        class_ids: np.ndarray,
        saliency: np.ndarray | None,
    ) -> None:
        """Counts one image; raises HubError if its maps do not fit."""
        check_inputs(activations, class_ids, saliency)
        self._check_classes(class_ids)
        check_label_map(truth, "the ground truth")
        if truth.shape != activations.shape[1:]:
            raise HubError(
                f"the ground truth is {dimensions(truth)} and the activation maps are "
                f"{dimensions(activations)} (height x width)."
            )
        values_there = np.bincount(truth.ravel(), minlength=256)
        check_truth(values_there, self.num_classes, "the ground truth")
        present = np.flatnonzero(values_there[: self.num_classes + 1])
        self._count(truth, present, activations, class_ids, saliency)
        self.images += 1

    def _count(
        self,
        truth: np.ndarray,
        present: np.ndarray,
        activations: np.ndarray,
        class_ids: np.ndarray,
        saliency: np.ndarray | None,
    ) -> None:
        """Counts the pixels of one image, of whose truth the classes ``present`` occur."""
        winner, values = self._winners(activations, class_ids, saliency)
        # Rows and columns of the classes that occur only, and a last row for truth 255.
        ids = np.sort(class_ids) if len(class_ids) else np.zeros(1, np.int64)
        columns = np.concatenate([[0], ids + 1])
        wide = (len(present) + 1) * len(columns) > 256  # cells no longer fit into 8 bits
        row = np.full(256, len(present) * len(columns), np.uint32 if wide else np.uint8)
        row[present] = np.arange(len(present)) * len(columns)
        cell = np.take(row, truth) + winner
        index = (cell.astype(np.uint32 if wide else np.uint16) << 8) | values
        shape = (len(present) + 1, len(columns), 256)
        local = np.bincount(index.ravel(), minlength=int(np.prod(shape))).reshape(shape)
        self.counts[np.ix_(present, columns)] += local[: len(present)]

    def _check_classes(self, class_ids: np.ndarray) -> None:
        if len(class_ids) and np.max(class_ids) >= self.num_classes:
            raise HubError(
                f"an activation map is of class {np.max(class_ids)}, and the target has "
                f"{self.num_classes} classes (0 to {self.num_classes - 1})."
            )

    def _winners(
        self, activations: np.ndarray, class_ids: np.ndarray, saliency: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Position of the winner among the image's classes, from 1 (0: background), and value."""
        marks = np.argsort(np.argsort(class_ids)) + 1
        winner, values = winners(activations, class_ids, marks)
        if saliency is not None and self.sal_threshold is not None:
            gate = saliency_gate(values, saliency, self.sal_threshold, self.rule)
            winner *= gate.salient
            values *= gate.eligible
        return winner, values

    def curve(self) -> ThresholdCurve:
        """The curve of all images that were added."""
        confusion, ignored = self._sums()
        return ThresholdCurve(
            thresholds=np.arange(256) / 255,
            confusion=confusion,
            ignored=ignored,
            images=self.images,
            rule=self.rule,
            sal_threshold=self.sal_threshold,
            beta=self.beta,
        )

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The sums from above: what passes each threshold, and what becomes of the rest."""
        classes = self.num_classes + 1
        saliency = self.sal_threshold is not None
        at_least = np.zeros((classes, self.num_classes, 257), np.int64)
        at_least[:, :, :256] = self.counts[:, 1:, ::-1].cumsum(axis=2)[:, :, ::-1]
        passing = at_least[:, :, _first_label_values(self.rule, saliency)]
        rest = (at_least[:, :, :1] - passing).sum(axis=1).T  # threshold, truth
        confusion = np.empty((256, classes, classes), np.int64)
        confusion[:, :, 0] = self.counts[:, 0].sum(axis=1)
        confusion[:, :, 1:] = np.moveaxis(passing, 2, 0)
        if not saliency:
            confusion[:, :, 0] += rest
        return confusion, rest if saliency else np.zeros_like(rest)


class _SpanHistogram(_Histogram):
    """Pixels by true class, by label, and by the levels at which they begin and cease to have it.

    The last column is that of ignored pixels. A span adds 1 at its last level and takes 1 away at
    the one before its first, so that the sums from above are the pixels at each level.
    """

    def _no_counts(self) -> np.ndarray:
        return np.zeros((self.num_classes + 1, self.num_classes + 2, ALWAYS + 1), np.int64)

    def _spans(
        self, activations: np.ndarray, class_ids: np.ndarray, saliency: np.ndarray | None
    ) -> Iterator[Span]:
        assert saliency is not None  # without it, no spans
        assert self.sal_threshold is not None
        if self.rule == "drs":
            return drs_spans(activations, class_ids, saliency)
        return edam_spans(activations, class_ids, saliency, self.sal_threshold, self.beta)

    def _count(
        self,
        truth: np.ndarray,
        present: np.ndarray,
        activations: np.ndarray,
        class_ids: np.ndarray,
        saliency: np.ndarray | None,
    ) -> None:
        columns = np.concatenate([[0], np.sort(class_ids) + 1, [self.num_classes + 1]])
        columns = columns.astype(np.int64)
        row = np.full(256, len(present))  # the last row: of truth 255
        row[present] = np.arange(len(present))
        cell = row[truth] * len(columns)
        shape = (len(present) + 1, len(columns), ALWAYS + 1)

        def count(column: np.ndarray | int, level: np.ndarray) -> np.ndarray:
            index = (cell + column) * (ALWAYS + 1) + level
            found = np.bincount(index.ravel(), minlength=int(np.prod(shape)))
            return found.reshape(shape)[: len(present)]

        before = np.zeros(truth.shape, np.int64)
        local = np.zeros((len(present), *shape[1:]), np.int64)
        for column, until in self._spans(activations, class_ids, saliency):
            level = np.maximum(before, until)
            local += count(column, level) - count(column, before)
            before = level
        self.counts[np.ix_(present, columns)] += local

    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        at_least = self.counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
        found = np.moveaxis(at_least[:, :, _first_label_values(self.rule, True)], 2, 0)
        return found[:, :, :-1], found[:, :, -1]
