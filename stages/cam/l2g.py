"""L2G: local-to-global knowledge transfer, on ResNet-38 or VGG-16.

Paper: Jiang et al., CVPR 2022, arXiv 2204.03206. Code: PengtaoJiang/L2G, whose README says CC
BY-NC-SA 4.0 for all of it.

A local network classifies patches of an image, which all have the image's label, and finds more of
each object than one that sees the whole. Its maps, cut into classes and background by the given
saliency map (``--sal``), are what the global network's maps of the same places are trained to be.
Maps are made with the global network alone, without saliency.

What the published code does and the paper does not tell (as it is described to us):

- Both networks add what they make of the features to what they make of the features spread by an
  affinity (SEAM's), and have a map for the background.
- The global network learns from the transfer alone: its own classification loss is logged and not
  added. The local one learns from classification alone, of the classes only: nothing teaches its
  background map, but through the features.
- A softmax over classes and background is taken on the global side only. The target is the patch's
  saliency where a class is strongest, one minus it where the background is, and 0 in all the other
  maps, so at places where saliency and the strongest map disagree it is (nearly) 0 everywhere.
- RoIAlign with ``aligned=False`` compares each cell of a patch with what lies half a cell to the
  right and below in the global map.
- Four of VOC's six patches are the corners of the view. The view's place is drawn with height and
  width confused, so that it reaches beyond the shorter side, on black, and not to the end of the
  longer one by as much.
- COCO's program takes other views (the whole image, squeezed; four random patches) and another
  background (``background``); its optimiser gets the weight decay as its momentum, and so 0.0005
  and no decay. Its warm-up is undone at the first step, so there is none here.

What differs from the published training here: a short batch at the end of an epoch is filled from
the next one (6 of VOC's 35,280 steps fewer, 13 of COCO's 102,615).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.backbones.vgg import timm_imagenet
from stages.cam import CamData, CamMethod
from stages.cam._l2g_networks import Classifier, Form, OnResNet38, OnVgg16, Pair, scores
from stages.cam._l2g_patches import PatchViews
from stages.cam._resnet38 import INITIAL, classification_loss
from stages.ops.images import (
    MEAN_RGB,
    STD_RGB,
    divide_by_maximum,
    fuse,
    scaled_input,
    to_uint8,
)
from stages.ops.resizing import resize_nearest, roi_align
from stages.runtime.method import Batch, Image, Initial, Phase, Source, poly
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

STRIDE = 8  # pixels of a cell of the maps
_EPSILON = 1e-8  # added to maxima that divide

Background = Literal["mask", "score"]


@dataclass(frozen=True)
class Recipe:
    """The published training on VOC (``train_l2g_sal_voc.sh``)."""

    initial: str = "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"  # ResNet-38, for both backbones
    network: Form = "resnet38"
    freeze_early: bool = True  # ResNet-38's first convolution and stage 2
    frozen_norm: bool = True  # ResNet-38's batch norm keeps its statistics, scale and shift
    width: int = 64  # channels of the first convolution; all others follow
    blocks: tuple[int, ...] = (3, 3, 6, 3)  # of ResNet-38
    dropout: tuple[float, float] = (0.3, 0.5)  # ResNet-38's stages 6 and 7
    extra_deviation: float | None = 0.01  # of VGG-16's new 3x3 weights; none: He et al.
    epochs: int = 10
    steps: int = 0  # if not 0, instead of the epochs
    batch_size: int = 3
    learning_rate: float = 0.001
    new_factor: float = 10.0  # of the rate of layers that ImageNet does not know
    bias_factor: float = 2.0
    drops: tuple[int, ...] = (5,)  # the epochs, from 0, at which the rate drops
    drop_factor: float = 0.1
    power: float | None = None  # of a poly schedule instead of the drops
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    view: Literal["crop", "squeeze"] = "crop"
    short_side: int = 512  # of the image that a view is cropped from
    crop: int = 448  # height and width of a view
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    mean: tuple[float, float, float] = MEAN_RGB
    std: tuple[float, float, float] = STD_RGB
    patch: int = 320  # height and width of a patch
    patches: int = 6  # of a view
    corners: bool = True  # the first four are the corners, else all are random
    transfer_weight: float = 10.0
    threshold: float = 0.001  # of what counts of the local maps
    background: Background = "mask"  # the target's, where not salient: 1, or COCO's "score"
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)  # of the maps

    def __post_init__(self) -> None:
        if not STRIDE <= self.patch <= self.crop:
            raise UsageError(
                f"patch={self.patch}, crop={self.crop}: a patch is cut from the view and has "
                f"{STRIDE} pixels or more."
            )
        if self.patches < (4 if self.corners else 1):
            raise UsageError(
                f"patches={self.patches}: with corners=true four of them are the corners."
            )
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov=true wants a momentum. Set nesterov=false too.")
        if self.steps < 0 or (not self.steps and self.epochs < 1):
            raise UsageError(f"steps={self.steps}, epochs={self.epochs}: one of them, 1 or more.")

    def unread(self) -> Iterator[tuple[Collection[str], str]]:
        """Fields that change nothing beside the others, and why."""
        if self.network == "vgg16":
            yield ["freeze_early", "frozen_norm", "blocks", "dropout"], "Only ResNet-38 has it"
        else:
            yield ["extra_deviation"], "Only VGG-16 has it (--set network=vgg16)"
        if self.power is not None:
            yield ["drops", "drop_factor"], "The rate falls by the power (--set power=none: drops)"
        if self.view == "squeeze":
            yield ["short_side"], "With view=squeeze the whole image is the view"


RECIPES = {
    "published-voc": Recipe(),
    "published-coco": replace(  # ``train_l2g_sal_coco.sh``
        Recipe(),
        epochs=15,
        batch_size=12,
        learning_rate=0.1,
        power=0.7,
        momentum=5e-4,
        nesterov=False,
        weight_decay=0.0,
        view="squeeze",
        mean=(0.471, 0.448, 0.408),
        std=(0.234, 0.239, 0.242),
        patches=4,
        corners=False,
        transfer_weight=30.0,
        threshold=0.1,
        background="score",
    ),
    "vgg": replace(Recipe(), initial="vgg16-397923af.pth", network="vgg16"),  # ``get_model``
    "shapes": Recipe(
        initial="none",
        freeze_early=False,
        frozen_norm=False,
        width=8,
        blocks=(1, 1, 1, 1),
        dropout=(0.0, 0.0),
        steps=300,
        batch_size=4,
        learning_rate=0.01,
        new_factor=1.0,
        power=0.9,
        short_side=112,
        crop=96,
        patch=64,
        scales=(0.5, 1.0, 1.5),
    ),
}


def normalised(maps: Tensor, label: Tensor) -> Tensor:
    """Local maps float[K, C + 1, h, w], each divided by its maximum, without negatives.

    Those of classes that multi-hot ``label`` float[K, C] does not name are 0; the background's, the
    last, stays.
    """
    positive = divide_by_maximum(maps.float().relu().flatten(0, 1), _EPSILON).view_as(maps)
    named = torch.cat([label, label.new_ones(len(label), 1)], 1)
    return positive * (named > 0)[:, :, None, None]


def winners(maps: Tensor) -> Tensor:
    """float[K, C + 1, h, w] with the highest alone of each position.

    Two that are 1 are a tie. As in the published code it is left to torch's sort, whose order of
    equal numbers is always the same, but another one on a GPU.
    """
    place = maps.neg().argsort(1)[:, :1]
    numbers = torch.arange(maps.shape[1], device=maps.device)[None, :, None, None]
    return maps * (numbers == place)


def cut_by_saliency(
    winning: Tensor, saliency: Tensor, threshold: float, background: Background
) -> Tensor:
    """The target of the transfer, float[K, C + 1, h, w], of what wins at each position.

    A class that wins with more than ``threshold`` gets the patch's saliency (float[K, 1, H, W] from
    0 to 1, read by nearest neighbour), the background one minus it; with ``background`` "score"
    that times its score, whatever the threshold.
    """
    salient = resize_nearest(saliency, winning.shape[2:])
    there = (winning > threshold).to(winning)
    rest = winning[:, -1:] if background == "score" else there[:, -1:]
    return torch.cat([there[:, :-1] * salient, rest * (1 - salient)], 1)


def transfer_target(maps: Tensor, label: Tensor, saliency: Tensor, recipe: Recipe) -> Tensor:
    """What the global network is to say of each patch, without a gradient.

    Of raw local maps float[K, C + 1, h, w], and the patches' ``label`` float[K, C] and ``saliency``
    float[K, 1, H, W].
    """
    winning = winners(normalised(maps.detach(), label))
    return cut_by_saliency(winning, saliency, recipe.threshold, recipe.background)


def aligned(maps: Tensor, boxes: Sequence[Sequence[int]], size: Sequence[int]) -> Tensor:
    """Raw global maps at the patches, float[K, C + 1, h, w]; ``boxes`` as of ``roi_align``."""
    return roi_align(maps.float(), boxes, size, 1 / STRIDE)


def transfer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the probabilities of classes and background, over all elements."""
    return F.mse_loss(logits.softmax(1), target)


def losses(network: Pair, views: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """The terms of one pass: ``views`` is a batch of ``PatchViews``."""
    image, saliency, label = views["image"], views["saliency"], views["label"]
    boxes = [(n, *box) for n, of_image in enumerate(views["boxes"].tolist()) for box in of_image]
    cut = [(n, slice(y1, y2), slice(x1, x2)) for n, x1, y1, x2, y2 in boxes]
    patches = torch.stack([image[n, :, rows, columns] for n, rows, columns in cut])
    of_patches = torch.stack([saliency[n, :, rows, columns] for n, rows, columns in cut])
    patch_label = label[[box[0] for box in boxes]]
    local_maps = network.local_network(patches)
    target = transfer_target(local_maps, patch_label, of_patches, recipe)
    logits = aligned(network.global_network(image), boxes, local_maps.shape[2:])
    return {
        "transfer": recipe.transfer_weight * transfer_loss(logits, target),
        "classification": classification_loss(scores(local_maps), patch_label),
    }


def schedule(recipe: Recipe, images: int, steps: int) -> Callable[[int], float]:
    """The factor on the rates at a step of a training on so many images."""
    if recipe.power is not None:
        return poly(steps, recipe.power)

    def dropped(step: int) -> float:
        seen = step * recipe.batch_size
        return recipe.drop_factor ** sum(seen >= epoch * images for epoch in recipe.drops)

    return dropped


class Method(CamMethod):
    card = manifest.MethodCitation(
        name="L2G",
        paper="https://arxiv.org/abs/2204.03206",
        code="https://github.com/PengtaoJiang/L2G",
        licence="CC BY-NC-SA 4.0 (stated in its README)",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            INITIAL["backbone"].file,
            f"{INITIAL['backbone'].where}; for --recipe vgg torchvision's "
            "https://download.pytorch.org/models/vgg16-397923af.pth, or timm",
        )
    }
    needs_saliency = True
    recipe: Recipe

    def build(self) -> Pair:
        return Pair(self._classifier(), self._classifier())

    def _classifier(self) -> Classifier:
        recipe = self.recipe
        if recipe.network == "vgg16":
            return OnVgg16(self.num_classes, recipe.width, recipe.extra_deviation)
        return OnResNet38(
            self.num_classes,
            recipe.width,
            recipe.blocks,
            recipe.dropout,
            frozen_norm=recipe.frozen_norm,
            freeze_early=recipe.freeze_early,
        )

    def load_initial(self, network: Pair, state: Mapping[str, Tensor], name: str) -> None:
        """The ImageNet ResNet-38 in the published PyTorch names, without MXNet's wrapping, or
        torchvision's VGG-16: both networks begin with it."""
        for one in (network.global_network, network.local_network):
            one.backbone.load_initial(state, f"The initial {self.recipe.network}")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        if self.recipe.network == "vgg16":
            return timm_imagenet()
        return super().timm_weights(name)

    def phases(self, network: Pair, data: CamData) -> Iterator[Phase]:
        recipe, images = self.recipe, len(data.image_ids)
        steps = recipe.steps or -(-recipe.epochs * images // recipe.batch_size)

        def optimizer() -> torch.optim.Optimizer:
            groups = [
                group
                for one in (network.global_network, network.local_network)
                for group in one.rate_groups(
                    recipe.learning_rate, recipe.new_factor, recipe.bias_factor
                )
            ]
            return torch.optim.SGD(
                groups,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=recipe.nesterov,
            )

        yield Phase(
            name="transfer",
            steps=steps,
            sources={"views": Source(PatchViews(data, recipe), recipe.batch_size, shuffle=False)},
            optimizer=optimizer,
            schedule=schedule(recipe, images, steps),
            loss=lambda batches, step: losses(network, batches["views"], recipe),
        )

    def activations(self, network: Pair, image: Image, data: CamData) -> np.ndarray:
        """uint8[K, H, W]: the mean over scales and mirror images, without negatives, divided by the
        maximum."""
        maps = self.mean_maps(network.global_network, image.rgb, image.class_ids)
        return to_uint8(divide_by_maximum(maps.relu(), _EPSILON))

    def mean_maps(
        self, network: Classifier, rgb: np.ndarray, channels: Sequence[int] | np.ndarray
    ) -> Tensor:
        """Raw maps float[K, H, W] of an image (uint8[H, W, 3]), the mean over all scales and mirror
        images; ``channels`` counts the classes from 0, and the background after them."""
        recipe, device = self.recipe, network.classifier.weight.device
        chosen = torch.as_tensor(np.asarray(channels, np.int64), device=device)
        pairs = (scaled_input(rgb, scale, recipe.mean, recipe.std) for scale in recipe.scales)
        maps = (network(pair.to(device))[:, chosen] for pair in pairs)
        return fuse(maps, rgb.shape[:2], mode="bicubic") / (2 * len(recipe.scales))
