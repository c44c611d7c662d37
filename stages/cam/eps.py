"""EPS: saliency as pseudo-pixel supervision, on ResNet-38.

Paper: Lee et al., "Railroad is not a Train", CVPR 2021, arXiv 2105.08965. Code: halbielee/EPS,
which has no licence.

The network has a map for each class and one for the background, of which a saliency map is put
together: what the present classes that lie on salient pixels say, and what the background, joined
by the classes that do not, leaves over. It is trained to be the given saliency map (``--sal``),
beside the classification of the image. Maps are made without saliency.

What the published code does and the paper does not tell: saliency maps are resized with the image
(bicubic) for the view and by nearest neighbour to the size of the network's maps, where they stay
soft; probabilities are a softmax over classes and background, in training and for the maps; a class
is on salient pixels by its overlap with them, |P and S| / |P|, in which every pixel adds 1e-4 to
|P|. Paper and code agree in the rule and in the loss.

``Recipe.momentum`` is 0.0005, not 0.9: the published optimiser hands the weight decay to SGD where
the momentum belongs, and uses its own "momentum" as the exponent of the poly schedule. The
reported numbers were made so. The threshold on the overlap is that of the scripts; the program's
own default, which they override, is 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

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
from stages.ops.resizing import resize_nearest
from stages.runtime.method import Batch, Image, Phase, Source, poly
from wsssbed_hub.artifacts import manifest

EPSILON = 1e-4  # that each pixel adds to the number of a class's pixels


@dataclass(frozen=True)
class Recipe:
    """The published training on VOC (``script/voc12_eps.sh``)."""

    initial: str = "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"  # ResNet-38, for the backbone
    freeze_early: bool = True  # the first convolution and stage 2
    frozen_norm: bool = True  # batch norm keeps its statistics, scale and shift
    width: int = 64  # channels of the first convolution; all others follow
    blocks: tuple[int, ...] = (3, 3, 6, 3)
    dropout: tuple[float, float] = (0.3, 0.5)  # stages 6 and 7
    least_overlap: float = 0.4  # tau in the paper: with less saliency a class joins the background
    foreground_weight: float = 0.5  # lambda in the paper
    saliency_weight: float = 1.0  # of the saliency loss beside the classification
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
    "published-voc": Recipe(),
    "published-coco": replace(  # ``script/coco_eps.sh``
        Recipe(),
        foreground_weight=0.9,  # only in the script
        steps=256_500,
        batch_size=16,
        long_side=(256, 448),
        crop=321,
    ),
    "shapes": Recipe(
        initial="none",
        freeze_early=False,
        frozen_norm=False,
        width=8,
        blocks=(1, 1, 1, 1),
        dropout=(0.0, 0.0),
        steps=320,
        learning_rate=0.03,
        classifier_factor=1.0,
        momentum=0.9,
        long_side=(96, 144),
        crop=112,
        scales=(0.5, 1.0, 1.5),
    ),
}


class Classifier(nn.Module):
    """float[N, 3, H, W] (RGB, ImageNet mean and deviation) to scores float[N, classes + 1].

    The last is the background's, which nothing is trained to be.
    """

    def __init__(
        self,
        classes: int,
        width: int = 64,
        blocks: tuple[int, ...] = (3, 3, 6, 3),
        dropout: tuple[float, float] = (0.3, 0.5),
    ) -> None:
        super().__init__()
        self.backbone = ResNet38(width, blocks, dropout)
        self.classifier = nn.Conv2d(self.backbone.channels, classes + 1, 1, bias=False)
        nn.init.xavier_uniform_(self.classifier.weight)

    def maps(self, image: Tensor) -> Tensor:
        """Raw maps float[N, classes + 1, ceil(H/8), ceil(W/8)], background last, of any sign."""
        return self.classifier(self.backbone(image).conv6)

    def forward(self, image: Tensor) -> Tensor:
        return pooled(self.maps(image))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint. Raises HubError if it does not fit exactly."""
        names = (*PUBLISHED_NAMES, (r"^(?!fc8\.)", "backbone."), (r"^fc8\.", "classifier."))
        load_strictly(self, state, "The EPS checkpoint", names)


def pooled(maps: Tensor) -> Tensor:
    """Scores float[N, K] of maps float[N, K, h, w]: the means over all positions."""
    return maps.mean((2, 3))


def probabilities(maps: Tensor) -> Tensor:
    """Of the classes and the background at each position, in float32; they sum to 1."""
    return maps.float().softmax(1)


class Estimate(NamedTuple):
    """What maps say about saliency, each float[N, 1, h, w]."""

    foreground: Tensor
    """Probability of the classes on salient pixels."""
    not_background: Tensor
    """What the background and the classes beside salient pixels leave over of 1."""
    saliency: Tensor
    """The two, weighted."""


def overlaps(probability: Tensor, saliency: Tensor) -> Tensor:
    """float[N, C]: how much of each class's pixels are salient, 0 for a class that has none.

    Both float[N, C or 1, h, w] are binarised above 0.5. The pixels are counted, so that nothing
    depends on an order of additions.
    """
    there, salient = probability > 0.5, saliency > 0.5
    pixels = there.sum((2, 3)).double() + EPSILON * there[0, 0].numel()
    return ((there & salient).sum((2, 3)) / pixels).float()


def estimate_saliency(
    probability: Tensor, label: Tensor, overlap: Tensor, recipe: Recipe
) -> Estimate:
    """Of float[N, C + 1, h, w] the saliency that it amounts to.

    Present classes (multi-hot ``label`` float[N, C]) whose ``overlap`` is above
    ``recipe.least_overlap`` are foreground, the others background; absent ones are neither.
    """
    classes, background = probability[:, :-1], probability[:, -1:]
    salient = label * (overlap > recipe.least_overlap)
    foreground = (classes * salient[..., None, None]).sum(1, keepdim=True)
    beside = (classes * (label - salient)[..., None, None]).sum(1, keepdim=True)
    not_background = 1 - (background + beside)
    weight = recipe.foreground_weight
    return Estimate(foreground, not_background, weight * foreground + (1 - weight) * not_background)


def saliency_loss(maps: Tensor, saliency: Tensor, label: Tensor, recipe: Recipe) -> Tensor:
    """Mean squared error of the estimated saliency, over pixels and images.

    Raw maps float[N, C + 1, h, w], saliency float[N, 1, H, W] from 0 to 1, multi-hot
    float[N, C]. No gradient goes through the choice of classes.
    """
    probability = probabilities(maps)
    small = resize_nearest(saliency, maps.shape[2:])
    overlap = overlaps(probability[:, :-1].detach(), small)
    found = estimate_saliency(probability, label, overlap, recipe)
    return F.mse_loss(found.saliency, small)


class Method(ResNet38Method):
    card = manifest.MethodCitation(
        name="EPS",
        paper="https://arxiv.org/abs/2105.08965",
        code="https://github.com/halbielee/EPS",
    )
    recipes = RECIPES
    needs_saliency = True
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
            label, saliency = views["label"], views["saliency"]
            maps = network.maps(views["image"])
            return {
                "classification": classification_loss(pooled(maps)[:, :-1], label),
                "saliency": recipe.saliency_weight * saliency_loss(maps, saliency, label, recipe),
            }

        yield Phase(
            name="classifier",
            steps=recipe.steps,
            sources={"views": Source(Views(data, recipe), recipe.batch_size, drop_last=True)},
            optimizer=lambda: classifier_sgd(network, recipe),
            schedule=poly(recipe.steps, recipe.power),
            loss=loss,
        )

    def activations(self, network: Classifier, image: Image, data: CamData) -> np.ndarray:
        """uint8[K, H, W]: probabilities, summed over scales and mirror images, by the maximum."""
        device = network.classifier.weight.device
        return multi_scale_maps(
            lambda pair: probabilities(network.maps(pair.to(device))),
            image.rgb,
            image.class_ids,
            self.recipe.scales,
        )
