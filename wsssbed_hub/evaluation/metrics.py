"""Segmentation measures: confusion matrix, IoU, mean IoU, accuracies.

Everything is a function of the confusion matrix summed over all images, as in PASCAL VOC; pixels
whose truth is 255 count nowhere. Published programs differ in how a class enters the mean that
has no pixel, and each way has a name, see ``mean_iou``.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from wsssbed_hub.evaluation.pseudo_label import IGNORE, dimensions
from wsssbed_hub.utils.errors import HubError, UsageError

Convention = Literal["stream", "crf_scores", "jsws", "voc"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


def class_iou(
    confusion: np.ndarray,
    missed: np.ndarray | None = None,
    convention: Convention = "stream",
) -> np.ndarray:
    """IoU of each class: float64[..., C + 1]. A class without any pixel has NaN, by ``jsws`` 0.

    ``confusion``: int64[..., C + 1, C + 1], row truth, column prediction. ``missed``:
    int64[..., C + 1], pixels of each true class that were given no class; they are in the union.
    Raises UsageError for an unknown convention, see ``mean_iou``.
    """
    if convention not in CONVENTIONS:
        raise UsageError(
            f"There is no convention {convention!r} for mIoU. Choose one of "
            f"{', '.join(CONVENTIONS)}."
        )
    iou = ratio(_intersection(confusion), _union(confusion, missed))
    return np.nan_to_num(iou) if convention == "jsws" else iou


def mean_iou(
    confusion: np.ndarray,
    missed: np.ndarray | None = None,
    convention: Convention = "stream",
) -> np.ndarray:
    """Mean of the class IoUs (see ``class_iou``): float64[...].

    ``stream``
        The benchmark's own (WSSS-BED release, StreamSegMetrics): classes with neither a true nor
        a predicted pixel are left out. NaN if that leaves none.
    ``crf_scores``
        The release's after DenseCRF: only classes that occur in the truth.
    ``jsws``
        SSNet's program: a class without any pixel has IoU 0 and counts. (It adds 1e-10 to each
        union to get there; we do not, so other values differ by less than 1e-10.)
    ``voc``
        The VOC 2012 development kit: the plain mean, NaN if a class has no pixel.

    Where every class occurs in the truth, as on the whole of VOC or COCO val, the four agree.
    """
    iou = class_iou(confusion, missed, convention)
    if convention == "stream":
        return _mean(iou, ~np.isnan(iou))
    if convention == "crf_scores":
        return _mean(iou, _truth(confusion, missed) > 0)
    return iou.mean(axis=-1)


def _intersection(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _union(confusion: np.ndarray, missed: np.ndarray | None) -> np.ndarray:
    return _truth(confusion, missed) + confusion.sum(axis=-2) - _intersection(confusion)


def _truth(confusion: np.ndarray, missed: np.ndarray | None) -> np.ndarray:
    truth = confusion.sum(axis=-1)
    return truth if missed is None else truth + missed


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, NaN where ``whole`` is 0."""
    nothing = np.full(np.broadcast(part, whole).shape, np.nan)
    return np.divide(part, whole, out=nothing, where=whole != 0)


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is counted; NaN where nothing is."""
    return ratio(np.where(counted, values, 0).sum(axis=-1), counted.sum(axis=-1))


class SegmentationMetrics:
    """Collects predictions, image by image, and knows the measures of what it has seen.

    ``num_classes`` is C, background not counted: label maps hold 0..C. ``undecided="missed"``
    counts 255 in a prediction as a miss of the true class (as SSNet's program does; pseudo labels
    have such pixels); by default it is an error, as in the VOC development kit.
    ``resize="nearest"`` brings a prediction of another size to the size of its truth, as SSNet's
    program does; by default that is an error.

    ``confusion`` (int64[C + 1, C + 1], row truth, column prediction), ``missed`` (int64[C + 1]) and
    ``images`` are the counts so far.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        undecided: Literal["error", "missed"] = "error",
        resize: Literal["nearest"] | None = None,
    ) -> None:
        if not 1 <= num_classes < IGNORE:
            raise UsageError(f"{num_classes} classes do not fit into 8-bit label maps: 1 to 254.")
        if undecided not in ("error", "missed"):
            raise UsageError(f"undecided is {undecided!r}; it must be 'error' or 'missed'.")
        if resize not in (None, "nearest"):
            raise UsageError(
                f"resize is {resize!r}; label maps can only be resized with 'nearest'."
            )
        self.num_classes = num_classes
        self.undecided = undecided
        self.resize = resize
        self.images = 0
        self.confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        self.missed = np.zeros(num_classes + 1, np.int64)

    def add(self, prediction: np.ndarray, truth: np.ndarray, name: str) -> None:
        """Counts one image, both uint8[H, W]; ``name`` is what messages call it.

        Raises HubError, and counts nothing, if a value is no class, if the sizes differ, or if an
        array is no label map.
        """
        check_label_map(prediction, f"{name}: the prediction")
        check_label_map(truth, f"{name}: the ground truth")
        prediction = self._at_size_of(truth, prediction, name)
        pairs = (truth.astype(np.uint16) << 8 | prediction).ravel()
        counts = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
        self._check_values(counts, name)
        known = counts[: self.num_classes + 1]
        self.confusion += known[:, : self.num_classes + 1]
        self.missed += known[:, IGNORE]
        self.images += 1

    def _at_size_of(self, truth: np.ndarray, prediction: np.ndarray, name: str) -> np.ndarray:
        if prediction.shape == truth.shape:
            return prediction
        if self.resize is None:
            raise HubError(
                f"{name}: the prediction is {dimensions(prediction)} and the ground truth "
                f"{dimensions(truth)} (height x width). Write predictions at the size of the image."
            )
        from PIL import Image

        height, width = truth.shape
        image = Image.fromarray(prediction).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(image)

    def _check_values(self, counts: np.ndarray, name: str) -> None:
        """``counts``: int[256, 256], pixels of each truth (row) and predicted value (column)."""
        highest = self.num_classes
        check_truth(counts.sum(axis=1), highest, f"{name}: the ground truth")
        odd = np.flatnonzero(counts.sum(axis=0)[highest + 1 :]) + highest + 1
        if self.undecided == "missed":
            odd = odd[odd != IGNORE]
        if odd.size:
            hint = ""
            if odd.tolist() == [IGNORE]:
                hint = " Ask for them to be counted as missed, if these are pseudo labels."
            raise HubError(
                f"{name}: the prediction has the value {odd[0]}, and classes go from 0 to "
                f"{highest}.{hint}"
            )

    @property
    def intersection(self) -> np.ndarray:
        """int64[C + 1]: pixels of each class that are right."""
        return _intersection(self.confusion)

    @property
    def union(self) -> np.ndarray:
        """int64[C + 1]: pixels whose truth or prediction is the class."""
        return _union(self.confusion, self.missed)

    @property
    def class_iou(self) -> np.ndarray:
        """float64[C + 1], NaN for a class without any pixel."""
        return class_iou(self.confusion, self.missed)

    def mean_iou(self, convention: Convention = "stream") -> float:
        """mIoU; the conventions are those of the function ``mean_iou``."""
        return float(mean_iou(self.confusion, self.missed, convention))

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that are right; NaN without pixels."""
        return float(ratio(self.intersection.sum(), self._truth.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean of the recall of the classes in the truth; NaN without pixels."""
        return float(_mean(self._recall, self._truth > 0))

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU of the classes, weighted by their share of the truth; 0 without pixels."""
        weights = self._truth / max(1, self._truth.sum())
        return float((weights * np.nan_to_num(self.class_iou)).sum())

    @property
    def coverage(self) -> float:
        """Share of the pixels that were given a class: 1 unless 255 is counted as missed."""
        return float(ratio(self.confusion.sum(), self._truth.sum()))

    @property
    def _truth(self) -> np.ndarray:
        return _truth(self.confusion, self.missed)

    @property
    def _recall(self) -> np.ndarray:
        return ratio(self.intersection, self._truth)

    def as_dict(self, convention: Convention = "stream") -> dict[str, Any]:
        """The measures as JSON has them: fractions, and null where there is nothing to divide."""
        by_class = class_iou(self.confusion, self.missed, convention)
        measures = {
            "miou": self.mean_iou(convention),
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
            "coverage": self.coverage,
        }
        return {
            "images": self.images,
            "convention": convention,
            **{name: or_none(value) for name, value in measures.items()},
            "class_iou": [or_none(value) for value in by_class],
        }


def check_label_map(label: np.ndarray, what: str) -> None:
    """Raises HubError, saying ``what`` is wrong, unless ``label`` is a label map."""
    if label.dtype != np.uint8 or label.ndim != 2:
        raise HubError(f"{what} must be uint8[H, W], not {label.dtype}{list(label.shape)}.")


def check_truth(counts: np.ndarray, highest: int, what: str) -> None:
    """Raises HubError, saying ``what`` is wrong, if there are pixels of a value that is no class.

    ``counts``: int[256], pixels of each value; ``highest``: the highest class. 255 is allowed:
    truth that counts nowhere.
    """
    odd = np.flatnonzero(counts[highest + 1 : IGNORE])
    if odd.size:
        raise HubError(
            f"{what} has the value {odd[0] + highest + 1}, and classes go from "
            f"0 to {highest}. Is this the ground truth of another target?"
        )


def or_none(value: float) -> float | None:
    """NaN as JSON's null."""
    return None if np.isnan(value) else float(value)
