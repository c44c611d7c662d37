"""DSS: deeply supervised salient object detection with short connections.

Paper: Hou, Cheng, Hu, Borji, Tu, Torr, CVPR 2017 and TPAMI 2019, arXiv 1611.04849. There are two
programs, and ``variant`` says whose network this is: ``port``, AceCoooool/DSS-pytorch (MIT), which
the reference case ran and the published recipe trains; ``caffe``, the authors' Andrew-Qibin/DSS
(MIT), which ``--recipe caffe`` trains in full. They differ in more than the framework:

- In the authors' network sides 1 and 2 receive sides 3 and 4 after those were merged themselves, as
  in the paper's formula; in the port all sides receive raw maps.
- The authors enlarge maps by fixed bilinear kernels and crop, without padding; the port learns the
  kernels, padded and with a bias, and puts a 1x1 convolution on sides 5 and 6.
- The authors pad the first convolution by 5 and pool by 3x3 after stages 4 and 5.
- The authors take BGR images of any size, sum the loss over the pixels, average sides 3, 4, 5 and
  the fusion, and stretch each map to 0..1; the port takes RGB at 256 x 256, averages the loss over
  the pixels and sides 2, 3, 4 and the fusion, and stretches nothing.

Where this file departs from both:

- The last weights are taken. The port's README reports those that are best on validation images;
  the authors do not say which snapshot they released.
- Maps are refined by the authors' CRF (``crf``), a switch in both programs. It gets the map in
  floating point and the image in RGB, as in the port; the authors' script reads an 8-bit map and
  BGR, and cuts off the fraction of the result, which is rounded here.
- For the port, images whose sides 32 does not divide (``size`` 0) are padded with the mean colour,
  and the map is cut back. Its cross entropy is computed from logits, so that it does not saturate.
- Where the authors crop their files do not say: their Caffe finds the offsets. Here a crop begins
  where the centres of the receptive fields agree, halves rounded up.
- Images that are left over at the end of an epoch go into the next one's first step; the port
  drops them.
- After the rate has dropped torch's momentum still holds unscaled gradients, Caffe's scaled steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.state import Rules, load_strictly
from stages.backbones.vgg import Vgg16, for_caffe_input, timm_imagenet
from stages.ops.densecrf import DSS as CRF
from stages.ops.densecrf import densecrf_from_unary
from stages.ops.images import caffe_bgr, imagenet_rgb, resize_bilinear, to_uint8
from stages.ops.resizing import resize
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.sod import SodData, SodMethod
from stages.sod._dss_merging import (
    ORIGINS,
    RECEIVES,
    STRIDES,
    CaffeMerge,
    PaddedEnlarging,
    PortMerge,
    crop_offset,
    enlarge_and_crop,
)
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

Variant = Literal["port", "caffe"]
MEAN_BGR = (104.00699, 116.66877, 122.67892)
TAPS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "pool5")
KERNELS = (3, 3, 5, 5, 5, 7)  # of the side branches
DEPTHS = (2, 2, 4, 4, 8, 8)  # their channels, over those of the backbone's first stage


@dataclass(frozen=True)
class Recipe:
    """The port's training (main.py, solver.py, dataset.py); an image counts once per epoch.

    Raises UsageError for values that cannot be.
    """

    initial: str = "vgg16-397923af.pth"  # for the backbone
    variant: Variant = "port"  # of the network
    width: int = 64  # channels of the backbone's first stage; all others follow
    pixels: Literal["imagenet-rgb", "caffe-bgr"] = "imagenet-rgb"  # the backbone's colours
    size: int = 256  # pixels a side in training and test; 0: each image's own
    flip: float = 0.0
    round_label: bool = True  # to 0 or 1; else the mask over 255
    init: Literal["xavier", "gaussian"] = "xavier"  # side branches and merging
    init_std: float = 0.01  # of the gaussian
    enlarging: Literal["random", "bilinear"] = "random"  # first kernels, where they are learnt
    pixel_sum: bool = False  # the loss is summed over an image's pixels, else averaged
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-6
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    multipliers: bool = False  # of the rate: biases 2 (no decay), 1x1 and fusion 0.1
    decay_step: int = 0  # the rate drops after so many steps; 0: never
    decay: float = 0.1
    clip_norm: float | None = 1.0
    epochs: int = 500  # 700 for the best that the port's README reports
    steps: int = 0  # instead of epochs, if not 0
    batch_size: int = 8  # the README's; the program's default is 1
    accumulate: int = 1
    averaged: tuple[int, ...] = (2, 3, 4, 7)  # what the map is the mean of; 7 is the fusion
    stretch: bool = False  # the map's values to 0..1, before the CRF
    crf: bool = True

    def __post_init__(self) -> None:
        if not self.averaged or not set(self.averaged) <= set(range(1, 8)):
            raise UsageError(f"averaged={self.averaged}: some of the maps 1 to 7.")
        if self.size < 0 or self.width < 1:
            raise UsageError(
                f"size={self.size}, width={self.width}: a size is 0 or more, a width 1 or more."
            )


RECIPES = {
    "published": Recipe(),
    "caffe": Recipe(  # the authors' (train_val.prototxt, solver.prototxt, the notebook)
        initial="vgg16-00b39a1b.pth",
        variant="caffe",
        pixels="caffe-bgr",
        size=0,
        flip=0.5,
        round_label=False,
        init="gaussian",
        pixel_sum=True,
        optimizer="sgd",
        learning_rate=1e-8,
        weight_decay=5e-4,
        multipliers=True,
        decay_step=7500,
        clip_norm=None,
        steps=12_000,
        batch_size=10,
        accumulate=10,
        averaged=(3, 4, 5, 7),
        stretch=True,
    ),
    "shapes": Recipe(
        initial="none",
        width=8,
        size=128,
        flip=0.5,
        enlarging="bilinear",
        learning_rate=1e-3,
        steps=300,
        batch_size=8,
    ),
}

PUBLISHED_NAMES: Rules = (
    (r"^base\.", "backbone.features."),
    (r"^feat\.(\d)\.main\.", r"sides.\1."),
    (r"^comb\.(\d)\.upconv\.", r"merges.\1.enlarge."),
    (r"^comb\.(\d)\.conv\.", r"merges.\1.conv."),
    (r"^comb\.(\d)\.deconv\.", r"merges.\1.finish."),
    (r"^fuse\.weights$", "fusion"),
)


def _side(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A side branch: features to a map of one channel."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, 1, 1),
    )


class Dss(nn.Module):
    """float[N, 3, H, W] to logits float[N, 7, H, W]: sides 1 to 6, then their fusion."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.backbone = self._backbone(width)
        self.sides = nn.ModuleList(
            _side(self.backbone.channels[tap], depth * width, kernel)
            for tap, depth, kernel in zip(TAPS, DEPTHS, KERNELS, strict=True)
        )
        self.pool = nn.AvgPool2d(3, 1, 1)  # before side 6
        self.fusion = nn.Parameter(torch.full((6,), 1 / 6))
        self._add_merges()

    def _backbone(self, width: int) -> Vgg16:
        return Vgg16(TAPS, width=width)

    def _add_merges(self) -> None:
        self.merges = nn.ModuleList(PortMerge(side) for side in range(6))

    def _raw(self, image: Tensor) -> list[Tensor]:
        """The six maps before their short connections, each at its own stride."""
        features = self.backbone(image)
        *maps, deepest = (features[tap] for tap in TAPS)
        maps.append(self.pool(deepest))
        return [side(x) for side, x in zip(self.sides, maps, strict=True)]

    def _merged(self, raw: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        return [
            merge(own, [raw[other] for other in others])
            for own, merge, others in zip(raw, self.merges, RECEIVES, strict=True)
        ]

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % 32, 0, -height % 32))
        sides = torch.cat(self._merged(self._raw(image), (height, width)), 1)
        sides = sides[..., :height, :width]
        return torch.cat([sides, self._fused(sides)], 1)

    def _fused(self, sides: Tensor) -> Tensor:
        return (sides * self.fusion.view(1, 6, 1, 1)).sum(1, keepdim=True)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The port's checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The DSS checkpoint", PUBLISHED_NAMES)


class CaffeDss(Dss):
    """The authors' network, with the same side branches; nothing that was trained is published
    for it but a caffemodel, whose tensors would have to be given these names."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(width)
        self.fusion_bias = nn.Parameter(torch.zeros(1))

    def _backbone(self, width: int) -> Vgg16:
        return Vgg16(
            TAPS,
            width=width,
            pool4="halve3",
            pool5="halve3",
            first_padding=5,
            round_up=True,
        )

    def _add_merges(self) -> None:
        self.merges = nn.ModuleList(CaffeMerge(side) for side in range(4))

    def _merged(self, raw: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        maps = list(raw)
        for side in (3, 2, 1, 0):  # what is received was merged before
            maps[side] = self.merges[side](raw[side], [maps[n] for n in RECEIVES[side]])
        return [
            enlarge_and_crop(x, stride, crop_offset(stride, origin, 1, 0.0), size)
            for x, stride, origin in zip(maps, STRIDES, ORIGINS, strict=True)
        ]

    def forward(self, image: Tensor) -> Tensor:
        sides = torch.cat(self._merged(self._raw(image), image.shape[2:]), 1)
        return torch.cat([sides, self._fused(sides) + self.fusion_bias], 1)


def deep_supervision(logits: Tensor, label: Tensor, pixel_sum: bool) -> Tensor:
    """Cross entropy of all seven maps, added (equation 8), mean over the images.

    ``logits`` float[N, 7, H, W], ``label`` float[N, 1, H, W] in 0..1. Over the pixels it is summed
    (the authors) or averaged (the port).
    """
    each = F.binary_cross_entropy_with_logits(
        logits.float(), label.expand_as(logits), reduction="none"
    )
    over_pixels = each.sum((2, 3)) if pixel_sum else each.mean((2, 3))
    return over_pixels.sum(1).mean()


def crf_unary(saliency: Tensor) -> Tensor:
    """float[2, H, W], the energies of "not salient" and "salient", from float[H, W] in 0..1.

    -log(p + 1e-8) / (1.05 sigmoid(p)) for the probability p of each label (dss_crf).
    """
    p = torch.stack([1 - saliency, saliency])
    return -(p + 1e-8).log() / (1.05 * p.sigmoid())


def stretched(maps: Tensor) -> Tensor:
    """float[1, 1, H, W], its least value to 0 and its greatest to 1."""
    least, most = maps.aminmax()
    return (maps - least) / (most - least + 1e-8)


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8[H, W] or uint8[H, W, 3] at ``size`` by ``size``, by Pillow; itself for 0."""
    return resize_bilinear(pixels, size, size) if size else pixels


def _to_input(rgb: np.ndarray, recipe: Recipe) -> np.ndarray:
    """float32[3, H, W] as the network takes it, from uint8[H, W, 3]."""
    rgb = _resized(rgb, recipe.size)
    return imagenet_rgb(rgb) if recipe.pixels == "imagenet-rgb" else caffe_bgr(rgb, MEAN_BGR)


class Pairs:
    """Images with their masks."""

    def __init__(self, data: SodData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, H, W] as the network takes it, ``label`` float32[1, H, W] in 0..1.

        Raises HubError if image or mask cannot be read, or if they differ in size.
        """
        image_id = self.data.image_ids[index]
        rgb, mask = self.data.read_image(image_id), self.data.read_mask(image_id)
        if rng.random() < self.recipe.flip:
            rgb, mask = rgb[:, ::-1], mask[:, ::-1]
        label = _resized(np.ascontiguousarray(mask), self.recipe.size)[None]
        label = label.astype(np.float32) / np.float32(255)
        if self.recipe.round_label:
            label = np.rint(label)
        return {"image": _to_input(np.ascontiguousarray(rgb), self.recipe), "label": label}


def _draw(network: Dss, recipe: Recipe) -> None:
    """The first weights of everything but the backbone."""
    for module in (network.sides, network.merges):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                if recipe.init == "xavier":
                    nn.init.xavier_uniform_(layer.weight)
                else:
                    nn.init.normal_(layer.weight, std=recipe.init_std)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            elif isinstance(layer, PaddedEnlarging) and recipe.enlarging == "bilinear":
                layer.draw_bilinear()


class Method(SodMethod):
    card = manifest.MethodCitation(
        name="DSS",
        paper="https://arxiv.org/abs/1611.04849",
        code="https://github.com/Andrew-Qibin/DSS",
        licence="MIT",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "vgg16-397923af.pth (recipe caffe: vgg16-00b39a1b.pth)",
            "https://download.pytorch.org/models/vgg16-397923af.pth, torchvision's; those that "
            "Caffe trained, for BGR, from https://github.com/jcjohnson/pytorch-vgg",
        )
    }
    recipe: Recipe

    def build(self) -> Dss:
        kind = Dss if self.recipe.variant == "port" else CaffeDss
        network = kind(self.recipe.width)
        _draw(network, self.recipe)
        return network

    def load_initial(self, network: Dss, state: Mapping[str, Tensor], name: str) -> None:
        """The backbone, made for the colours of the recipe."""
        network.backbone.load_initial(state, "The initial VGG-16")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """torchvision's, in place of Caffe's too: then for BGR, with another mean."""
        state = timm_imagenet()
        return state if self.recipe.pixels == "imagenet-rgb" else for_caffe_input(state)

    def _groups(self, network: Dss) -> list[dict[str, object]]:
        """Parameters with their rates and weight decay."""
        recipe = self.recipe
        groups = []
        for name, parameter in network.named_parameters():
            bias = recipe.multipliers and name.endswith("bias")
            slow = recipe.multipliers and not name.startswith(
                ("backbone.", *(f"sides.{side}.{layer}." for side in range(6) for layer in (0, 2)))
            )
            rate = recipe.learning_rate * (2 if bias else 1) * (0.1 if slow else 1)
            decay = 0.0 if bias else recipe.weight_decay
            groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
        return groups

    def _optimizer(self, network: Dss) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(
                self._groups(network), recipe.learning_rate, momentum=recipe.momentum
            )
        return torch.optim.Adam(self._groups(network), recipe.learning_rate, fused=True)

    def phases(self, network: Dss, data: SodData) -> Iterator[Phase]:
        recipe = self.recipe
        pairs = Pairs(data, recipe)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            batch = batches["pairs"]
            logits = network(batch["image"])
            return {"saliency": deep_supervision(logits, batch["label"], recipe.pixel_sum)}

        def schedule(step: int) -> float:
            return recipe.decay if recipe.decay_step and step >= recipe.decay_step else 1.0

        yield Phase(
            name="train",
            steps=recipe.steps or recipe.epochs * max(1, len(pairs) // recipe.batch_size),
            sources={"pairs": Source(pairs, recipe.batch_size)},
            optimizer=lambda: self._optimizer(network),
            schedule=schedule,
            loss=loss,
            accumulate=recipe.accumulate,
            clip_norm=recipe.clip_norm,
        )

    def saliency(self, network: Dss, image: Image) -> np.ndarray:
        """uint8[H, W]: the mean of some sigmoids at the image's size, after the CRF, times 255."""
        recipe = self.recipe
        device = next(network.parameters()).device
        pixels = torch.from_numpy(_to_input(image.rgb, recipe))[None].to(device)
        probabilities = network(pixels).float().sigmoid()
        mean = probabilities[:, [side - 1 for side in recipe.averaged]].mean(1, keepdim=True)
        mean = resize(mean, image.rgb.shape[:2], align_corners=True)
        if recipe.stretch:
            mean = stretched(mean)
        if not recipe.crf:
            return to_uint8(mean[0, 0])
        return to_uint8(densecrf_from_unary(crf_unary(mean[0, 0]), image.rgb, CRF)[1])
