"""DeepLab-V2 on ResNet-101, with multi-scale fusion (MSC).

Paper: Chen et al., TPAMI 2018, arXiv 1606.00915. Code: kazuto1011/deeplab-pytorch (MIT), of which
WSSS-BED (arXiv 2404.00918) carries a copy; the recipe is the original's.

What the published code does and the paper does not tell: the fused (maximum) map has a loss of its
own, labels are brought to the size of the logits by nearest neighbour, the atrous pyramid goes
straight from 2048 channels to the classes, and no batch norm is ever updated, neither statistics
nor scale and shift.

Where this project departs from WSSS-BED: the list is the target's train_aug (its VOC configs name
a list of 1,464 images), the last iteration is the result (there the best on val), 20,000
iterations of ten images (there 10,000 of twenty).

Both programs also measure VOC with a fully connected CRF (``stages.ops.densecrf``, settings
``deeplab``) on the softmax of the fused logits at the image's size. WSSS-BED leaves it out on COCO
(``--wo_crf``), and so does this stage on every target but VOC. The CRF's image is BGR, as there;
the original hands over an image whose mean is subtracted and whose negative values wrap around,
which WSSS-BED mended, and we follow WSSS-BED.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.caffe_resnet import CAFFE_NAMES, CaffeResNet, timm_imagenet
from stages.backbones.state import Rules, load_strictly
from stages.backbones.untrained import calibrate_batchnorm
from stages.ops.images import caffe_bgr
from stages.ops.resizing import cross_entropy, resize
from stages.runtime.batch_norm import freeze_batchnorm
from stages.runtime.distributed import global_mean
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.seg import SegData, SegMethod, read_pair
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.evaluation.pseudo_label import IGNORE

MEAN_BGR = (104.008, 116.669, 122.675)
PIXEL_DEVIATION = 65.0  # of the network's input, roughly


@dataclass(frozen=True)
class Recipe:
    """The published training on VOC (``configs/voc12.yaml``)."""

    initial: str = "deeplabv1_resnet101-coco.pth"  # for the backbone
    width: int = 64  # channels of the stem; all others follow
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    rates: tuple[int, ...] = (6, 12, 18, 24)  # dilations of the atrous pyramid
    frozen_norm: bool = True  # batch norm keeps its statistics, scale and shift
    extra_scales: tuple[float, ...] = (0.5, 0.75)
    steps: int = 20_000
    batch_size: int = 10
    accumulate: int = 2
    learning_rate: float = 2.5e-4
    pyramid_factor: float = 10.0
    bias_factor: float = 20.0
    momentum: float = 0.9
    weight_decay: float = 5e-4  # not on the biases of the pyramid
    power: float = 0.9
    rate_every: int = 10  # the rate is written every so many steps
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    crop: int = 321
    flip: float = 0.5


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        width=16,
        blocks=(1, 1, 1, 1),
        rates=(1, 2, 3, 4),
        frozen_norm=False,
        steps=300,
        batch_size=8,
        accumulate=1,
        learning_rate=0.03,
        pyramid_factor=0.04,
        bias_factor=0.1,
        crop=112,
    ),
}

PUBLISHED_NAMES: Rules = (
    (r"^base\.aspp\.c", "pyramid."),
    (r"^base\.", ""),
    *CAFFE_NAMES,
    (r"^(?!pyramid\.)", "backbone."),
)


class Logits(NamedTuple):
    """Logits of each scale at its own size, and the maximum of all at the size of the first."""

    scales: list[Tensor]  # float[N, C, h, w] for 1 and each extra scale
    fused: Tensor


def _branch(inputs: int, classes: int, rate: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, classes, 3, 1, rate, rate)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class DeepLabV2(nn.Module):
    """float[N, 3, H, W] (BGR, 0..255, minus the mean) to logits at stride 8, background first."""

    def __init__(
        self,
        classes: int,
        width: int = 64,
        blocks: tuple[int, ...] = (3, 4, 23, 3),
        rates: tuple[int, ...] = (6, 12, 18, 24),
        extra_scales: tuple[float, ...] = (0.5, 0.75),
    ) -> None:
        super().__init__()
        self.extra_scales = extra_scales
        self.backbone = CaffeResNet(blocks, (1, 2, 1, 1), (1, 1, 2, 4), width)
        inputs = self.backbone.channels[-1]
        self.pyramid = nn.ModuleList(_branch(inputs, classes, rate) for rate in rates)

    def single(self, image: Tensor) -> Tensor:
        feature = self.backbone(image)[-1]
        return torch.stack([conv(feature) for conv in self.pyramid]).sum(0)

    def all_scales(self, image: Tensor) -> Logits:
        scales = [self.single(image)]
        for scale in self.extra_scales:
            # The given factor maps the coordinates, also where it does not divide the size.
            smaller = resize(image, scale_factor=scale)
            scales.append(self.single(smaller))
        size = scales[0].shape[2:]
        fused = scales[0]
        for logits in scales[1:]:
            fused = torch.maximum(fused, resize(logits, size))
        return Logits(scales, fused)

    def forward(self, image: Tensor) -> Tensor:
        return self.all_scales(image).fused

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The DeepLab-V2 checkpoint", PUBLISHED_NAMES)


def shrink_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbour, int64[N, H, W] to [N, h, w]: the pixel under each cell's centre.

    Pillow's rule; torch's and OpenCV's "nearest" take the pixel under the cell's corner.
    """
    rows, columns = (
        (2 * torch.arange(new, device=label.device) + 1) * old // (2 * new)
        for old, new in zip(label.shape[1:], size, strict=True)
    )
    return label[:, rows[:, None], columns]


def scale_losses(logits: Logits, label: Tensor) -> list[Tensor]:
    """Cross entropy of every scale, then of the maximum, each the mean over its labelled pixels.

    ``label`` is int64[N, H, W] with 255 for pixels that do not count.
    """
    losses = []
    for scores in (*logits.scales, logits.fused):
        small = shrink_label(label, scores.shape[2:])
        total = cross_entropy(scores.float(), small, ignore_index=IGNORE)
        losses.append(global_mean(total, (small != IGNORE).sum()))
    return losses


def poly_in_steps(step: int, steps: int, power: float, every: int) -> float:
    """Factor on the rate: (1 - done/steps)^power, ``done`` rounded down to a multiple of ``every``.

    ``step`` counts from 0.
    """
    return (1 - step // every * every / steps) ** power


class Crops:
    """Random views of the images with their labels."""

    def __init__(self, data: SegData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """``image`` float32[3, crop, crop] as the network takes it, ``label`` int64[crop, crop].

        Raises HubError if image and label differ in size.
        """
        size = self.recipe.crop
        rgb, labels = read_pair(self.data, self.data.image_ids[index])
        image = torch.from_numpy(caffe_bgr(rgb, MEAN_BGR))[None]
        label = torch.from_numpy(labels.astype(np.int64))[None]
        scale = self.recipe.scales[rng.integers(len(self.recipe.scales))]
        height, width = (max(1, int(side * scale)) for side in labels.shape)
        image = resize(image, (height, width))
        label = shrink_label(label, (height, width))
        missing = (0, max(0, size - width), 0, max(0, size - height))
        image, label = F.pad(image, missing)[0], F.pad(label, missing, value=IGNORE)[0]
        top, left = (int(rng.integers(side - size + 1)) for side in label.shape)
        window = (..., slice(top, top + size), slice(left, left + size))
        image, label = image[window], label[window]
        if rng.random() < self.recipe.flip:
            image, label = image.flip(-1), label.flip(-1)
        return {"image": image.contiguous(), "label": label.contiguous()}


class Method(SegMethod):
    card = manifest.MethodCitation(
        name="DeepLab-V2",
        paper="https://arxiv.org/abs/1606.00915",
        code="https://github.com/kazuto1011/deeplab-pytorch",
        licence="MIT",
    )
    recipes = RECIPES
    published_crf: ClassVar[Mapping[str, str]] = {"voc12": "deeplab"}
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "deeplabv1_resnet101-coco.pth",
            "a Caffe model; how to get and convert it: https://github.com/kazuto1011/deeplab-pytorch",
        )
    }
    recipe: Recipe

    def build(self) -> DeepLabV2:
        recipe = self.recipe
        network = DeepLabV2(
            self.num_classes + 1, recipe.width, recipe.blocks, recipe.rates, recipe.extra_scales
        )
        calibrate_batchnorm(network.backbone, PIXEL_DEVIATION)
        if recipe.frozen_norm:
            freeze_batchnorm(network)
        return network

    def load_initial(self, network: DeepLabV2, state: Mapping[str, Tensor], name: str) -> None:
        """The backbone, for BGR, 0..255, minus the mean, in Caffe's or torchvision's names."""
        network.backbone.load_initial(state, "The initial ResNet")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """ImageNet instead of COCO, torchvision's instead of Caffe's: see ``timm_imagenet``."""
        return timm_imagenet(101)

    def phases(self, network: DeepLabV2, data: SegData) -> Iterator[Phase]:
        recipe = self.recipe
        names = (*(f"{scale:g}x" for scale in (1, *recipe.extra_scales)), "max")

        def optimizer() -> torch.optim.Optimizer:
            rate = recipe.learning_rate
            backbone = [p for p in network.backbone.parameters() if p.requires_grad]
            weights = [conv.weight for conv in network.pyramid]
            biases = [conv.bias for conv in network.pyramid]
            groups = [
                {"params": backbone, "lr": rate},
                {"params": weights, "lr": rate * recipe.pyramid_factor},
                {"params": biases, "lr": rate * recipe.bias_factor, "weight_decay": 0.0},
            ]
            return torch.optim.SGD(
                groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay
            )

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            crops = batches["crops"]
            losses = scale_losses(network.all_scales(crops["image"]), crops["label"])
            return dict(zip(names, losses, strict=True))

        yield Phase(
            name="segmentation",
            steps=recipe.steps,
            sources={"crops": Source(Crops(data, recipe), recipe.batch_size)},
            optimizer=optimizer,
            schedule=lambda step: poly_in_steps(
                step, recipe.steps, recipe.power, recipe.rate_every
            ),
            loss=loss,
            accumulate=recipe.accumulate,
        )

    def logits(self, network: DeepLabV2, image: Image) -> Tensor:
        """float32[C + 1, H, W]: the maximum over the scales, at the image's size."""
        pixels = torch.from_numpy(caffe_bgr(image.rgb, MEAN_BGR))[None]
        scores = network(pixels.to(next(network.parameters()).device)).float()
        return resize(scores, image.rgb.shape[:2])[0]
