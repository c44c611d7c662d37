"""The fast bilateral solver: a map that is smooth where the image is, and near to a given one.

Barron, Poole, ECCV 2016, arXiv 1511.03296, with the simplified grid of the authors' Python code:
pixels fall into cells of place, luma and chroma without interpolation; neighbours of a cell in its
five dimensions are two each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

_YUV = np.array(  # BT.601 in 8 bits, full range
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_CHROMA_OFFSET = 128.0


@dataclass(frozen=True)
class SolverSettings:
    """Sizes of a cell in pixels and 8-bit levels, the equation, and when to stop."""

    spatial: float = 16
    luma: float = 16
    chroma: float = 8
    smoothness: float = 256
    """Weight of the neighbours against the given map (lambda)."""
    confidence: float = 0.999
    """Weight of the given map, in every pixel."""
    balancing: int = 10
    """Steps that make the blur's rows and columns sum to one, nearly."""
    iterations: int = 25
    """Of conjugate gradients, at most."""
    tolerance: float = 1e-5
    """Norm of the residual against that of the right side, at which they end before."""


def solve_bilaterally(
    rgb: np.ndarray, target: np.ndarray, settings: SolverSettings | None = None
) -> np.ndarray:
    """float64[H, W] near to ``target`` [H, W] and smooth within the colours of uint8[H, W, 3].

    Values may leave the range of ``target`` a little.
    """
    s = settings or SolverSettings()
    cells = _cells(rgb, s)
    splat, blur = _grid(cells)
    sizes = splat @ np.ones(cells.shape[0])
    scale = np.ones_like(sizes)
    for _ in range(s.balancing):
        scale = np.sqrt(scale * sizes / (blur @ scale))
    balanced = sparse.diags_array(scale)
    masses = sparse.diags_array(scale * (blur @ scale))  # exact, however few the steps were
    weights = sizes * s.confidence
    matrix = s.smoothness * (masses - balanced @ blur @ balanced) + sparse.diags_array(weights)
    right = splat @ (target.reshape(-1).astype(np.float64) * s.confidence)
    jacobi = sparse.diags_array(1 / np.maximum(matrix.diagonal(), 1e-5))
    solution, _ = cg(
        matrix, right, right / weights, rtol=s.tolerance, atol=0, maxiter=s.iterations, M=jacobi
    )
    solved: np.ndarray = splat.T @ solution
    return solved.reshape(target.shape)


def binary_object(solved: np.ndarray) -> np.ndarray:
    """bool[H, W]: one region of the pixels above a half, with its holes filled.

    It is the second largest, counting the background: the largest object, unless that covers more
    than the background. All pixels if there is none.
    """
    regions, count = ndimage.label(ndimage.binary_fill_holes(solved > 0.5))
    if count == 0:
        return np.ones(solved.shape, bool)
    found: np.ndarray = regions == np.argsort(np.bincount(regions.ravel()), kind="stable")[-2]
    return found


def _cells(rgb: np.ndarray, s: SolverSettings) -> np.ndarray:
    """int64[H * W, 5]: the cell of each pixel."""
    y, x = np.indices(rgb.shape[:2])
    luma, blue, red = np.moveaxis(rgb @ _YUV.T, 2, 0)
    planes = (
        x / s.spatial,
        y / s.spatial,
        luma / s.luma,
        (blue + _CHROMA_OFFSET) / s.chroma,
        (red + _CHROMA_OFFSET) / s.chroma,
    )
    return np.stack(planes, 2).astype(np.int64).reshape(-1, len(planes))


def _grid(cells: np.ndarray) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Sums over the pixels of each occupied cell; and a cell's ten times plus its neighbours."""
    strides = np.cumprod([1, *(cells.max(0)[:-1] + 2)])  # a free place between, so none wraps
    names, place = np.unique(cells @ strides, return_inverse=True)
    pixels, count = len(cells), len(names)
    splat = sparse.csr_array((np.ones(pixels), (place, np.arange(pixels))), (count, pixels))
    blur = 2.0 * len(strides) * sparse.eye_array(count, format="csr")
    for stride in strides:
        above = np.minimum(np.searchsorted(names, names + stride), count - 1)
        here = np.flatnonzero(names[above] == names + stride)
        ones = np.ones(len(here))
        blur += sparse.csr_array((ones, (here, above[here])), (count, count))
        blur += sparse.csr_array((ones, (above[here], here)), (count, count))
    return splat, blur
