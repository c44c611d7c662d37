"""RBD: saliency from robust background detection.

Paper: Zhu, Liang, Wei, Sun, "Saliency Optimization from Robust Background Detection", CVPR 2014.
A region is background if much of what is like it lies at the image's border (equations 1 to 5);
its contrast to the background makes it foreground (7 to 9); the saliency balances both with
smoothness (10). The settings are the paper's; those of the published code where it tells of more:
the size of superpixels and the weight of the background in equation 10, which the paper has not.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from stages.sod._superpixels import Superpixels, superpixels

REGION = 600  # pixels of a superpixel
LEAST = 150  # superpixels, for images far smaller than the paper's (ours)
SIGMA_COLOUR = 10.0
SIGMA_PLACE = 0.25  # places are in 0..1
SIGMA_BORDER = 1.0
BACKGROUND = 5.0  # times the background's term
SMOOTHNESS = 0.1  # mu, added to every edge's weight


def rbd_saliency(rgb: np.ndarray) -> np.ndarray:
    """uint8[H, W] of uint8[H, W, 3] RGB; zero where an image has nothing but border."""
    height, width = rgb.shape[:2]
    regions = superpixels(rgb, max(LEAST, height * width // REGION))
    if regions.at_border.all():
        return np.zeros((height, width), np.uint8)
    return regions.paint(saliency(regions))


def saliency(regions: Superpixels) -> np.ndarray:
    """The s of equation 10, float64[N]."""
    background = background_probability(regions)
    contrast = background_weighted_contrast(regions, background)
    edges = regions.adjacent
    smooth = np.where(edges, _gauss(regions.colour_distances, SIGMA_COLOUR) + SMOOTHNESS, 0.0)
    np.fill_diagonal(smooth, 0.0)
    # The derivative by s: (background + foreground + Laplacian) s = foreground.
    terms = np.diag(BACKGROUND * background + contrast + smooth.sum(1)) - smooth
    found: np.ndarray = np.linalg.solve(terms, contrast)
    return found


def background_probability(regions: Superpixels) -> np.ndarray:
    """float64[N] in 0..1: 1 - exp(-c^2 / 2) of the boundary connectivity c (equations 1 to 6)."""
    likeness = _gauss(_geodesic(regions), SIGMA_COLOUR)
    length = likeness[:, regions.at_border].sum(1)
    connectivity = length / np.sqrt(likeness.sum(1))
    return 1 - _gauss(connectivity, SIGMA_BORDER)


def background_weighted_contrast(regions: Superpixels, background: np.ndarray) -> np.ndarray:
    """float64[N] in 0..1: contrast to near regions, by how much background they are (7 to 9)."""
    apart = np.linalg.norm(regions.places[:, None] - regions.places[None], axis=2)
    contrast = (regions.colour_distances * _gauss(apart, SIGMA_PLACE)) @ background
    highest = contrast.max()
    return contrast / highest if highest > 0 else contrast


def _geodesic(regions: Superpixels) -> np.ndarray:
    """float64[N, N]: the least sum of colour distances along a path of neighbours.

    Border regions are neighbours of one another. Steps as small as those within smooth areas
    count nothing, else they would add up: those below the mean, over all regions, of the step to
    the most similar neighbour.
    """
    edges = regions.adjacent | np.outer(regions.at_border, regions.at_border)
    np.fill_diagonal(edges, False)
    distances = regions.colour_distances
    smallest = np.where(edges, distances, np.inf).min(1)
    clipped = np.where(distances < smallest.mean(), 0.0, distances)
    one, other = np.nonzero(edges)
    steps = csr_array((clipped[one, other] + 1e-9, (one, other)), shape=edges.shape)  # 0: no edge
    found: np.ndarray = shortest_path(steps, directed=False)
    return found


def _gauss(distances: np.ndarray, sigma: float) -> np.ndarray:
    weights: np.ndarray = np.exp(-(distances**2) / (2 * sigma**2))
    return weights
