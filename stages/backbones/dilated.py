"""DenseNet and VGG-16 at 1/8 of the image's size: down-sampling removed, dilation in its place.

Papers: DenseNet, Huang et al., arXiv 1608.06993; VGG, Simonyan and Zisserman, arXiv 1409.1556.
The layers are torchvision's. timm has the weights, under the same names, but not quite the layers:
a DenseNet there ends in a ReLU, and its batch norm holds the ReLU in itself, which
``norm.synchronise_batchnorm`` does not know.

Input: float[N, 3, H, W], RGB, ImageNet mean and deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from stages.backbones.imagenet import timm_model
from stages.backbones.state import Rules, load_strictly, without_classifier
from stages.backbones.vgg import CLASSIFIERS, Vgg16
from wsssbed_hub.utils.errors import UsageError

DilatedName = Literal["densenet169", "vgg16", "densenet-small"]
STRIDE = 8  # pixels of the image for one of the feature

# torchvision's own file numbers the layers of a dense layer as norm.1; the modules are norm1.
_OLD_NAMES: Rules = ((r"\.(norm|conv)\.([12])\.", r".\g<1>\g<2>."),)


class _Dense(NamedTuple):
    growth: int  # channels that a layer adds
    blocks: tuple[int, int, int, int]  # layers
    stem: int  # channels


_DENSENETS = {
    "densenet169": _Dense(32, (6, 12, 32, 32), 64),
    "densenet-small": _Dense(12, (2, 2, 3, 3), 24),
}
_WEIGHTS = {"densenet169": "densenet169.tv_in1k", "vgg16": "vgg16.tv_in1k"}


class Dilated(nn.Module):
    """float[N, 3, H, W] to the feature float[N, channels, H/8, W/8], for sides that 8 divides.

    ``densenet169`` gives the last batch norm's output, 1,664 channels, without a ReLU; ``vgg16``
    what the last of the five blocks gives, 512 channels; ``densenet-small`` is a DenseNet of 10
    dense layers for trials. The weights are random.
    """

    def __init__(self, name: DilatedName) -> None:
        super().__init__()
        self.name = name
        if name == "vgg16":
            self.features = Vgg16(("conv5_3",), pool4="none").features
            self.channels = 512
        else:
            self.features = _densenet(_DENSENETS[name])
            drop_pooling(self.features, (2, 3))
            self.channels = self.features.get_parameter("norm5.weight").numel()

    def forward(self, image: Tensor) -> Tensor:
        return self.features(image)

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """An ImageNet classifier in timm's or torchvision's names; the classifier is left out.

        Raises HubError if the rest does not fit exactly.
        """
        load_strictly(self, without_classifier(state, CLASSIFIERS), source, _OLD_NAMES)


def timm_imagenet(name: DilatedName) -> dict[str, Tensor]:
    """torchvision's ImageNet weights of a backbone, by timm from the Hub cache.

    Raises HubError if they cannot be had, UsageError for a backbone without any.
    """
    if name not in _WEIGHTS:
        raise UsageError(f"There are no ImageNet weights of {name}. Use --init random.")
    return dict(timm_model(_WEIGHTS[name]).state_dict())


def drop_pooling(features: nn.Sequential, transitions: Sequence[int]) -> None:
    """Take the pooling out of some of a DenseNet's transitions (1 to 3, ascending).

    The 3x3 convolutions of each block after one get twice the dilation of the block before, so
    that they see what they were trained to see.
    """
    dilation = 1
    for number in transitions:
        dilation *= 2
        features.get_submodule(f"transition{number}").pool = nn.Identity()
        _dilate(features.get_submodule(f"denseblock{number + 1}"), dilation)


def _densenet(shape: _Dense) -> nn.Sequential:
    from torchvision.models import DenseNet

    # A classifier is always made; it is not kept.
    return DenseNet(shape.growth, shape.blocks, shape.stem, num_classes=1).features


def _dilate(module: nn.Module, dilation: int) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = (dilation, dilation)
