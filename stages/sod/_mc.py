"""MC: saliency as the time that a random walk takes to be absorbed at the image's border.

Paper: Jiang, Zhang, Lu, Yang, Yang, "Saliency Detection via Absorbing Markov Chain", ICCV 2013.
The walk goes over superpixels, more likely to similar neighbours; every superpixel at the border
has a copy that absorbs. Where the times are all middling, as with a smooth background far from the
border, they are weighted by the inverse of the chain's equilibrium. One scale, no frame removed.
"""

from __future__ import annotations

import numpy as np

from stages.sod._superpixels import Superpixels, superpixels

NUMBER = 250  # superpixels
SIGMA2 = 0.1  # of the affinity exp(-distance / sigma^2), for colours whose distances are in 0..1
MIDDLING = 2.0  # gamma: score from which the times are weighted
LEVELS = 10  # of the histogram that the score is made of


def mc_saliency(rgb: np.ndarray) -> np.ndarray:
    """uint8[H, W] of uint8[H, W, 3] RGB; zero where an image has nothing but border."""
    regions = superpixels(rgb, NUMBER)
    if regions.at_border.all():
        return np.zeros(rgb.shape[:2], np.uint8)
    return regions.paint(absorbed_time(regions))


def absorbed_time(regions: Superpixels) -> np.ndarray:
    """float64[N] in 0..1, for regions of which not all are at the border."""
    weights = _weights(regions)
    degree = weights.sum(1)
    # A step into the copy of a border region is as likely as one into the region itself.
    total = degree + weights[:, regions.at_border].sum(1)
    fundamental = np.eye(len(weights)) - weights / total[:, None]
    time = _unit(np.linalg.solve(fundamental, np.ones(len(weights))))
    if _middling(time) < MIDDLING:
        return time
    return _unit(np.linalg.solve(fundamental, 1 / degree))


def _weights(regions: Superpixels) -> np.ndarray:
    """Affinities float64[N, N] of regions at most two steps apart, all at the border being one."""
    near = regions.adjacent | (regions.adjacent.astype(np.int64) @ regions.adjacent > 0)
    near |= np.outer(regions.at_border, regions.at_border)
    distances = _unit(np.where(near, regions.colour_distances, 0.0))
    weights = np.where(near, np.exp(-distances / SIGMA2), 0.0)
    np.fill_diagonal(weights, 1.0)
    return weights


def _middling(time: np.ndarray) -> float:
    """Mean distance, in levels of the histogram, from its nearer end: 1 to 5."""
    level = np.minimum(np.floor(time * LEVELS), LEVELS - 1)
    return float(np.minimum(level + 1, LEVELS - level).mean())


def _unit(values: np.ndarray) -> np.ndarray:
    """Stretched to 0..1; zero if all are one."""
    spread = values - values.min()
    highest = float(spread.max())
    stretched: np.ndarray = spread / highest if highest > 0 else spread
    return stretched
