"""Resizing, pooling and losses that are deterministic on every device, and fast.

On CUDA torch computes the gradients of these operations with atomic additions, in whatever order
they come; asked for deterministic algorithms it takes detours that cost several times the whole
network (bilinear resizing), or refuses (adaptive pooling, cross entropy). Every module of
``stages`` uses these functions instead; ``tests/stages/test_deterministic_calls.py`` lists what
they must not call, and why.

Resizing and averaging are linear and separable: y = R x C^T for each plane x, with one small
matrix for the rows and one for the columns. Values come from torch's own kernels, which gather and
are deterministic. Gradients are the two products R^T g C, and gradients of gradients are torch's
kernel again, so there are derivatives of every order. Values and gradients have the type of the
input, whatever autocast says; inside, as in torch's kernels, float64 stays and all else
is float32, in full also where TF32 is allowed. RoIAlign is such products in both directions, a
pair of matrices for each box.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from stages.ops.determinism import tf32

Size = int | Sequence[int]
Mode = Literal["bilinear", "bicubic"]

_KEPT_BYTES = 64 * 2**20  # of matrices, over all devices
_BLOCK = 2**23  # elements of a gradient that one product takes: temporaries stay below 64 MiB


def resize(
    x: Tensor,
    size: Size | None = None,
    *,
    scale_factor: float | tuple[float, float] | None = None,
    mode: Mode = "bilinear",
    align_corners: bool = False,
) -> Tensor:
    """float[N, C, H, W] to float[N, C, height, width], as ``F.interpolate`` does (no antialiasing).

    With ``scale_factor`` the size is that factor's, rounded down, and the factor itself maps the
    coordinates, also where it does not divide the size. Give that or ``size``.
    """
    if (size is None) == (scale_factor is None):
        raise ValueError("resize takes a size or a scale_factor")
    scales: tuple[float | None, float | None] = (None, None)
    if scale_factor is not None:
        scales = scale_factor if isinstance(scale_factor, tuple) else (scale_factor,) * 2
        size = (int(x.shape[2] * scales[0]), int(x.shape[3] * scales[1]))
    return _separable(x, _Kernel(mode, _pair(size), align_corners, scales))


def resize_nearest(x: Tensor, size: Size) -> Tensor:
    """float[N, C, H, W] to [N, C, height, width]: the pixel under each cell's corner, as torch.

    torch gathers forwards and backwards here: deterministic as it is.
    """
    return F.interpolate(x, _pair(size), mode="nearest")


def adaptive_avg_pool2d(x: Tensor, size: Size) -> Tensor:
    """float[N, C, H, W] to the means of ``size`` windows, float[N, C, height, width]."""
    return _separable(x, _Kernel("average", _pair(size)))


def adaptive_max_pool2d(x: Tensor, size: Size) -> Tensor:
    """float[N, C, H, W] to the largest of ``size`` windows, float[N, C, height, width].

    Of equal numbers the first gets the gradient, as in torch. The gradient is deterministic where
    torch is asked to be, as in every stage (``determinism.compute_exactly``).
    """
    _, places = F.adaptive_max_pool2d(x.detach(), _pair(size), return_indices=True)
    return x.flatten(2).gather(2, places.flatten(2)).view_as(places)


def roi_align(x: Tensor, boxes: Sequence[Sequence[float]], size: Size, scale: float) -> Tensor:
    """Boxes of float[N, C, H, W], resampled to float[K, C, height, width]: torchvision's
    ``roi_align`` with its default arguments (``aligned=False``, as many samples as cells demand).

    Each of ``boxes`` is the number of its map in ``x`` and x1, y1, x2, y2, which times ``scale``
    are coordinates in the map. With ``aligned=False`` the value at coordinate 0 is that of the
    first cell's centre, so that boxes on whole cells are read half a cell to the right and below.
    A box is at least one cell wide and high, and 0 where it lies beyond the map.
    """
    height, width = _pair(size)
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, columns = (
        torch.stack([_samples(b[axis] * scale, b[axis + 2] * scale, new, old) for b in boxes])
        for axis, new, old in ((2, height, x.shape[2]), (1, width, x.shape[3]))
    )
    numbers = [int(box[0]) for box in boxes]
    return _OfBoxes.apply(x, rows.to(x.device, exact), columns.to(x.device, exact), numbers)


def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Sum over all pixels: float[N, C, H, W] and int64[N, H, W] to a scalar."""
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none").sum()


@dataclass(frozen=True)
class _Kernel:
    """One of torch's linear, separable operations on planes."""

    mode: Literal["bilinear", "bicubic", "average"]
    size: tuple[int, int]
    align_corners: bool = False
    scales: tuple[float | None, float | None] = (None, None)

    def __call__(self, x: Tensor) -> Tensor:
        if self.mode == "average":
            return torch.ops.aten._adaptive_avg_pool2d(x, self.size)
        # Not F.interpolate: in the deterministic mode that is built of slow pieces.
        operation = getattr(torch.ops.aten, f"upsample_{self.mode}2d")
        return operation(x, self.size, self.align_corners, *self.scales)

    def matrix(self, axis: int, length: int, like: Tensor) -> Tensor:
        """[size, length] in ``like``'s type and place: what the kernel makes of unit vectors."""
        one = _Kernel(self.mode, (self.size[axis], 1), self.align_corners, (self.scales[axis], 1.0))
        return _MATRICES.get(one, length, like)


class _Matrices:
    """Matrices in the order of their last use; beyond ``_KEPT_BYTES`` the oldest are dropped."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Any, Tensor] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()

    def get(self, kernel: _Kernel, length: int, like: Tensor) -> Tensor:
        key = (kernel, length, like.dtype, like.device)
        with self.lock:
            found = self.kept.get(key)
            if found is None:
                units = torch.eye(length, dtype=torch.float64)[None, :, :, None]
                found = kernel(units)[0, :, :, 0].T.to(like, copy=True).contiguous()
                self.kept[key] = found
                self.bytes += found.nbytes
                while self.bytes > _KEPT_BYTES and len(self.kept) > 1:
                    self.bytes -= self.kept.popitem(last=False)[1].nbytes
            self.kept.move_to_end(key)
            return found


_MATRICES = _Matrices()


def _separable(x: Tensor, kernel: _Kernel) -> Tensor:
    if kernel.size == x.shape[2:] and kernel.scales == (None, None):
        return x
    return _Separable.apply(x, kernel)


class _Separable(Function):
    """R x C^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: _Kernel) -> Tensor:
        ctx.kernel, ctx.size = kernel, x.shape[2:]
        with torch.autocast(x.device.type, enabled=False):
            return kernel(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Transposed.apply(gradient, ctx.kernel, ctx.size), None


class _Transposed(Function):
    """R^T g C."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, kernel: _Kernel, size: torch.Size) -> Tensor:
        ctx.kernel = kernel
        with torch.autocast(gradient.device.type, enabled=False), tf32(False):
            return _products(gradient, kernel, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Separable.apply(gradient, ctx.kernel), None, None


def _products(g: Tensor, kernel: _Kernel, size: torch.Size) -> Tensor:
    """R^T g C plane by plane, in the memory format of ``g``."""
    exact = torch.float64 if g.dtype == torch.float64 else torch.float32
    like = torch.empty((), dtype=exact, device=g.device)
    rows, columns = (kernel.matrix(axis, size[axis], like) for axis in (0, 1))

    def of_planes(part: Tensor) -> Tensor:
        return rows.T @ (part @ columns)

    def of_pixels(part: Tensor) -> Tensor:  # [N, H, W, C]: columns of [W, C], rows of [H, W * C]
        n, c, height, width = part.shape
        narrow = columns.T @ part.permute(0, 2, 3, 1).reshape(n * height, width, c)
        product = rows.T @ narrow.view(n, height, -1)
        return product.view(n, *size, c).permute(0, 3, 1, 2)

    shape = (*g.shape[:2], *size)
    if g.is_contiguous(memory_format=torch.channels_last) and not g.is_contiguous():
        operation = of_pixels
    else:
        operation, g = of_planes, g.flatten(0, 1)
    step = max(1, _BLOCK * len(g) // max(1, g.numel()))
    parts = [operation(part.to(exact)).to(g.dtype) for part in g.split(step)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)


class _OfBoxes(Function):
    """R x[n] C^T of each box, which lies in the map number n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor, numbers: list[int]) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.numbers, ctx.maps = numbers, len(x)
        with torch.autocast(x.device.type, enabled=False), tf32(False):
            parts = [
                row @ x[n].to(row.dtype) @ column.T
                for n, row, column in zip(numbers, rows, columns, strict=True)
            ]
            return torch.stack(parts).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows, columns = ctx.saved_tensors
        return _ToMaps.apply(gradient, rows, columns, ctx.numbers, ctx.maps), None, None, None


class _ToMaps(Function):
    """The sum of R^T g C over the boxes of each map, in their order."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, rows: Tensor, columns: Tensor, numbers: list[int], maps: int
    ) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.numbers = numbers
        total = rows.new_zeros(maps, g.shape[1], rows.shape[2], columns.shape[2])
        with torch.autocast(g.device.type, enabled=False), tf32(False):
            for k, n in enumerate(numbers):
                total[n] += rows[k].T @ g[k].to(rows.dtype) @ columns[k]
        return total.to(g.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, columns = ctx.saved_tensors
        return _OfBoxes.apply(gradient, rows, columns, ctx.numbers), None, None, None, None


def _samples(start: float, end: float, cells: int, length: int) -> Tensor:
    """float64[cells, length]: the mean of the samples in each of ``cells`` equal parts of a box's
    side, each a mixture of its two neighbours among ``length`` values."""
    side = max(end - start, 1.0)
    each = math.ceil(side / cells)
    places = start + (torch.arange(cells * each, dtype=torch.float64) + 0.5) * side / (cells * each)
    inside = (places >= -1) & (places <= length)
    places = places.clamp(0, length - 1)
    low = places.floor().long()
    share = places - low
    matrix = torch.zeros(cells * each, length, dtype=torch.float64)
    sample = torch.arange(len(places))
    matrix[sample, low] = 1 - share
    matrix[sample, (low + 1).clamp(max=length - 1)] += share
    return (matrix * inside[:, None]).view(cells, each, length).mean(1)


def _pair(size: Size | None) -> tuple[int, int]:
    assert size is not None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def bilinear_kernel(factor: int) -> Tensor:
    """float32[2 factor, 2 factor]: what a transposed convolution with this stride enlarges with, as
    in FCN; 1 - |k - centre| / factor in both axes."""
    profile = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    return profile[:, None] * profile
