"""Saliency measures, in the two protocols whose numbers are in the literature.

``SaliencyMetrics`` are what the field reports today, computed by PySODMetrics.
``SSNetSaliencyMetrics`` are the protocol behind Tables 1, 2 and 6 of SSNet (Zeng et al., "Joint
Learning of Saliency Detection and Weakly Supervised Semantic Segmentation", ICCV 2019), which its
paper does not define and its published program does. Numbers of one are not to be compared with
numbers of the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from wsssbed_hub.evaluation.pseudo_label import dimensions
from wsssbed_hub.utils.errors import HubError, UsageError

Resize = Literal["nearest", "bicubic"]
MEASURES = ("mae", "f", "s", "e", "weighted_f")
BETA_SQUARED = 0.3  # weight of precision against recall, in both protocols


class SaliencyMetrics:
    """Mean over images of MAE, F, S, E and weighted F, as PySODMetrics defines them.

    Truth is salient where its grey value exceeds 128. A map is stretched to [0, 1] first (a
    constant one is left as it is). F (beta^2 = 0.3) and E have 256 thresholds, from 255 down to
    0; their curves are averaged over the images before the maximum is taken.

    ``measures``: which of ``mae``, ``f``, ``s``, ``e``, ``weighted_f`` to compute; the last takes
    most of the time. ``resize`` brings a map of another size to the size of its truth; by default
    that is an error.
    """

    def __init__(self, measures: Iterable[str] = MEASURES, *, resize: Resize | None = None) -> None:
        wanted = list(measures)
        for measure in wanted:
            if measure not in MEASURES:
                raise UsageError(
                    f"There is no saliency measure {measure!r}. Choose from {', '.join(MEASURES)}."
                )
        _check_resize(resize)
        import py_sod_metrics  # takes a second or two

        makers = dict(
            zip(
                MEASURES,
                (
                    py_sod_metrics.MAE,
                    py_sod_metrics.Fmeasure,
                    py_sod_metrics.Smeasure,
                    py_sod_metrics.Emeasure,
                    py_sod_metrics.WeightedFmeasure,
                ),
                strict=True,
            )
        )
        with warnings.catch_warnings():
            # Fmeasure announces a successor, which needs more set-up to give the same numbers.
            warnings.simplefilter("ignore")
            self._measures = {name: makers[name]() for name in MEASURES if name in wanted}
        self.resize = resize
        self.images = 0

    def add(self, prediction: np.ndarray, truth: np.ndarray, name: str) -> None:
        """Measures one saliency map against its mask, both uint8[H, W] grey.

        Raises HubError, naming the image, if an array is no map or the sizes differ.
        """
        prediction = _prepare(prediction, truth, name, self.resize)
        for measure in self._measures.values():
            measure.step(pred=prediction, gt=truth)
        self.images += 1

    def result(self) -> dict[str, float]:
        """Fractions: ``mae``, ``max_f``, ``mean_f``, ``adaptive_f``, ``max_f_of_mean_pr`` (F of the
        mean precision and recall), ``s_measure``, ``max_e``, ``mean_e``, ``adaptive_e``,
        ``weighted_f``, those that were asked for.

        Raises HubError if nothing was added.
        """
        curves = self.curves()
        result: dict[str, Any] = {}
        for name, measure in self._measures.items():
            given = measure.get_results()
            if name == "mae":
                result["mae"] = given["mae"]
            elif name == "s":
                result["s_measure"] = given["sm"]
            elif name == "weighted_f":
                result["weighted_f"] = given["wfm"]
            else:
                curve = curves[f"{name}_curve"]
                result[f"max_{name}"] = curve.max()
                result[f"mean_{name}"] = curve.mean()
                result[f"adaptive_{name}"] = given["fm" if name == "f" else "em"]["adp"]
        if "f" in self._measures:
            result["max_f_of_mean_pr"] = f_measure(curves["precision"], curves["recall"]).max()
        return {name: float(value) for name, value in result.items()}

    def curves(self) -> dict[str, np.ndarray]:
        """float64[256] each, thresholds 255 down to 0: ``precision``, ``recall``, ``f_curve``,
        ``e_curve``, means over the images.

        Raises HubError if nothing was added.
        """
        _check_images(self.images)
        curves = {}
        if "f" in self._measures:
            given = self._measures["f"].get_results()
            curves["precision"] = np.asarray(given["pr"]["p"])
            curves["recall"] = np.asarray(given["pr"]["r"])
            curves["f_curve"] = np.asarray(given["fm"]["curve"])
        if "e" in self._measures:
            curves["e_curve"] = np.asarray(self._measures["e"].get_results()["em"]["curve"])
        return curves


class SSNetSaliencyMetrics:
    """MAE and F as SSNet's published program (zengxianyu/jsws, evaluate_sal.py) computes them.

    Truth is salient wherever its grey value is not 0: soft edges count. A map is stretched to
    [0, 1]; a constant one becomes 0, a white one too. 21 thresholds, 0, 0.05, ..., 1. Precision
    and recall are averaged over the images at each threshold, F (beta^2 = 0.3) is that of the
    means, and the maximum is taken last.

    ``resize``: filter that brings a map of another size to the size of its truth. The program
    leaves it to Pillow, whose default became ``bicubic`` in the version that it pins; the paper
    says ``nearest``. None makes another size an error.
    """

    def __init__(self, *, resize: Resize | None = "bicubic") -> None:
        _check_resize(resize)
        self.resize = resize
        self.images = 0
        self._precision = np.zeros(21)
        self._recall = np.zeros(21)
        self._mae = 0.0
        self._adaptive_f = 0.0
        self._max_f = 0.0

    def add(self, prediction: np.ndarray, truth: np.ndarray, name: str) -> None:
        """Measures one saliency map against its mask, both uint8[H, W] grey.

        Raises HubError, naming the image, if an array is no map or the sizes differ and ``resize``
        is None.
        """
        prediction = _prepare(prediction, truth, name, self.resize)
        salient = truth != 0
        counts = np.bincount(prediction.ravel(), minlength=256)
        hits = np.bincount(prediction[salient], minlength=256)
        low, high = int(prediction.min()), int(prediction.max())
        # The maps are 8 bit, so all that is needed is the stretched value of each grey value.
        grey = (np.arange(256.0) - low) / (high - low) if high > low else np.zeros(256)
        # linspace in float64 on purpose: its 0.6 lies just above grey value 153 of 255.
        precision, recall = _precision_recall(grey, counts, hits, np.linspace(0, 1, 21))
        mean = (grey * counts).sum() / prediction.size
        adaptive = _precision_recall(grey, counts, hits, np.array([min(2 * mean, 1.0)]))
        self._precision += precision
        self._recall += recall
        self._mae += (counts * grey + hits * (1 - 2 * grey)).sum() / prediction.size
        self._adaptive_f += float(f_measure(*adaptive)[0])
        self._max_f += float(f_measure(precision, recall).max())
        self.images += 1

    def merge(self, other: SSNetSaliencyMetrics) -> None:
        """Counts the images of ``other`` as well: work may be shared among processes."""
        self._precision += other._precision
        self._recall += other._recall
        self._mae += other._mae
        self._adaptive_f += other._adaptive_f
        self._max_f += other._max_f
        self.images += other.images

    def result(self) -> dict[str, float]:
        """Fractions: ``mae``, ``max_f`` (of the mean precision and recall), ``adaptive_f`` (mean
        over images), ``max_f_mean_of_images`` (for comparison: the mean of each image's own).

        Raises HubError if nothing was added.
        """
        curves = self.curves()
        return {
            "mae": float(self._mae / self.images),
            "max_f": float(curves["f_curve"].max()),
            "adaptive_f": self._adaptive_f / self.images,
            "max_f_mean_of_images": self._max_f / self.images,
        }

    def curves(self) -> dict[str, np.ndarray]:
        """float64[21] each, thresholds 0 up to 1: ``precision``, ``recall`` (means over the images)
        and ``f_curve``, the F of the two.

        Raises HubError if nothing was added.
        """
        _check_images(self.images)
        precision, recall = self._precision / self.images, self._recall / self.images
        return {
            "precision": precision,
            "recall": recall,
            "f_curve": f_measure(precision, recall),
        }


def f_measure(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """F with beta^2 = 0.3, and 0 where both are 0: float64, the shape of the arguments."""
    product = precision * recall
    return np.divide(
        (1 + BETA_SQUARED) * product,
        BETA_SQUARED * precision + recall,
        out=np.zeros_like(product),
        where=product > 0,
    )


def _precision_recall(
    grey: np.ndarray, counts: np.ndarray, hits: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both at each threshold, 0 for 0/0.

    ``grey``: the value that a grey value stands for; ``counts``: pixels of each grey value;
    ``hits``: those of them that are truly salient; float64[256] and int64[256].
    """
    above = grey[None, :] >= thresholds[:, None]
    found, right = (above * counts).sum(axis=1), (above * hits).sum(axis=1)
    return right / np.maximum(found, 1), right / max(1, hits.sum())


def _prepare(
    prediction: np.ndarray, truth: np.ndarray, name: str, resize: Resize | None
) -> np.ndarray:
    for what, grey in (("saliency map", prediction), ("mask", truth)):
        if grey.dtype != np.uint8 or grey.ndim != 2 or grey.size == 0:
            raise HubError(
                f"{name}: the {what} must be uint8[H, W], not {grey.dtype}{list(grey.shape)}."
            )
    if prediction.shape == truth.shape:
        return prediction
    if resize is None:
        raise HubError(
            f"{name}: the saliency map is {dimensions(prediction)} and the mask "
            f"{dimensions(truth)} (height x width). Write maps at the size of the image."
        )
    from PIL import Image

    height, width = truth.shape
    filters = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC}
    return np.asarray(Image.fromarray(prediction).resize((width, height), filters[resize]))


def _check_resize(resize: str | None) -> None:
    if resize not in (None, "nearest", "bicubic"):
        raise UsageError(f"resize is {resize!r}; it must be 'nearest' or 'bicubic'.")


def _check_images(images: int) -> None:
    if images == 0:
        raise HubError("No saliency map was measured: there is nothing to average.")
