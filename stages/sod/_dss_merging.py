"""DSS's short connections: how maps of deeper sides are enlarged and merged into a side's own.

``PortMerge`` is the port's, ``CaffeMerge`` the authors'; see ``stages.sod.dss``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.ops.resizing import bilinear_kernel

RECEIVES = ((2, 3, 4, 5), (2, 3, 4, 5), (4, 5), (4, 5), (), ())  # sides, from 0
STRIDES = (1, 2, 4, 8, 16, 32)
# Where in the image the first cell of each side lies, in the authors' network.
ORIGINS = (-4.0, -3.5, -2.5, -0.5, -0.5, -0.5)


class PaddedEnlarging(nn.ConvTranspose2d):
    """The port's: ``factor`` times the size, with a kernel that is learnt."""

    def __init__(self, factor: int) -> None:
        super().__init__(1, 1, 2 * factor, factor, factor // 2)

    def draw_bilinear(self) -> None:
        with torch.no_grad():
            self.weight.copy_(bilinear_kernel(self.stride[0]))
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]


class PortMerge(nn.Module):
    """A side's short connections, at the size of the image."""

    def __init__(self, side: int) -> None:
        super().__init__()
        factors = [STRIDES[other] // STRIDES[side] for other in RECEIVES[side]]
        self.enlarge = nn.ModuleList(PaddedEnlarging(factor) for factor in factors)
        self.conv = nn.Conv2d(1 + len(factors), 1, 1)
        self.finish = PaddedEnlarging(STRIDES[side]) if side else nn.Identity()

    def forward(self, own: Tensor, received: Sequence[Tensor]) -> Tensor:
        others = [f(x) for f, x in zip(self.enlarge, received, strict=True)]
        return self.finish(self.conv(torch.cat([own, *others], 1)))


def crop_offset(factor: int, origin: float, stride: int, onto: float) -> int:
    """Where to crop a map that was enlarged by ``factor``, so that centres agree.

    ``origin`` and ``onto`` are the places in the image of the first cells of the map and of what
    it is cropped for, ``stride`` the pixels between two cells of the latter.
    """
    shift = (2 * factor - 1) / 2 if factor > 1 else 0.0  # of the first cell by the kernel
    return math.floor((onto - origin) / stride + shift + 0.5)


def enlarge_and_crop(x: Tensor, factor: int, offset: int, size: Sequence[int]) -> Tensor:
    """Bilinear by ``factor`` without padding, then ``size`` from ``offset`` on both axes."""
    if factor > 1:
        x = F.conv_transpose2d(x, bilinear_kernel(factor)[None, None].to(x), stride=factor)
    height, width = size
    return x[..., offset : offset + height, offset : offset + width]


class CaffeMerge(nn.Module):
    """A side's short connections in the authors' network, at the size of the side."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(1 + len(RECEIVES[side]), 1, 1)

    def forward(self, own: Tensor, received: Sequence[Tensor]) -> Tensor:
        stride, onto = STRIDES[self.side], ORIGINS[self.side]
        others = []
        for other, x in zip(RECEIVES[self.side], received, strict=True):
            factor = STRIDES[other] // stride
            offset = crop_offset(factor, ORIGINS[other], stride, onto)
            others.append(enlarge_and_crop(x, factor, offset, own.shape[2:]))
        return self.conv(torch.cat([own, *others], 1))
