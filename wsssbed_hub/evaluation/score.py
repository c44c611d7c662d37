"""Scoring whole artifacts: saliency maps, pseudo labels and segmentations against the truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wsssbed_hub.evaluation.curves import MapReader, require_ids
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.evaluation.saliency_metrics import MEASURES, SaliencyMetrics, SSNetSaliencyMetrics
from wsssbed_hub.utils.progress import Progress

if TYPE_CHECKING:
    from wsssbed_hub.datasets import SodDataset


def score_labels(
    labels: MapReader,
    ground_truth: MapReader,
    *,
    num_classes: int,
    undecided: bool,
    progress: Progress | None = None,
) -> SegmentationMetrics:
    """The score of label maps over all images of ``ground_truth``.

    ``labels`` and ``ground_truth`` give uint8[H, W], 0 background, c + 1 class c; the truth may be
    255 (not counted). With ``undecided`` so may the labels: pseudo labels, whose ignored pixels
    count as missed. ``num_classes`` is C, background not counted.

    Raises HubError for missing images, values that are no class and unequal sizes.
    """
    score = SegmentationMetrics(num_classes, undecided="missed" if undecided else "error")
    for image_id, truth in _with_truth(labels, "labels", ground_truth, progress):
        score.add(labels.read(image_id), truth, image_id)
    return score


class Foreground:
    """A target's ground truth as saliency masks: 255 wherever it is not background.

    The void border that VOC draws around objects counts as object.
    """

    def __init__(self, ground_truth: MapReader) -> None:
        self._ground_truth = ground_truth
        self.image_ids = ground_truth.image_ids

    def read(self, image_id: str) -> np.ndarray:
        """uint8[H, W], 0 or 255."""
        return np.where(self._ground_truth.read(image_id) > 0, 255, 0).astype(np.uint8)


class Masks:
    """The masks of a SOD dataset, as its authors drew them."""

    def __init__(self, dataset: SodDataset) -> None:
        self.image_ids = dataset.image_ids
        self.read = dataset.read_mask


class MeanMask:
    """The mean of a SOD dataset's masks for a saliency map of every image: what one scores that
    knows where objects lie as a rule, and looks at nothing.

    Masks are stretched to a square, where their mean is taken, and that to the size of an image.
    """

    SIDE = 256

    def __init__(self, dataset: SodDataset, images: MapReader) -> None:
        """``images`` are maps of the images' sizes, their ground truth for example."""
        total = np.zeros((self.SIDE, self.SIDE))
        for image_id in dataset.image_ids:
            total += _stretched(dataset.read_mask(image_id), (self.SIDE, self.SIDE))
        self._mean = (total / len(dataset)).astype(np.float32)
        self._images = images
        self.image_ids = images.image_ids

    def read(self, image_id: str) -> np.ndarray:
        """uint8[H, W]."""
        return np.rint(_stretched(self._mean, self._images.read(image_id).shape)).astype(np.uint8)


def _stretched(grey: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32[shape] of a map, bilinear; smaller ones are means over the pixels of the larger."""
    picture = Image.fromarray(grey.astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def score_saliency(
    maps: MapReader,
    truth: MapReader,
    *,
    protocol: str = "sod",
    measures: Iterable[str] = MEASURES,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measures of saliency maps over all images of ``truth``.

    ``protocol`` is ``sod`` (PySODMetrics: 256 thresholds, mean of F; with S, E and weighted F) or
    ``ssnet`` (the SSNet paper's program: 21 thresholds, F of the means). ``measures`` are those of
    ``SaliencyMetrics`` to compute under ``sod``.

    Raises HubError for missing images and unequal sizes.
    """
    score: SaliencyMetrics | SSNetSaliencyMetrics
    score = SSNetSaliencyMetrics() if protocol == "ssnet" else SaliencyMetrics(measures)
    for image_id, mask in _with_truth(maps, "saliency maps", truth, progress):
        score.add(maps.read(image_id), mask, image_id)
    return score.result()


def _with_truth(
    maps: MapReader, what: str, truth: MapReader, progress: Progress | None
) -> Iterator[tuple[str, Any]]:
    require_ids(truth.image_ids, maps, what)
    for done, image_id in enumerate(truth.image_ids, start=1):
        yield image_id, truth.read(image_id)
        if progress is not None:
            progress(done, len(truth.image_ids))
