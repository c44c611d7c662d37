"""PoolNet: a simple pooling-based design for salient object detection.

Paper: Liu, Hou, Cheng, Feng, Jiang, CVPR 2019, arXiv 1904.09569. Code: backseason/PoolNet (MIT).
ResNet-50 without the edge branch.

What the published code does and the paper does not tell: the convolution after each fusion, one
ReLU after the sum of an aggregation module, dilation in the last stage, 1x1 reduction before the
pyramid, frozen batch norm, ten images per step, and a *new* Adam when the rate drops, after 16
epochs (the code's own README says 15).

Where this file departs from the published code:

- Ten images make a step throughout. There the count runs on from one epoch to the next while the
  gradients are dropped, so with 10,553 images three are lost and the next step has seven.
- Images of fewer than 111 pixels a side are padded with the mean colour for the network and the
  map is cut back (there they fail: the deepest level is then smaller than the pooling by 8).
- An image and a mask of different sizes are an error; there the pair is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.caffe_resnet import CaffeResNet, timm_imagenet
from stages.backbones.state import Rules, load_strictly
from stages.backbones.untrained import calibrate_batchnorm
from stages.ops.images import caffe_bgr, to_uint8
from stages.ops.resizing import adaptive_avg_pool2d, resize
from stages.runtime.batch_norm import freeze_batchnorm
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.sod import SodData, SodMethod
from wsssbed_hub.artifacts import manifest

MEAN_BGR = (104.00699, 116.66877, 122.67892)
POOLS = (2, 4, 8)
PYRAMID = (1, 3, 5)
PIXEL_DEVIATION = 65.0  # of the network's input, roughly
MIN_SIDE = 111  # pixels; the shortest side that leaves eight cells at stride 16


@dataclass(frozen=True)
class Recipe:
    """The published training (main.py, solver.py); an image counts once per epoch."""

    initial: str = "resnet50_caffe.pth"  # for the backbone
    init_std: float | None = 0.01  # of every other convolution; None: torch's own
    width: int = 64  # channels of the stem; all others follow
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    epochs: int = 24
    steps: int = 0  # instead of epochs, if not 0; the rate drops after the same share
    decay_epoch: int = 16  # the rate drops, and Adam starts anew, after this many
    decay: float = 0.1
    learning_rate: float = 5e-5
    weight_decay: float = 5e-4  # coupled (L2), on every parameter
    batch_size: int = 10
    accumulate: int = 10  # so that every pass sees one image, at its own size
    flip: float = 0.5


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        init_std=None,
        width=8,
        blocks=(1, 1, 1, 1),
        steps=320,
        learning_rate=1e-3,
        batch_size=8,
        accumulate=1,
    ),
}

PUBLISHED_NAMES: Rules = (
    (r"^base\.resnet\.", "backbone."),
    (r"^base\.ppms_pre\.", "pyramid.reduce."),
    (r"^base\.ppms\.(\d)\.1\.", r"pyramid.branches.\1."),
    (r"^base\.ppm_cat\.0\.", "pyramid.fuse."),
    (r"^base\.infos\.(\d)\.0\.", r"guides.\1."),
    (r"^deep_pool\.(\d)\.convs\.", r"aggregations.\1.pooled."),
    (r"^deep_pool\.(\d)\.conv_sum\.", r"aggregations.\1.conv."),
    (r"^deep_pool\.(\d)\.conv_sum_c\.", r"aggregations.\1.fuse."),
    (r"^score\.score\.", "score."),
    (r"^convert\.convert0\.(\d)\.0\.", r"laterals.\1."),
)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return resize(x, like.shape[2:], align_corners=True)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


class PyramidPooling(nn.Module):
    """The global guidance: what the whole image says, at the size of the deepest level."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, width, 1, bias=False)
        self.branches = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in PYRAMID)
        self.fuse = _conv3(width * (1 + len(PYRAMID)), width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        levels = [x]
        for size, conv in zip(PYRAMID, self.branches, strict=True):
            levels.append(_resize(F.relu(conv(adaptive_avg_pool2d(x, size))), x))
        return F.relu(self.fuse(torch.cat(levels, 1)))


class Aggregation(nn.Module):
    """The feature aggregation module; ``fused`` ones also take a lateral level and the guide."""

    def __init__(self, inputs: int, outputs: int, fused: bool) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(_conv3(inputs, inputs) for _ in POOLS)
        self.conv = _conv3(inputs, outputs)
        self.fuse = _conv3(outputs, outputs) if fused else None

    def forward(
        self, x: Tensor, lateral: Tensor | None = None, guide: Tensor | None = None
    ) -> Tensor:
        total = x
        for size, conv in zip(POOLS, self.pooled, strict=True):
            total = total + _resize(conv(F.avg_pool2d(x, size)), x)
        total = F.relu(total)
        if self.fuse is None or lateral is None or guide is None:
            return self.conv(total)
        return self.fuse(self.conv(_resize(total, lateral)) + lateral + guide)


class PoolNet(nn.Module):
    """float[N, 3, H, W] (BGR, 0..255, minus the mean) to logits float[N, 1, H, W]."""

    def __init__(self, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        w = width
        self.backbone = CaffeResNet(blocks, (1, 2, 2, 1), (1, 1, 1, 2), w)
        self.laterals = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 1, bias=False)
            for inputs, outputs in zip(
                self.backbone.channels, (2 * w, 4 * w, 4 * w, 8 * w, 8 * w), strict=True
            )
        )
        self.pyramid = PyramidPooling(32 * w, 8 * w)
        inputs = (8 * w, 8 * w, 4 * w, 4 * w, 2 * w)
        outputs = (8 * w, 4 * w, 4 * w, 2 * w, 2 * w)
        self.guides = nn.ModuleList(_conv3(8 * w, n) for n in outputs[:4])
        self.aggregations = nn.ModuleList(
            Aggregation(n, m, fused=level < 4)
            for level, (n, m) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.score = nn.Conv2d(2 * w, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        image = F.pad(image, (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height)))
        levels = self.backbone(image)
        pyramid = self.pyramid(levels[-1])
        *finer, x = (F.relu(conv(level)) for conv, level in zip(self.laterals, levels, strict=True))
        for lateral, guide, module in zip(
            reversed(finer), self.guides, self.aggregations[:-1], strict=True
        ):
            x = module(x, lateral, F.relu(guide(_resize(pyramid, lateral))))
        logits = _resize(self.score(self.aggregations[-1](x)), image)
        return logits[..., :height, :width]

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The PoolNet checkpoint", PUBLISHED_NAMES)


def saliency_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy summed over the pixels, mean over the images (section 4.1; the code's sum).

    ``logits`` and ``label`` are float[N, 1, H, W], the label in [0, 1].
    """
    total = F.binary_cross_entropy_with_logits(logits.float(), label, reduction="sum")
    return total / len(logits)


class Pairs:
    """Images with their masks, each at its own size, mirrored at random."""

    def __init__(self, data: SodData, flip: float) -> None:
        self.data = data
        self.flip = flip

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, H, W] as the network takes it, ``label`` float32[1, H, W] in 0..1.

        Raises HubError if image or mask cannot be read, or if they differ in size.
        """
        image_id = self.data.image_ids[index]
        rgb, mask = self.data.read_image(image_id), self.data.read_mask(image_id)
        if rng.random() < self.flip:
            rgb, mask = rgb[:, ::-1], mask[:, ::-1]
        label = mask[None].astype(np.float32) / np.float32(255)
        return {"image": caffe_bgr(rgb, MEAN_BGR), "label": label}


def _draw_convolutions(network: nn.Module, deviation: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Method(SodMethod):
    card = manifest.MethodCitation(
        name="PoolNet",
        paper="https://arxiv.org/abs/1904.09569",
        code="https://github.com/backseason/PoolNet",
        licence="MIT",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "resnet50_caffe.pth",
            "the links in the README of https://github.com/backseason/PoolNet",
        )
    }
    recipe: Recipe

    def build(self) -> PoolNet:
        network = PoolNet(self.recipe.width, self.recipe.blocks)
        if self.recipe.init_std is not None:
            _draw_convolutions(network, self.recipe.init_std)
        calibrate_batchnorm(network.backbone, PIXEL_DEVIATION)
        freeze_batchnorm(network)
        return network

    def load_initial(self, network: PoolNet, state: Mapping[str, Tensor], name: str) -> None:
        """The backbone: torchvision's names, for BGR, 0..255, minus the mean."""
        network.backbone.load_initial(state, "The initial ResNet")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """torchvision's instead of Caffe's: see ``timm_imagenet`` for the difference."""
        return timm_imagenet(50)

    def phases(self, network: PoolNet, data: SodData) -> Iterator[Phase]:
        recipe = self.recipe
        pairs = Pairs(data, recipe.flip)
        steps = recipe.steps or recipe.epochs * len(pairs) // recipe.batch_size
        first = min(steps, steps * recipe.decay_epoch // recipe.epochs)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            batch = batches["pairs"]
            return {"saliency": saliency_loss(network(batch["image"]), batch["label"])}

        def phase(name: str, count: int, rate: float) -> Phase:
            return Phase(
                name=name,
                steps=count,
                sources={"pairs": Source(pairs, recipe.batch_size)},
                optimizer=lambda: torch.optim.Adam(
                    (p for p in network.parameters() if p.requires_grad),
                    lr=rate,
                    weight_decay=recipe.weight_decay,
                    fused=True,  # its square root is exact on every processor, MKL's is not
                ),
                schedule=lambda step: 1.0,
                loss=loss,
                accumulate=recipe.accumulate,
            )

        yield phase("full rate", first, recipe.learning_rate)
        yield phase("lower rate", steps - first, recipe.learning_rate * recipe.decay)

    def saliency(self, network: PoolNet, image: Image) -> np.ndarray:
        """uint8[H, W]: the sigmoid times 255, rounded; one scale, the image's own size."""
        device = network.score.weight.device
        pixels = torch.from_numpy(caffe_bgr(image.rgb, MEAN_BGR))[None].to(device)
        return to_uint8(network(pixels)[0, 0].float().sigmoid())
