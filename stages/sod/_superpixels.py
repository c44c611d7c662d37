"""An image as a graph of superpixels, which hand-crafted saliency is computed on.

SLIC and CIE Lab are scikit-image's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

COMPACTNESS = (
    20.0  # colour distance that weighs as much as a superpixel's spacing, as in both papers
)


@dataclass(frozen=True)
class Superpixels:
    """N connected regions of an image."""

    labels: np.ndarray
    """int64[H, W], 0..N-1."""
    lab: np.ndarray
    """float64[N, 3], mean colour in CIE Lab (L in 0..100)."""
    places: np.ndarray
    """float64[N, 2], centres y and x, each in 0..1 of the image's side."""
    at_border: np.ndarray
    """bool[N], whether the region touches the image's border."""
    adjacent: np.ndarray
    """bool[N, N], whether two regions touch, side by side or corner to corner; none with itself."""

    @property
    def colour_distances(self) -> np.ndarray:
        """float64[N, N], Euclidean in Lab."""
        return cdist(self.lab, self.lab)

    def paint(self, values: np.ndarray) -> np.ndarray:
        """The map uint8[H, W] of one value per region, stretched to 0..255; zero if all are one."""
        spread = values - values.min()
        highest = spread.max()
        levels = np.rint(spread / highest * 255) if highest > 1e-9 else np.zeros(len(values))
        return levels.astype(np.uint8)[self.labels]


def superpixels(rgb: np.ndarray, number: int) -> Superpixels:
    """About ``number`` regions of uint8[H, W, 3] RGB."""
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    height, width = rgb.shape[:2]
    lab = rgb2lab(rgb)
    found = slic(rgb, number, COMPACTNESS, sigma=0, start_label=0)
    _, labels = np.unique(found, return_inverse=True)
    labels = labels.reshape(height, width)
    count = int(labels.max()) + 1
    y, x = np.mgrid[:height, :width]

    def mean(plane: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.mean(plane, labels, range(count)))

    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    at_border = np.zeros(count, bool)
    at_border[edge] = True
    return Superpixels(
        labels,
        np.stack([mean(lab[..., channel]) for channel in range(3)], 1),
        np.stack([mean(y) / max(1, height - 1), mean(x) / max(1, width - 1)], 1),
        at_border,
        _adjacent(labels, count),
    )


def _adjacent(labels: np.ndarray, count: int) -> np.ndarray:
    found = np.zeros((count, count), bool)
    for one, other in (
        (labels[:, 1:], labels[:, :-1]),
        (labels[1:], labels[:-1]),
        (labels[1:, 1:], labels[:-1, :-1]),
        (labels[1:, :-1], labels[:-1, 1:]),
    ):
        found[one, other] = found[other, one] = True
    np.fill_diagonal(found, False)
    return found
