"""Layers that MMSegmentation's heads are built of, in its names: ``conv``, ``bn``, ``conv_seg``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormReLU(nn.Module):
    """A convolution without bias, batch norm and a ReLU; a 3x3 keeps the size."""

    def __init__(
        self, inputs: int, outputs: int, side: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = side // 2 * dilation
        self.conv = nn.Conv2d(
            inputs, outputs, side, 1, padding, dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class SeparableConv(nn.Module):
    """A 3x3 convolution of each channel, then a 1x1 of all; both with batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvNormReLU(inputs, inputs, 3, dilation, groups=inputs)
        self.pointwise_conv = ConvNormReLU(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class Classifier(nn.Module):
    """The end of a head: whole channels dropped, then a 1x1 convolution, ``conv_seg``."""

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(inputs, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)

    def classify(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.dropout(x))


class FCNHead(Classifier):
    """The auxiliary head: a 3x3 convolution, then the classes."""

    def __init__(self, inputs: int, width: int, classes: int, dropout: float) -> None:
        super().__init__(width, classes, dropout)
        self.convs = nn.Sequential(ConvNormReLU(inputs, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.convs(x))


def probed_device(network: nn.Module) -> torch.device:
    """Where a network is."""
    return next(network.parameters()).device
