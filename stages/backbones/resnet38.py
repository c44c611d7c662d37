"""ResNet-38 (Wu et al., "Wider or Deeper", arXiv 1611.10080), dilated to stride 8.

The backbone of the CAM family. Pre-activation blocks; no normalisation and no pooling after the
first convolution; no convolution has a bias. Inputs are RGB with ImageNet mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.state import Rules, load_strictly, without_classifier

# The names of the published PyTorch checkpoints of this backbone, which EPS, EDAM and L2G share.
PUBLISHED_NAMES: Rules = (
    (r"^conv1a\.", "stem."),
    (r"^b(\d)\.", r"stage\1.0."),
    (r"^b(\d)_(\d)\.", r"stage\1.\2."),
    (r"^bn7\.", "norm."),
    (r"\.conv_branch1\.", ".shortcut."),
    (r"\.(conv|bn)_branch2a\.", r".\g<1>1."),
    (r"\.(conv|bn)_branch2b1\.", r".\g<1>2."),
    (r"\.(conv|bn)_branch2b2\.", r".\g<1>3."),
)


class Features(NamedTuple):
    """Three levels at stride 8, for a stem of w channels (64 in the paper)."""

    conv4: Tensor  # 8w channels: input of stage 5 after its first batch norm and ReLU
    conv5: Tensor  # 16w channels: input of stage 6, likewise
    conv6: Tensor  # 64w channels: the final feature


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


class Block(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3. A 1x1 shortcut starts after the first ReLU, a plain one before.

    ``dilations`` are those of the two convolutions.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, inner, 3, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, outputs, 3, 1, dilations[1])
        self.shortcut: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.shortcut = _conv(inputs, outputs, 1, stride)

    def enter(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(x))

    def add(self, x: Tensor, entered: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(entered)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(entered))))

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.enter(x))


class WideBottleneck(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, dropout, 3x3, BN, ReLU, dropout, 1x1, with a 1x1 shortcut.

    The channels double at each of the last two convolutions. Dropout is by channel.
    """

    def __init__(self, inputs: int, inner: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, 2 * inner, 3, 1, dilation)
        self.bn3 = nn.BatchNorm2d(2 * inner)
        self.conv3 = _conv(2 * inner, 4 * inner, 1)
        self.shortcut = _conv(inputs, 4 * inner, 1)
        self.dropout = nn.Dropout2d(dropout)

    def enter(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(x))

    def add(self, x: Tensor, entered: Tensor) -> Tensor:
        branch = self.dropout(F.relu(self.bn2(self.conv1(entered))))
        branch = self.dropout(F.relu(self.bn3(self.conv2(branch))))
        return self.shortcut(entered) + self.conv3(branch)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.enter(x))


class ResNet38(nn.Module):
    """float[N, 3, H, W] to ``Features``; sizes are rounded up at each of the three strides.

    ``width`` is the number of channels of the stem, ``blocks`` the number of blocks of stages 2
    to 5, ``dropout`` that of stages 6 and 7. ``final_relu=False`` gives signed features (EDAM).
    """

    def __init__(
        self,
        width: int = 64,
        blocks: Sequence[int] = (3, 3, 6, 3),
        dropout: tuple[float, float] = (0.3, 0.5),
        final_relu: bool = True,
    ) -> None:
        super().__init__()
        w = width
        self.final_relu = final_relu
        self.channels = 64 * w
        self.stem = _conv(3, w, 3)
        self.stage2 = _stage(blocks[0], w, 2 * w, 2 * w, 2, (1, 1), (1, 1))
        self.stage3 = _stage(blocks[1], 2 * w, 4 * w, 4 * w, 2, (1, 1), (1, 1))
        self.stage4 = _stage(blocks[2], 4 * w, 8 * w, 8 * w, 2, (1, 1), (1, 1))
        self.stage5 = _stage(blocks[3], 8 * w, 8 * w, 16 * w, 1, (1, 2), (2, 2))
        self.stage6 = nn.Sequential(WideBottleneck(16 * w, 8 * w, 4, dropout[0]))
        self.stage7 = nn.Sequential(WideBottleneck(32 * w, 16 * w, 4, dropout[1]))
        self.norm = nn.BatchNorm2d(self.channels)

    def forward(self, x: Tensor) -> Features:
        x = self.stage4(self.stage3(self.stage2(self.stem(x))))
        conv4, x = _enter(self.stage5, x)
        conv5, x = _enter(self.stage6, x)
        conv6 = self.norm(self.stage7(x))
        return Features(conv4, conv5, F.relu(conv6) if self.final_relu else conv6)

    def freeze_early(self) -> None:
        """The first convolution and stage 2 are never trained, as in the published recipes."""
        for module in (self.stem, self.stage2):
            module.requires_grad_(False)

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """The ImageNet model in the published PyTorch names; its classifier is left out.

        Raises HubError if the rest does not fit exactly.
        """
        load_strictly(self, without_classifier(state), source, PUBLISHED_NAMES)


def _stage(
    blocks: int,
    inputs: int,
    inner: int,
    outputs: int,
    stride: int,
    first: tuple[int, int],
    others: tuple[int, int],
) -> nn.Sequential:
    """Blocks in a row; ``first`` and ``others`` are the dilations in the blocks."""
    rest = (Block(outputs, inner, outputs, 1, others) for _ in range(blocks - 1))
    return nn.Sequential(Block(inputs, inner, outputs, stride, first), *rest)


def _enter(stage: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the stage's convolutions, and the output of the stage."""
    first = stage[0]
    assert isinstance(first, Block | WideBottleneck)
    entered = first.enter(x)
    return entered, stage[1:](first.add(x, entered))
