"""Dilated residual networks, type D, of bottlenecks: DRN-D-105 and smaller ones.

Paper: Yu, Koltun, Funkhouser, CVPR 2017, arXiv 1705.09914; the names of the parameters follow
fyu/drn, levels 0 to 8. timm and torchvision have no such network; its bottlenecks are
torchvision's (stride and dilation on the 3x3 convolution).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

STRIDE = 8  # pixels of the image for one of the feature


class DrnD(nn.Module):
    """float[N, 3, H, W] to the feature float[N, channels, ceil(H/8), ceil(W/8)].

    ``blocks`` are the bottlenecks of levels 3 to 6. ``width`` is the number of channels of the
    first two levels (16 in the paper); all others follow. The weights are random.
    """

    def __init__(self, width: int = 16, blocks: Sequence[int] = (3, 4, 23, 3)) -> None:
        super().__init__()
        w = width
        self.channels = 32 * w
        self.levels = nn.Sequential(
            _convolution(3, w, 7),
            _convolution(w, w, 3),
            _convolution(w, 2 * w, 3, stride=2),
            _residual(2 * w, 4 * w, blocks[0], stride=2),
            _residual(16 * w, 8 * w, blocks[1], stride=2),
            _residual(32 * w, 16 * w, blocks[2], dilation=2),
            _residual(64 * w, 32 * w, blocks[3], dilation=4),
            _convolution(128 * w, 32 * w, 3, dilation=2),
            _convolution(32 * w, 32 * w, 3),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.levels(image)


def _convolution(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    nn.init.normal_(convolution.weight, std=(2 / (kernel * kernel * outputs)) ** 0.5)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _residual(
    inputs: int, width: int, blocks: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """A level of bottlenecks, the first of which may shrink the image."""
    from torchvision.models.resnet import Bottleneck

    outputs = width * Bottleneck.expansion
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
    )
    first = Bottleneck(inputs, width, stride, shortcut, dilation=dilation)
    rest = (Bottleneck(outputs, width, dilation=dilation) for _ in range(blocks - 1))
    level = nn.Sequential(first, *rest)
    for module in level.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    return level
