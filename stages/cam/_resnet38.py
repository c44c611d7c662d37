"""What classifiers on ResNet-38 share: the weights they begin with, what is trained, and its rates.

The training is that of EPS's published program, which is WSSS-BED's baseline's as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.resnet38 import ResNet38
from stages.backbones.untrained import calibrate_batchnorm
from stages.cam import CamMethod
from stages.runtime.batch_norm import freeze_batchnorm
from stages.runtime.method import Initial

INITIAL: Mapping[str, Initial] = {
    "backbone": Initial(
        "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth",
        "an MXNet model of https://github.com/itijyou/ademxapp; converted to PyTorch at "
        "https://github.com/visinf/1-stage-wseg",
    )
}


class OnResNet38(Protocol):
    """A network of a ``ResNet38`` and of one convolution that makes classes of its features."""

    backbone: ResNet38
    classifier: nn.Conv2d


class ResNet38Method(CamMethod):
    """A method whose network has a ``ResNet38`` as ``backbone``, from its ImageNet weights."""

    initial: ClassVar[Mapping[str, Initial]] = INITIAL

    def load_initial(self, network: Any, state: Mapping[str, Tensor], name: str) -> None:
        """The ImageNet ResNet-38 in the published PyTorch names, without MXNet's wrapping."""
        network.backbone.load_initial(state, "The initial ResNet-38")


def prepare_backbone(network: Any, *, frozen_norm: bool, freeze_early: bool) -> None:
    """Random weights whose features have a deviation of 1, and the parts that are never trained:
    all batch norm, and the first convolution with stage 2, each if asked for."""
    calibrate_batchnorm(network.backbone, deviation=1.0)
    if frozen_norm:
        freeze_batchnorm(network)
    if freeze_early:
        network.backbone.freeze_early()


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Sigmoid cross entropy, mean over classes and images; ``label`` is multi-hot float[N, C]."""
    return F.binary_cross_entropy_with_logits(logits.float(), label)


def classifier_sgd(network: OnResNet38, recipe: Any) -> torch.optim.Optimizer:
    """SGD over what is trained; the classifier's rate is ``recipe.classifier_factor`` times as
    high. Of ``recipe`` are the ``learning_rate``, ``momentum`` and ``weight_decay`` too."""
    backbone = [p for p in network.backbone.parameters() if p.requires_grad]
    classifier = list(network.classifier.parameters())
    return torch.optim.SGD(
        [
            {"params": backbone, "lr": recipe.learning_rate},
            {"params": classifier, "lr": recipe.learning_rate * recipe.classifier_factor},
        ],
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
