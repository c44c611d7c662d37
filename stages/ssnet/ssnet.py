"""SSNet: saliency detection and weakly supervised segmentation in one network.

Paper: Zeng, Zhuge, Lu and Zhang, "Joint Learning of Saliency Detection and Weakly Supervised
Semantic Segmentation", ICCV 2019, arXiv 1909.04161. Code: zengxianyu/jsws (no licence). This
follows the paper; the code's second network is the paper's too (``load_published``), its first is
not: stride 16, and logits of three depths.

Where the paper is open, with the field of the recipe that holds the other reading:

- Logits are upsampled and the softmax comes after, as in the code: probabilities through a trained
  deconvolution are none any more. ``softmax="eighth"``: the paper's literal order, with fixed
  bilinear interpolation, which keeps the sum at 1 up to the border.
- Equations 3 and 4 sum over the pixels, 65,536 of them, beside which the image-level labels would
  hardly count: here their mean. ``normalisation="sum"``. Equation 2 is summed over the classes as
  written; ``class_loss="mean"`` as in the code.
- A batch is half from each set, seen in one pass. Adam's betas, the spread of new weights and the
  CRF's settings are the code's; batch norm learns, with the statistics of the batch.
- Only a random crop, as the paper says. ``augmentation="code"`` turns and mirrors as well.
- A saliency mask is cut at mid-grey and takes the nearest pixel (the code takes all that is not
  black after resizing, so that edges grow).

The recipe for ``shapes`` starts from nothing and has 400 steps, and departs in three numbers.
Equations 2 and 3 have an optimum that is wrong way round: the class of the image on its background,
with v near 0, and another class with v near 1 on what is salient. There v takes sides before the
classes are learnt, since its convolution sums thousands of products: it begins flat and learns
slowly, and equation 2, which wants the class everywhere, weighs less.

Where the code departs from the paper and this does not: its image-level labels are read off the
pixel labels of the crop; its saliency loss has no logarithm; its L_c takes the sigmoid of mean
logits; it masks logits, not probabilities, when it makes pseudo labels (``pseudo_label``); its
rates, batch sizes and numbers of steps; it chose its iteration on the test sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.dilated import STRIDE, Dilated, DilatedName, timm_imagenet
from stages.backbones.state import Rules, load_strictly
from stages.ops.densecrf import PRESETS, SSNET, CrfSettings, densecrf
from stages.ops.images import imagenet_rgb, resize_bicubic, resize_nearest, to_uint8
from stages.ops.resizing import bilinear_kernel, resize
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.runtime.method import Method as BaseMethod
from stages.ssnet.samples import ClassImages, SaliencyImages, SsnetData, Views
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean

Softmax = Literal["output", "eighth"]
Over = Literal["sum", "mean"]
Loss = Literal["class", "saliency", "segmentation"]  # equations 2, 3 and 4
SMALLEST = 1e-7  # probabilities are cut here before their logarithm
NEW_DEVIATION = 0.02  # of the weights of new layers, in the published code

SALIENCY_CRF = SSNET
"""Of the saliency maps; it is in neither paper nor code, and has the settings of the pseudo labels.
"""

PUBLISHED_NAMES: Rules = (
    (r"^feature\.", "backbone."),
    (r"^pred_seg\.", "head.branches."),
    (r"^pred_sal\.", "aggregation.conv."),
    (r"^upsample\.", "upsampling."),
)


@dataclass(frozen=True)
class Setting:
    """A row of the paper's tables 5 and 6: what is trained, and on what."""

    name: str
    network: Literal[1, 2]
    """SSNet-1 or SSNet-2."""
    losses: tuple[Loss, ...]
    """All with weight 1."""
    labels_from: str | None = None
    """The setting whose network makes the pseudo labels of the segmentation loss."""

    @property
    def learns_saliency(self) -> bool:
        return "saliency" in self.losses

    @property
    def learns_segmentation(self) -> bool:
        return bool({"class", "segmentation"} & {*self.losses})

    @property
    def base(self) -> Setting | None:
        """The setting of ``labels_from``."""
        return SETTINGS[self.labels_from] if self.labels_from else None

    @property
    def is_base(self) -> bool:
        """Whether other settings are trained on its labels."""
        return any(other.labels_from == self.name for other in SETTINGS.values())

    @property
    def needs_masks(self) -> bool:
        """Whether a SOD dataset takes part in the training, or in that of its labels."""
        return self.learns_saliency or (self.base is not None and self.base.needs_masks)


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("S", 1, ("class",)),
        Setting("M", 1, ("class", "saliency")),
        Setting("SS", 2, ("segmentation",), "S"),
        Setting("MS", 2, ("segmentation",), "M"),
        Setting("MM", 2, ("saliency", "segmentation"), "M"),
        Setting("2S", 2, ("saliency",)),
    )
}


@dataclass(frozen=True)
class Recipe:
    """One training of the paper (sections 4.1 and 4.2); both stages are trained alike.

    Raises UsageError for values that make no training.
    """

    initial: str = "timm"  # ImageNet, for the backbone
    backbone: DilatedName = "densenet169"
    rates: tuple[int, ...] = (6, 12, 18, 24)  # dilations of SSNet-2's convolutions
    size: int = 256  # pixels a side, of every input
    softmax: Softmax = "output"  # after the upsampling, or before it
    normalisation: Over = "mean"  # over the pixels, in equations 3 and 4
    class_loss: Over = "sum"  # over the classes, in equation 2
    class_weight: float = 1.0  # of equation 2; the others have 1
    steps: int = 10_000
    batch_size: int = 16  # half from each set, if there are two
    accumulate: int = 1
    rate: float = 1e-4
    aggregation_deviation: float = 0.02  # of the weights of the saliency aggregation, at first
    aggregation_factor: float = 1.0  # on the rate of the saliency aggregation
    halve_every: int = 1000  # steps
    betas: tuple[float, float] = (0.95, 0.999)
    augmentation: Literal["paper", "code"] = "paper"
    crop: float = 0.9  # of each side
    crf: str = "ssnet"  # for the pseudo labels

    def __post_init__(self) -> None:
        if self.size < STRIDE or self.size % STRIDE:
            raise UsageError(f"size must be a multiple of {STRIDE}, not {self.size}.")
        if not 0 < self.crop <= 1:
            raise UsageError(f"crop must be more than 0 and at most 1, not {self.crop}.")
        if min(self.halve_every, self.accumulate) < 1:
            raise UsageError("halve_every and accumulate must be 1 or more.")
        if not self.rates or min(self.rates) < 1:
            raise UsageError(f"rates must be dilations of 1 or more, not {self.rates}.")
        if self.crf not in PRESETS:
            raise UsageError(
                f"There are no CRF settings {self.crf!r}, only {', '.join(PRESETS)}."
                f"{did_you_mean(self.crf, PRESETS)}"
            )


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        backbone="densenet-small",
        rates=(1, 2, 3, 4),
        size=96,
        class_weight=0.03,
        steps=400,
        rate=2e-3,
        aggregation_deviation=5e-4,
        aggregation_factor=0.002,
        halve_every=150,
    ),
}


class SSNet1Head(nn.Module):
    """Feature float[N, F, h, w] to logits float[N, C + 1, h, w]: a 1x1 convolution."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = _new(nn.Conv2d(channels, classes + 1, 1))

    def forward(self, feature: Tensor) -> Tensor:
        return self.conv(feature)


class SSNet2Head(nn.Module):
    """The same from dilated 3x3 convolutions beside each other, whose outputs are summed."""

    def __init__(self, channels: int, classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _new(nn.Conv2d(channels, classes + 1, 3, 1, rate, rate)) for rate in rates
        )

    def forward(self, feature: Tensor) -> Tensor:
        return torch.stack([conv(feature) for conv in self.branches]).sum(0)


class SaliencyAggregation(nn.Module):
    """How salient each class is in the image: float[N, F, h, w] to v, float[N, C], 0..1.

    One convolution over ``side`` x ``side`` places; a larger feature has its logits averaged over
    the places where that fits, as in the published code.
    """

    def __init__(
        self, channels: int, classes: int, side: int, deviation: float = NEW_DEVIATION
    ) -> None:
        super().__init__()
        self.conv = _new(nn.Conv2d(channels, classes, side), deviation)

    def forward(self, feature: Tensor) -> Tensor:
        return self.conv(feature).mean((2, 3)).float().sigmoid()


class Upsampling(nn.ConvTranspose2d):
    """Times 8 by a trained deconvolution with bias that begins as bilinear interpolation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 2 * STRIDE, STRIDE, STRIDE // 2)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight.copy_(torch.eye(channels)[..., None, None] * bilinear_kernel(STRIDE))


def _new(conv: nn.Conv2d, deviation: float = NEW_DEVIATION) -> nn.Conv2d:
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=deviation)
    nn.init.zeros_(conv.bias)
    return conv


class Output(NamedTuple):
    """Outputs of SSNet, at the size of its input, in float32."""

    probability: Tensor
    """H, float[N, C + 1, S, S], background first; the sum over the channels is 1."""
    log_probability: Tensor
    """Its logarithm, without the rounding to 0."""
    saliency: Tensor | None
    """S, float[N, S, S], 0..1; None without saliency aggregation."""


class SSNet(nn.Module):
    """Images float[N, 3, S, S] (RGB, ImageNet mean and deviation) to ``Output``.

    SSNet-1 or SSNet-2, as the setting says, for ``classes`` classes without the background. A
    setting without the saliency loss has no saliency aggregation: those weights, 34 million of 48,
    would stay as they were drawn.
    """

    def __init__(self, classes: int, recipe: Recipe, setting: Setting) -> None:
        super().__init__()
        self.backbone = Dilated(recipe.backbone)
        channels = self.backbone.channels
        self.head = (
            SSNet1Head(channels, classes)
            if setting.network == 1
            else SSNet2Head(channels, classes, recipe.rates)
        )
        self.upsampling = Upsampling(classes + 1) if recipe.softmax == "output" else None
        self.aggregation = None
        if setting.learns_saliency:
            side, deviation = recipe.size // STRIDE, recipe.aggregation_deviation
            self.aggregation = SaliencyAggregation(channels, classes, side, deviation)

    def forward(self, image: Tensor) -> Output:
        feature = self.backbone(image)
        logits = self.head(feature)
        if self.upsampling is not None:
            log_probability = self.upsampling(logits).float().log_softmax(1)
            probability = log_probability.exp()
        else:
            probability = interpolated(logits.float().softmax(1))
            log_probability = probability.clamp(min=SMALLEST).log()
        saliency = None
        if self.aggregation is not None:
            saliency = aggregated(self.aggregation(feature), probability)
        return Output(probability, log_probability, saliency)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint of the second network, for settings with SSNet-2 and saliency.

        Left out: the saliency score of the background, which nothing uses, and a classifier that
        the paper does not have. Raises HubError if the rest does not fit exactly.
        """
        names = {key.removeprefix("module."): key for key in state}
        if "upsample.2.weight" in names:
            raise HubError(
                "This is the published network of stage 1, which is not the paper's SSNet-1: its "
                "features have stride 16 and it adds logits of three depths. The published "
                "checkpoint of stage 2 can be loaded (--setting MM)."
            )
        kept = {name: state[key] for name, key in names.items() if not name.startswith("cls_fc.")}
        for name in ("pred_sal.weight", "pred_sal.bias"):
            if name in kept:
                kept[name] = kept[name][1:]
        load_strictly(self, kept, "The SSNet checkpoint", PUBLISHED_NAMES)


def interpolated(probability: Tensor) -> Tensor:
    """float[N, C, h, w] to [N, C, 8 h, 8 w], bilinearly; sums over the channels stay."""
    return resize(probability, scale_factor=STRIDE)


def aggregated(scores: Tensor, probability: Tensor) -> Tensor:
    """Equation 1, S: v, float[N, C], and H, float[N, C + 1, h, w], to float[N, h, w].

    The background has no part in it.
    """
    return (scores[..., None, None] * probability[:, 1:]).sum(1)


def class_loss(probability: Tensor, classes: Tensor, over: Over) -> Tensor:
    """Equation 2, L_c: H, float[N, C + 1, h, w], and the image-level labels, float[N, C], 0 or 1.

    The sum or mean over the classes, the mean over the images.
    """
    mean = probability[:, 1:].mean((2, 3))
    return (_cross_entropy(mean, classes).sum(1) / _divisor(classes.shape[1], over)).mean()


def saliency_loss(saliency: Tensor, mask: Tensor, over: Over) -> Tensor:
    """Equation 3, L_s1: S and the truth (0 or 1), both float[N, h, w].

    The sum or mean over the pixels, the mean over the images.
    """
    total = _cross_entropy(saliency, mask).sum((1, 2))
    return (total / _divisor(mask[0].numel(), over)).mean()


def segmentation_loss(log_probability: Tensor, label: Tensor, over: Over) -> Tensor:
    """Equation 4, L_s2: log H, float[N, C + 1, h, w], and the pseudo labels, int64[N, h, w].

    The sum or mean over the pixels, the mean over the images.
    """
    losses = F.nll_loss(log_probability, label, reduction="none")
    return (losses.sum((1, 2)) / _divisor(label[0].numel(), over)).mean()


def _cross_entropy(p: Tensor, truth: Tensor) -> Tensor:
    yes, no = p.clamp(min=SMALLEST).log(), (1 - p).clamp(min=SMALLEST).log()
    return -(truth * yes + (1 - truth) * no)


def _divisor(count: int, over: Over) -> int:
    return count if over == "mean" else 1


def masked(probability: Tensor, class_ids: Sequence[int] | np.ndarray) -> Tensor:
    """Section 3.4: float[C + 1, h, w] with 0 for all classes but ``class_ids`` and the background.

    Raises UsageError for a class that there is not.
    """
    classes = len(probability) - 1
    kept = torch.zeros(classes + 1, 1, 1, device=probability.device)
    kept[0] = 1
    for class_id in class_ids:
        if not 0 <= class_id < classes:
            raise UsageError(f"There is no class {class_id} among {classes}, counted from 0.")
        kept[int(class_id) + 1] = 1
    return probability * kept


def pseudo_scores(
    probability: Tensor, rgb: np.ndarray, class_ids: Sequence[int] | np.ndarray, crf: CrfSettings
) -> Tensor:
    """Section 3.4: H, float[C + 1, h, w], masked and refined; its arg max is the pseudo label.

    ``rgb`` is uint8[h, w, 3]. Masked once more at the end: where the network is sure of a class
    that the image has not, all others are as improbable as that one for the CRF.
    """
    return masked(densecrf(masked(probability, class_ids), rgb, crf), class_ids)


class Method(BaseMethod):
    """SSNet in one of its settings, for ``num_classes`` classes, background not counted."""

    card = manifest.MethodCitation(
        name="SSNet",
        paper="https://arxiv.org/abs/1909.04161",
        code="https://github.com/zengxianyu/jsws",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial("DenseNet-169 trained on ImageNet", "--init timm takes it from timm")
    }
    recipe: Recipe

    def __init__(self, recipe: Recipe, scratch: Path, num_classes: int, setting: Setting) -> None:
        super().__init__(recipe, scratch)
        self.num_classes = num_classes
        self.setting = setting
        two = setting.learns_saliency and setting.learns_segmentation
        if two and recipe.batch_size % 2:
            raise UsageError(
                f"SSNet-{setting.name} takes half of each batch from the one set and half from "
                f"the other: choose an even --batch-size, not {recipe.batch_size}."
            )
        self._of_each = recipe.batch_size // 2 if two else recipe.batch_size

    def build(self) -> SSNet:
        return SSNet(self.num_classes, self.recipe, self.setting)

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """torchvision's, which the published code starts from too."""
        return timm_imagenet(self.recipe.backbone)

    def load_initial(self, network: SSNet, state: Mapping[str, Tensor], name: str) -> None:
        """The backbone, from an ImageNet classifier in timm's or torchvision's names."""
        network.backbone.load_initial(state, f"The initial {self.recipe.backbone}")

    def phases(self, network: SSNet, data: SsnetData) -> Iterator[Phase]:
        """The one training of the setting. UsageError if ``data`` lacks what it needs."""
        recipe, setting = self.recipe, self.setting
        sources = self._sources(data)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            images = [batch["image"] for batch in batches.values()]
            output = network(torch.cat(images))  # one pass: batch norm sees both sets
            begin, terms = 0, {}
            for name, batch in batches.items():
                part = slice(begin, begin := begin + len(batch["image"]))
                terms[name] = self._loss(name, output, part, batch)
            return terms

        def optimizer() -> torch.optim.Optimizer:
            slow = [] if network.aggregation is None else [*network.aggregation.parameters()]
            rest = [p for n, p in network.named_parameters() if not n.startswith("aggregation.")]
            groups = [
                {"params": rest, "lr": recipe.rate},
                {"params": slow, "lr": recipe.rate * recipe.aggregation_factor},
            ]
            return torch.optim.Adam(groups, betas=recipe.betas, fused=True)

        yield Phase(
            name=f"ssnet-{setting.name}",
            steps=recipe.steps,
            sources=sources,
            optimizer=optimizer,
            schedule=lambda step: 0.5 ** (step // recipe.halve_every),
            loss=loss,
            accumulate=recipe.accumulate,
        )

    def _sources(self, data: SsnetData) -> dict[str, Source]:
        recipe, losses = self.recipe, self.setting.losses
        views = Views(recipe.size, recipe.crop, recipe.augmentation)
        sources = {}
        if "class" in losses:
            sources["class"] = Source(ClassImages(data, views, None), self._of_each)
        if "segmentation" in losses:
            if data.labels is None:
                raise UsageError(f"SSNet-{self.setting.name} is trained on pseudo labels.")
            images = ClassImages(data, views, data.labels)
            sources["segmentation"] = Source(images, self._of_each)
        if "saliency" in losses:
            if data.sod is None:
                raise UsageError(f"SSNet-{self.setting.name} is trained on a SOD dataset too.")
            sources["saliency"] = Source(SaliencyImages(data.sod, views), self._of_each)
        return sources

    def _loss(self, name: str, output: Output, part: slice, batch: Batch) -> Tensor:
        recipe = self.recipe
        if name == "class":
            loss = class_loss(output.probability[part], batch["classes"], recipe.class_loss)
            return recipe.class_weight * loss
        if name == "segmentation":
            log_probability = output.log_probability[part]
            return segmentation_loss(log_probability, batch["label"], recipe.normalisation)
        assert output.saliency is not None
        return saliency_loss(output.saliency[part], batch["mask"], recipe.normalisation)

    def probabilities(self, network: SSNet, image: Image) -> Tensor:
        """H of an image that is resized to the network's input: float32[C + 1, S, S]."""
        return self._output(network, self._input(image.rgb)).probability[0]

    def saliency(self, network: SSNet, image: Image, crf: CrfSettings | None = None) -> np.ndarray:
        """The saliency map uint8[H, W] of an image, refined with a CRF if one is given.

        Raises UsageError for a setting that is not trained with the saliency loss.
        """
        return self.saliencies(network, image, {"": crf})[""]

    def saliencies(
        self, network: SSNet, image: Image, crfs: Mapping[str, CrfSettings | None]
    ) -> dict[str, np.ndarray]:
        """``saliency`` with each of several CRFs (None: without), from one pass of the network.

        A CRF works at the network's size, on S and 1 - S.
        """
        small = self._input(image.rgb)
        found = self._output(network, small).saliency
        if found is None:
            raise UsageError(f"SSNet-{self.setting.name} is trained without saliency.")
        two = torch.stack([1 - found[0], found[0]])
        maps = {}
        for name, crf in crfs.items():
            refined = two if crf is None else densecrf(two, small, crf)
            maps[name] = resize_nearest(to_uint8(refined[1]), *image.rgb.shape[:2])
        return maps

    def segmentation(self, network: SSNet, image: Image) -> np.ndarray:
        """The most probable of all C + 1 at every pixel of an image, uint8[H, W]."""
        return _label(self.probabilities(network, image), image)

    def pseudo_label(self, network: SSNet, image: Image) -> np.ndarray:
        """uint8[H, W] of an image and its classes: 0 background, c + 1 for class c, no 255.

        Raises UsageError for a class that there is not.
        """
        small = self._input(image.rgb)
        probability = self._output(network, small).probability[0]
        crf = PRESETS[self.recipe.crf]
        return _label(pseudo_scores(probability, small, image.class_ids, crf), image)

    def _input(self, rgb: np.ndarray) -> np.ndarray:
        return resize_bicubic(rgb, self.recipe.size, self.recipe.size)

    def _output(self, network: SSNet, rgb: np.ndarray) -> Output:
        device = next(network.parameters()).device
        return network(torch.from_numpy(imagenet_rgb(rgb))[None].to(device))


def _label(scores: Tensor, image: Image) -> np.ndarray:
    """float[C + 1, S, S] to uint8[H, W]: the arg max, nearest to the image's size."""
    label = scores.argmax(0).cpu().numpy().astype(np.uint8)
    return resize_nearest(label, *image.rgb.shape[:2])
