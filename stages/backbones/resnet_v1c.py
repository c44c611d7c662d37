"""ResNet with a stem of three convolutions, dilated, as MMSegmentation's networks are built on it.

ResNet: He et al., arXiv 1512.03385; the form "v1c": He et al., arXiv 1812.01187. The stride of a
stage sits in the 3x3 convolution of its first block, and in the 1x1 of its shortcut. In a dilated
stage the first block has half of the stage's dilation (``contract_dilation``), as what it sees was
not yet thinned out.

Input: float[N, 3, H, W], RGB, ImageNet mean and deviation. Parameter names are MMSegmentation's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from stages.backbones.caffe_resnet import EXPANSION, Bottleneck
from stages.backbones.imagenet import timm_model
from stages.backbones.state import Rules, load_strictly, without_classifier

# timm's names of the stem, and the names inside of a whole network's checkpoint.
INITIAL_NAMES: Rules = (
    (r"^backbone\.", ""),
    (r"^conv1\.", "stem."),
    (r"^bn1\.", "stem.7."),
)


def _stem(width: int) -> nn.Sequential:
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 3, 2, 1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        nn.Conv2d(half, half, 3, 1, 1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        nn.Conv2d(half, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class ResNetV1c(nn.Module):
    """float[N, 3, H, W] to the four stages' outputs, ``channels`` wide.

    ``blocks``, ``strides`` and ``dilations`` are given per stage; ``width`` is the number of
    channels of the stem (64 in the paper). By default the stages have strides 4, 8, 8 and 8
    pixels: the form "D8".
    """

    def __init__(
        self,
        blocks: Sequence[int],
        width: int = 64,
        strides: Sequence[int] = (1, 2, 1, 1),
        dilations: Sequence[int] = (1, 1, 2, 4),
    ) -> None:
        super().__init__()
        self.stem = _stem(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.channels = tuple(EXPANSION * width * 2**n for n in range(4))
        stages = []
        for n, (outputs, dilation) in enumerate(zip(self.channels, dilations, strict=True)):
            inputs = self.channels[n - 1] if n else width
            half = max(1, dilation // 2)
            first = Bottleneck(inputs, width * 2**n, strides[n], half, stride_inside=True)
            rest = (Bottleneck(outputs, width * 2**n, 1, dilation) for _ in range(blocks[n] - 1))
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.pool(self.stem(image))
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            levels.append(x)
        return levels

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """A classifier in MMSegmentation's or timm's names; its last layer ``fc`` is left out.

        Raises HubError if the rest does not fit exactly.
        """
        load_strictly(self, without_classifier(state), source, INITIAL_NAMES)


def timm_imagenet(depth: int) -> dict[str, Tensor]:
    """GluonCV's ImageNet weights of ResNet-``depth`` v1c, by timm from the Hub cache.

    The same network as open-mmlab's ``resnet101_v1c``, from another training.
    """
    return dict(timm_model(f"resnet{depth}c.gluon_in1k").state_dict())
