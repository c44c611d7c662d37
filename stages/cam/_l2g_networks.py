"""L2G's classifier on ResNet-38 and on VGG-16, with SEAM's affinity applied to the features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.resnet38 import PUBLISHED_NAMES, ResNet38
from stages.backbones.state import Rules, load_strictly
from stages.backbones.vgg import EXTRA_NAMES, Vgg16Extra, rate_groups
from stages.cam._resnet38 import prepare_backbone
from stages.ops.resizing import resize

Form = Literal["resnet38", "vgg16"]
_EPSILON = 1e-5  # added to norms and sums that divide
_BLOCK = 2**26  # affinities that are in memory at a time, beside their gradients


class Levels(NamedTuple):
    """Features of stride 8, from which the affinity and the maps are made."""

    low: Tensor
    middle: Tensor
    deep: Tensor


class Classifier(nn.Module):
    """float[N, 3, H, W] (RGB, normalised) to raw maps float[N, classes + 1, H/8, W/8].

    The background's comes last. Sizes are rounded as the backbone does it, and the maps are of any
    sign and scale. ``low`` and ``middle`` reduce the features that tell which positions are alike.
    """

    backbone: ResNet38 | Vgg16Extra
    low: nn.Conv2d
    middle: nn.Conv2d
    affinity: nn.Conv2d
    classifier: nn.Conv2d
    names: Rules
    """Of the authors' checkpoint, to these."""

    @abstractmethod
    def levels(self, image: Tensor) -> Levels: ...

    @abstractmethod
    def rate_groups(
        self, learning_rate: float, new_factor: float, bias_factor: float
    ) -> list[dict[str, Any]]:
        """What is trained, for an optimiser: pretrained layers and new ones, weights and biases."""

    def forward(self, image: Tensor) -> Tensor:
        found = self.levels(image)
        refined = spread(found.deep, self.affinity(self.guide(image, found)))
        return self.classifier(found.deep) + self.classifier(refined)

    def guide(self, image: Tensor, found: Levels) -> Tensor:
        """The image at the maps' size, then the two reduced levels, of which no gradient goes back
        into the backbone."""
        small = resize(image, found.deep.shape[2:], align_corners=True)
        return torch.cat(
            [small, self.low(found.low.detach()), self.middle(found.middle.detach())], dim=1
        )

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """One of the authors' two networks. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The L2G checkpoint", self.names)

    def _heads(self, classes: int, inputs: tuple[int, int, int], middle: int, width: int) -> None:
        """The layers beside the backbone; ``low`` gives ``width`` channels."""
        self.low = nn.Conv2d(inputs[0], width, 1, bias=False)
        self.middle = nn.Conv2d(inputs[1], middle, 1, bias=False)
        self.affinity = nn.Conv2d(3 + width + middle, width + middle, 1, bias=False)
        self.classifier = nn.Conv2d(inputs[2], classes + 1, 1, bias=False)
        nn.init.kaiming_normal_(self.low.weight)
        nn.init.kaiming_normal_(self.middle.weight)
        nn.init.xavier_uniform_(self.affinity.weight, gain=4)
        nn.init.xavier_uniform_(self.classifier.weight)


class OnResNet38(Classifier):
    """On ResNet-38, as published; its stem has ``width`` channels, 64 in the paper.

    Its random weights are those of features with a deviation of 1. With ``freeze_early`` the first
    convolution and stage 2 are never trained, with ``frozen_norm`` no batch norm is.
    """

    names = (
        *PUBLISHED_NAMES,
        (r"^(?!(fc8|f8_3|f8_4|f9)\.)", "backbone."),
        (r"^f8_3\.", "low."),
        (r"^f8_4\.", "middle."),
        (r"^f9\.", "affinity."),
        (r"^fc8\.", "classifier."),
    )

    def __init__(
        self,
        classes: int,
        width: int = 64,
        blocks: tuple[int, ...] = (3, 3, 6, 3),
        dropout: tuple[float, float] = (0.3, 0.5),
        *,
        frozen_norm: bool = True,
        freeze_early: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = ResNet38(width, blocks, dropout)
        self._heads(classes, (8 * width, 16 * width, 64 * width), 2 * width, width)
        prepare_backbone(self, frozen_norm=frozen_norm, freeze_early=freeze_early)

    def levels(self, image: Tensor) -> Levels:
        return Levels(*self.backbone(image))

    def rate_groups(
        self, learning_rate: float, new_factor: float, bias_factor: float
    ) -> list[dict[str, Any]]:
        """No convolution has a bias here."""
        pretrained = [p for p in self.backbone.parameters() if p.requires_grad]
        new = [layer.weight for layer in (self.low, self.middle, self.affinity, self.classifier)]
        return [
            {"params": pretrained, "lr": learning_rate},
            {"params": new, "lr": learning_rate * new_factor},
        ]


class OnVgg16(Classifier):
    """On VGG-16 with three more convolutions; its first stage has ``width`` channels.

    The extra weights are drawn with ``deviation``.
    """

    backbone: Vgg16Extra
    names = (
        *EXTRA_NAMES,
        (r"^(trunk|extra)\.", r"backbone.\1."),
        (r"^fc_extra_3\.", "low."),
        (r"^fc_extra_4\.", "middle."),
        (r"^extra_att_module\.", "affinity."),
        (r"^extra_last_conv\.", "classifier."),
    )

    def __init__(self, classes: int, width: int = 64, deviation: float | None = 0.01) -> None:
        super().__init__()
        taps = ("pool4", "conv5_3", "extra3")
        self.backbone = Vgg16Extra(taps, width=width, deviation=deviation)
        channels = self.backbone.channels
        self._heads(classes, (channels, channels, channels), width, width)

    def levels(self, image: Tensor) -> Levels:
        return Levels(*self.backbone(image).values())

    def rate_groups(
        self, learning_rate: float, new_factor: float, bias_factor: float
    ) -> list[dict[str, Any]]:
        """The three extra convolutions are new layers too."""
        return rate_groups(
            self,
            self.backbone.trunk,
            learning_rate,
            new_factor=new_factor,
            bias_factor=bias_factor,
        )


class Pair(nn.Module):
    """The network that sees whole images, which maps are made with, and the one that sees patches.

    Two of one form, which share nothing.
    """

    def __init__(self, global_network: Classifier, local_network: Classifier) -> None:
        super().__init__()
        self.global_network = global_network
        self.local_network = local_network

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The global network, which is ``state_dict`` in the authors' checkpoint.

        The local one (``local_dict``) only teaches it and makes no maps: it stays as it is. Raises
        HubError if it does not fit exactly.
        """
        self.global_network.load_published(state)


def spread(feature: Tensor, guide: Tensor) -> Tensor:
    """float[N, C, h, w]: at each position the mean of the features, by likeness of the ``guide``.

    Likeness is the cosine of the two positions' guides, 0 if that is negative; those of one
    position sum to (almost) 1.
    """
    directions = guide.flatten(2)
    norm = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    directions = directions / (norm + _EPSILON)
    values = feature.flatten(2)
    n, _, positions = directions.shape
    parts = []
    for block in directions.split(max(1, _BLOCK // (n * positions)), dim=2):
        alike = F.relu(directions.transpose(1, 2) @ block)
        alike = alike / (alike.sum(1, keepdim=True) + _EPSILON)
        parts.append(values @ alike)
    return torch.cat(parts, dim=2).view_as(feature)


def scores(maps: Tensor) -> Tensor:
    """float[N, classes] of raw maps, background last: the means of the classes' over positions."""
    return maps[:, :-1].float().mean((2, 3))
