"""CAM: learning deep features for discriminative localization, on ResNet-38.

Paper: Zhou et al., CVPR 2016, arXiv 1512.04150, in the form in which WSSS-BED (arXiv 2404.00918)
uses it as its baseline. Code: clovaai/WSSS-BED, ``classifier/`` (Apache-2.0); the training recipe
is that of EPS's classifier, since WSSS-BED ships none.

What differs from the CAM paper: the backbone (stride 8), ReLU on the maps, frozen batch norm, no
bias, and maps summed over four scales and the mirrored image, for the classes of the image-level
label.

``Recipe.momentum`` is 0.0005, not 0.9: the published optimiser hands the weight decay to SGD where
the momentum belongs, and uses its own "momentum" as the exponent of the poly schedule. The
reported numbers were made so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.resnet38 import PUBLISHED_NAMES, ResNet38
from stages.backbones.state import load_strictly
from stages.cam import CamData
from stages.cam._resnet38 import (
    ResNet38Method,
    classification_loss,
    classifier_sgd,
    prepare_backbone,
)
from stages.cam._views import Views
from stages.ops.images import multi_scale_maps
from stages.runtime.method import Batch, Image, Phase, Source, poly
from wsssbed_hub.artifacts import manifest


@dataclass(frozen=True)
class Recipe:
    """The published training on VOC (``voc12_cls.sh``)."""

    initial: str = "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"  # ResNet-38, for the backbone
    freeze_early: bool = True  # the first convolution and stage 2
    frozen_norm: bool = True  # batch norm keeps its statistics, scale and shift
    width: int = 64  # channels of the first convolution; all others follow
    blocks: tuple[int, ...] = (3, 3, 6, 3)
    dropout: tuple[float, float, float] = (0.3, 0.5, 0.5)  # stages 6 and 7, before the pooling
    steps: int = 20_000
    batch_size: int = 8
    learning_rate: float = 0.01
    classifier_factor: float = 10.0
    momentum: float = 0.0005
    weight_decay: float = 5e-4
    power: float = 0.9
    long_side: tuple[int, int] = (256, 512)
    crop: int = 448
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        freeze_early=False,
        frozen_norm=False,
        width=8,
        blocks=(1, 1, 1, 1),
        dropout=(0.0, 0.0, 0.0),
        steps=400,
        learning_rate=0.03,
        classifier_factor=1.0,
        momentum=0.9,
        long_side=(96, 144),
        crop=112,
        scales=(0.5, 1.0, 1.5),
    ),
}


class Classifier(nn.Module):
    """float[N, 3, H, W] (RGB, ImageNet mean and deviation) to logits float[N, classes]."""

    def __init__(
        self,
        classes: int,
        width: int = 64,
        blocks: tuple[int, ...] = (3, 3, 6, 3),
        dropout: tuple[float, float, float] = (0.3, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.backbone = ResNet38(width, blocks, dropout[:2])
        self.dropout = nn.Dropout2d(dropout[2])
        self.classifier = nn.Conv2d(self.backbone.channels, classes, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)

    def forward(self, image: Tensor) -> Tensor:
        feature = self.dropout(self.backbone(image).conv6)
        return self.classifier(feature.mean((2, 3), keepdim=True)).flatten(1)

    def maps(self, image: Tensor) -> Tensor:
        """Activation maps float[N, classes, ceil(H/8), ceil(W/8)], at least 0, of any scale."""
        return F.relu(self.classifier(self.backbone(image).conv6))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint. Raises HubError if it does not fit exactly."""
        names = (*PUBLISHED_NAMES, (r"^(?!fc8\.)", "backbone."), (r"^fc8\.", "classifier."))
        load_strictly(self, state, "The CAM checkpoint", names)


class Method(ResNet38Method):
    card = manifest.MethodCitation(
        name="CAM",
        paper="https://arxiv.org/abs/1512.04150",
        code="https://github.com/clovaai/WSSS-BED",
        licence="Apache-2.0",
    )
    recipes = RECIPES
    recipe: Recipe

    def build(self) -> Classifier:
        recipe = self.recipe
        network = Classifier(self.num_classes, recipe.width, recipe.blocks, recipe.dropout)
        prepare_backbone(network, frozen_norm=recipe.frozen_norm, freeze_early=recipe.freeze_early)
        return network

    def phases(self, network: Classifier, data: CamData) -> Iterator[Phase]:
        recipe = self.recipe

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            views = batches["views"]
            logits = network(views["image"])
            return {"classification": classification_loss(logits, views["label"])}

        yield Phase(
            name="classifier",
            steps=recipe.steps,
            sources={"views": Source(Views(data, recipe), recipe.batch_size, drop_last=True)},
            optimizer=lambda: classifier_sgd(network, recipe),
            schedule=poly(recipe.steps, recipe.power),
            loss=loss,
        )

    def activations(self, network: Classifier, image: Image, data: CamData) -> np.ndarray:
        """uint8[K, H, W]: summed over scales and mirror images, divided by the maximum."""
        device = network.classifier.weight.device
        return multi_scale_maps(
            lambda pair: network.maps(pair.to(device)),
            image.rgb,
            image.class_ids,
            self.recipe.scales,
        )
