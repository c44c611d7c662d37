"""UPerNet: a feature of all levels of a backbone, at the resolution of the finest.

Xiao et al., ECCV 2018, arXiv 1807.10221; the form of MMSegmentation (Apache-2.0), without the tasks
beside segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.ops.resizing import adaptive_avg_pool2d, resize
from stages.seg._layers import Classifier, ConvNormReLU

POOLS = (1, 2, 3, 6)  # places a side of the pyramid's pooled maps


class UPerNet(Classifier):
    """Maps float[N, ``inputs[i]``, h_i, w_i], finest first, to float[N, ``width``, h_0, w_0].

    ``classify`` makes logits of that.
    """

    def __init__(self, inputs: Sequence[int], width: int, classes: int, dropout: float) -> None:
        super().__init__(width, classes, dropout)
        *finer, coarsest = inputs
        self.lateral_convs = nn.ModuleList(ConvNormReLU(channels, width) for channels in finer)
        self.fpn_convs = nn.ModuleList(ConvNormReLU(width, width, 3) for _ in finer)
        self.psp_modules = nn.ModuleList(ConvNormReLU(coarsest, width) for _ in POOLS)
        self.bottleneck = ConvNormReLU(coarsest + len(POOLS) * width, width, 3)
        self.fpn_bottleneck = ConvNormReLU(len(inputs) * width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [self._pooled(maps[-1])]  # from coarse to fine
        for lateral, plane in reversed([*zip(self.lateral_convs, maps[:-1], strict=True)]):
            x = lateral(plane)
            levels.append(x + resize(levels[-1], x.shape[2:]))
        coarsest, *finer = levels
        finer = [conv(x) for conv, x in zip(self.fpn_convs, reversed(finer), strict=True)]
        size = finer[0].shape[2:]
        return self.fpn_bottleneck(torch.cat([resize(x, size) for x in (*finer, coarsest)], 1))

    def _pooled(self, x: Tensor) -> Tensor:
        """The pyramid pooling of PSPNet (arXiv 1612.01105) on the coarsest map."""
        pooled = [
            resize(conv(adaptive_avg_pool2d(x, side)), x.shape[2:])
            for side, conv in zip(POOLS, self.psp_modules, strict=True)
        ]
        return self.bottleneck(torch.cat([x, *pooled], 1))
