"""The segmenter of MOVE: a few convolutions on features of DINO."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.dino import DinoViT
from stages.ops.resizing import resize_nearest
from stages.runtime.method import Frozen, HasFrozen


class Block(nn.Module):
    """Convolution, batch norm, leaky ReLU; at twice the resolution if it is ``doubling``."""

    def __init__(self, inputs: int, outputs: int, doubling: bool) -> None:
        super().__init__()
        self.doubling = doubling
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.doubling:
            x = resize_nearest(x, (2 * x.shape[2], 2 * x.shape[3]))
        return F.leaky_relu(self.norm(self.conv(x)), 0.01)


class Head(nn.Module):
    """Features float[N, C, h, w] to logits float[N, 1, H, W], 2 ** (blocks - 1) times the size."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for number, width in enumerate(widths):
            self.blocks.append(Block(inputs, width, doubling=number < len(widths) - 1))
            inputs = width
        self.score = nn.Conv2d(inputs, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.score(self.blocks(features))


class Segmenter(HasFrozen):
    """float[N, 3, H, W] (ImageNet's mean and deviation, sides multiples of 8) to logits."""

    def __init__(self, dino: Frozen[DinoViT], skipped_blocks: int, head: tuple[int, ...]) -> None:
        super().__init__()
        self.dino = dino
        self.blocks = dino.network.depth - skipped_blocks
        self.norm = nn.LayerNorm(dino.network.width, 1e-6)
        self.head = Head(dino.network.width, head)

    def features(self, image: Tensor) -> Tensor:
        """float[N, C, H / 8, W / 8]: DINO's, behind the norm that is trained."""
        with torch.no_grad():
            found = self.dino.network.features(image, self.blocks)
        return self.normed(found)

    def normed(self, features: Tensor) -> Tensor:
        return self.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))
