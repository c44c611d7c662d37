"""ResNet as its authors trained it with Caffe (He et al., arXiv 1512.03385), with dilation.

It differs from torchvision's and timm's ResNet in two ways: the stride of a stage sits in the
first 1x1 convolution of its first block (theirs: in the 3x3), and the pooling of the stem rounds
up. Inputs are BGR, 0..255, minus a mean colour, not divided by a deviation. Parameter names are
torchvision's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.imagenet import fold_input, timm_model
from stages.backbones.state import Rules, load_strictly, without_classifier

EXPANSION = 4  # outputs of a bottleneck over its inner width

# deeplab-pytorch's names, which follow Caffe's: its layer1 is the stem, its blocks count from 1.
CAFFE_NAMES: Rules = (
    (r"^layer(\d)\.block(\d+)\.", lambda at: f"layer{int(at[1]) - 1}.{int(at[2]) - 1}."),
    (r"^layer1\.conv1\.conv\.", "conv1."),
    (r"^layer1\.conv1\.bn\.", "bn1."),
    (r"\.reduce\.(conv|bn)\.", r".\g<1>1."),
    (r"\.conv3x3\.(conv|bn)\.", r".\g<1>2."),
    (r"\.increase\.(conv|bn)\.", r".\g<1>3."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.bn\.", ".downsample.1."),
)


class Bottleneck(nn.Module):
    """1x1, 3x3 (dilated), 1x1, each with batch norm, and the shortcut.

    The stride is that of the first, as in Caffe, or with ``stride_inside`` of the second.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, dilation: int, *, stride_inside: bool = False
    ) -> None:
        super().__init__()
        outputs = EXPANSION * width
        first, second = (1, stride) if stride_inside else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class CaffeResNet(nn.Module):
    """The five levels of a ResNet.

    ``blocks``, ``strides`` and ``dilations`` are given per stage; every block of a stage has the
    stage's dilation. ``width`` is the number of channels of the stem (64 in the paper). ``forward``
    takes float[N, 3, H, W] and returns the stem (after its ReLU, stride 2) and the four stages,
    ``channels`` wide.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.channels = (width, *(EXPANSION * width * 2**n for n in range(4)))
        stages = []
        for n in range(4):
            first = Bottleneck(self.channels[n], width * 2**n, strides[n], dilations[n])
            rest = (
                Bottleneck(self.channels[n + 1], width * 2**n, 1, dilations[n])
                for _ in range(blocks[n] - 1)
            )
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [F.relu(self.bn1(self.conv1(x)))]
        x = self.pool(levels[0])
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            levels.append(x)
        return levels

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """A classifier in torchvision's names or in Caffe's; its last layer ``fc`` is left out.

        Raises HubError if the rest does not fit exactly.
        """
        load_strictly(self, without_classifier(state), source, CAFFE_NAMES)


def timm_imagenet(depth: int) -> dict[str, Tensor]:
    """torchvision's ImageNet weights of ResNet-``depth``, by timm from the Hub cache, for BGR.

    They were trained with the stride in the 3x3 convolution, so in a ``CaffeResNet`` the first
    blocks of the strided stages see other positions than in their training: a departure from the
    Caffe weights that the published recipes start from. Raises HubError if they cannot be had.
    """
    return fold_input(timm_model(f"resnet{depth}.tv_in1k").state_dict(), "conv1.weight")
