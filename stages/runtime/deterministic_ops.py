"""What torch cannot do deterministically on a GPU, done another way.

On CUDA some operations add numbers in whatever order they come, and torch has no other
implementation: with deterministic algorithms they are errors, or warnings. These functions take
torch's arguments and give torch's results, values and gradients. On a GPU that is asked to be
deterministic (``compute_exactly``) they compute them in a fixed order; elsewhere they are torch's
own. (Bilinear and nearest interpolation need no such help: torch brings its own.)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Size = int | tuple[int, int]


def needed(x: Tensor) -> bool:
    """Whether torch's own implementation would not be deterministic for ``x``."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def adaptive_avg_pool2d(x: Tensor, size: Size) -> Tensor:
    """float[N, C, H, W] to the means of ``size`` windows, float[N, C, height, width].

    A mean over a window is one over its rows and one over its columns: two products with small
    matrices. They are float32 whatever the precision around them, as torch's accumulators are.
    """
    if not needed(x):
        return F.adaptive_avg_pool2d(x, size)
    height, width = _pair(size)
    rows = _averages(x.shape[2], height).to(x.device)
    columns = _averages(x.shape[3], width).to(x.device)
    with torch.autocast(x.device.type, enabled=False):
        return (rows @ x.float() @ columns.T).to(x.dtype)


def adaptive_max_pool2d(x: Tensor, size: Size) -> Tensor:
    """float[N, C, H, W] to the largest of ``size`` windows, float[N, C, height, width].

    Of equal numbers the first gets the gradient, as in torch.
    """
    if not needed(x):
        return F.adaptive_max_pool2d(x, size)
    height, width = _pair(size)
    largest = [
        x[:, :, top:bottom, left:right].flatten(2).max(2).values
        for top, bottom in _windows(x.shape[2], height)
        for left, right in _windows(x.shape[3], width)
    ]
    return torch.stack(largest, 2).unflatten(2, (height, width))


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Mean or sum over all pixels: float[N, C, H, W] and int64[N, H, W] to a scalar.

    With ``weight``, float[C], every pixel counts with its class's. The mean is NaN if every pixel
    is ignored.
    """
    if not needed(logits):
        return F.cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction=reduction
        )
    losses = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="none")
    if reduction == "sum":
        return losses.sum()
    counted = target != ignore_index
    if weight is None:
        return losses.sum() / counted.sum()
    return losses.sum() / (weight[torch.where(counted, target, 0)] * counted).sum()


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _windows(length: int, parts: int) -> list[tuple[int, int]]:
    """Begin and end of torch's adaptive windows, which may overlap."""
    return [(part * length // parts, -(-(part + 1) * length // parts)) for part in range(parts)]


def _averages(length: int, parts: int) -> Tensor:
    """float32[parts, length]: the product with it averages over the windows."""
    matrix = torch.zeros(parts, length)
    for part, (begin, end) in enumerate(_windows(length, parts)):
        matrix[part, begin:end] = 1 / (end - begin)
    return matrix
