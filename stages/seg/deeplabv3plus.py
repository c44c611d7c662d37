"""DeepLab-V3+ on ResNet-101, in MMSegmentation's form.

Paper: Chen et al., ECCV 2018, arXiv 1802.02611. Code: MMSegmentation 1.2.2 (Apache-2.0), its config
``deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512``. WSSS-BED (arXiv 2404.00918) trains this network
on its labels and says neither by which code nor how long; its release has none for it. Of the two
lengths that MMSegmentation publishes for VOC, 20,000 iterations (77.22 mIoU on val, with ground
truth) are the recipe ``published`` and 40,000 (78.62) ``published-40k``; WSSS-BED's own anchor
with ground truth is 78.4.

Where MMSegmentation departs from the paper: ResNet-101 v1c with a stride of 8 pixels instead of
Xception at 16; 512 channels in the head instead of 256; a 3x3 convolution after the atrous pyramid
instead of a 1x1; batch norm and ReLU between depthwise and pointwise convolutions; an auxiliary
head; a mean of the loss that counts ignored pixels.

For COCO nothing was published, neither in the paper nor by MMSegmentation. The recipe ``coco-80k``
takes VOC's, for as many iterations as MMSegmentation trains DeepLab-V3 on COCO-Stuff's 118,287
images with the same batch and the same rate (``deeplabv3_r101-d8_4xb4-80k_coco-stuff164k``).

Where this file departs from MMSegmentation: the images are the target's train_aug, with whatever
labels are given; the order of the images is drawn anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stages.backbones.resnet_v1c import ResNetV1c, timm_imagenet
from stages.backbones.state import load_strictly
from stages.ops.resizing import adaptive_avg_pool2d, resize
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.seg import SegData, SegMethod
from stages.seg._layers import Classifier, ConvNormReLU, FCNHead, SeparableConv, probed_device
from stages.seg._mmengine import poly
from stages.seg._mmseg import Crops, MMSegRecipe, predict, require_several, weighted_losses
from wsssbed_hub.artifacts import manifest


@dataclass(frozen=True)
class Recipe(MMSegRecipe):
    """The published training on VOC: the config and those that it builds on.

    The network is of ``models/deeplabv3plus_r50-d8.py`` and the config, the rest of
    ``schedules/schedule_20k.py``; augmentation and test are described in ``MMSegRecipe``.
    """

    initial: str = "resnet101_v1c-e67eebb6.pth"  # for the backbone
    width: int = 64  # channels of the stem; those of the backbone follow
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    rates: tuple[int, ...] = (1, 12, 24, 36)  # dilations of the atrous pyramid, 1 for a 1x1
    channels: int = 512  # of the head
    skip_channels: int = 48  # of the first stage's output in the head
    auxiliary_channels: int = 256
    dropout: float = 0.1  # of whole channels, before the classifiers
    auxiliary_weight: float = 0.4
    steps: int = 20_000
    learning_rate: float = 0.01
    least_rate: float = 1e-4  # of the last iteration
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on everything, batch norm and biases included


RECIPES = {
    "published": Recipe(),
    "published-40k": Recipe(steps=40_000),
    "coco-80k": Recipe(steps=80_000),
    "shapes": Recipe(
        initial="none",
        width=16,
        blocks=(1, 1, 1, 1),
        rates=(1, 2, 4, 6),
        channels=48,
        skip_channels=16,
        auxiliary_channels=24,
        steps=300,
        batch_size=8,
        scale=(224, 112),
        ratio=(0.75, 1.5),
        crop=96,
        test_scale=(224, 112),
        learning_rate=0.05,
    ),
}


class Head(Classifier):
    """The atrous pyramid and the decoder: outputs of the last and the first stage to logits at the
    size of the first.

    The 1x1 of ``rates`` is an ordinary convolution, the dilated ones are separable.
    """

    def __init__(self, deep: int, shallow: int, classes: int, recipe: Recipe) -> None:
        width, skip = recipe.channels, recipe.skip_channels
        super().__init__(width, classes, recipe.dropout)
        self.image_pool = nn.Sequential(_GlobalMean(), ConvNormReLU(deep, width))
        self.aspp_modules = nn.ModuleList(
            ConvNormReLU(deep, width) if rate == 1 else SeparableConv(deep, width, rate)
            for rate in recipe.rates
        )
        self.bottleneck = ConvNormReLU((len(recipe.rates) + 1) * width, width, 3)
        self.c1_bottleneck = ConvNormReLU(shallow, skip)
        self.sep_bottleneck = nn.Sequential(
            SeparableConv(width + skip, width), SeparableConv(width, width)
        )

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        pooled = resize(self.image_pool(deep), deep.shape[2:])
        pyramid = [pooled, *(branch(deep) for branch in self.aspp_modules)]
        decoded = resize(self.bottleneck(torch.cat(pyramid, 1)), shallow.shape[2:])
        x = torch.cat([decoded, self.c1_bottleneck(shallow)], 1)
        return self.classify(self.sep_bottleneck(x))


class _GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool2d(x, 1)


class DeepLabV3Plus(nn.Module):
    """float[N, 3, H, W] (RGB, ImageNet mean and deviation) to logits float[N, classes, h, w].

    ``decode`` at stride 4, background first; ``aux``, of the training alone, at stride 8.
    """

    def __init__(self, classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.backbone = ResNetV1c(recipe.blocks, recipe.width)
        shallow, _, middle, deep = self.backbone.channels
        self.decode_head = Head(deep, shallow, classes, recipe)
        self.auxiliary_head = FCNHead(middle, recipe.auxiliary_channels, classes, recipe.dropout)

    def all_heads(self, image: Tensor) -> dict[str, Tensor]:
        shallow, _, middle, deep = self.backbone(image)
        return {"decode": self.decode_head(deep, shallow), "aux": self.auxiliary_head(middle)}

    def forward(self, image: Tensor) -> Tensor:
        levels = self.backbone(image)
        return self.decode_head(levels[-1], levels[0])

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """MMSegmentation's checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The DeepLab-V3+ checkpoint")


class Method(SegMethod):
    card = manifest.MethodCitation(
        name="DeepLab-V3+",
        paper="https://arxiv.org/abs/1802.02611",
        code="https://github.com/open-mmlab/mmsegmentation",
        licence="Apache-2.0",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "resnet101_v1c-e67eebb6.pth",
            "https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth",
        )
    }
    recipe: Recipe

    def build(self) -> DeepLabV3Plus:
        return DeepLabV3Plus(self.num_classes + 1, self.recipe)

    def load_initial(self, network: DeepLabV3Plus, state: Mapping[str, Tensor], name: str) -> None:
        network.backbone.load_initial(state, "The initial ResNet-101 v1c")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """GluonCV's ImageNet weights of the same network, instead of open-mmlab's."""
        return timm_imagenet(101)

    def phases(self, network: DeepLabV3Plus, data: SegData) -> Iterator[Phase]:
        recipe = self.recipe
        require_several(recipe, self.card.name)
        floor = recipe.least_rate / recipe.learning_rate

        def optimizer() -> torch.optim.Optimizer:
            return torch.optim.SGD(
                network.parameters(),
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
            )

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            crops = batches["crops"]
            logits = network.all_heads(crops["image"])
            weights = {"aux": recipe.auxiliary_weight}
            return weighted_losses(logits, weights, crops["label"], recipe)

        yield Phase(
            name="segmentation",
            steps=recipe.steps,
            sources={"crops": Source(Crops(data, recipe), recipe.batch_size)},
            optimizer=optimizer,
            schedule=lambda step: poly(step, end=recipe.steps, power=recipe.power, floor=floor),
            loss=loss,
            accumulate=recipe.accumulate,
        )

    def logits(self, network: DeepLabV3Plus, image: Image) -> Tensor:
        """float32[C + 1, H, W] at the image's size, by the recipe's test."""
        return predict(network, image.rgb, self.recipe, probed_device(network))
