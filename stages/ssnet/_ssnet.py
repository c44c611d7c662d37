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
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.backbones.dilated import STRIDE, DilatedName, timm_imagenet
from stages.runtime.densecrf import PRESETS, CrfSettings, densecrf
from stages.runtime.images import imagenet_rgb, resize_bicubic, resize_nearest, to_uint8
from stages.runtime.method import Batch, Initial, Phase, Source
from stages.runtime.method import Method as BaseMethod
from stages.ssnet._network import SMALLEST, Output, Softmax, SSNet
from stages.ssnet._samples import ClassImages, SaliencyImages, SsnetData, Views
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError, did_you_mean

__all__ = ["RECIPES", "SETTINGS", "Method", "Recipe", "Setting", "SsnetData"]

Over = Literal["sum", "mean"]
Loss = Literal["class", "saliency", "segmentation"]  # equations 2, 3 and 4


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
        two = "saliency" in setting.losses and len(setting.losses) == 2
        if two and recipe.batch_size % 2:
            raise UsageError(
                f"SSNet-{setting.name} takes half of each batch from the one set and half from "
                f"the other: choose an even --batch-size, not {recipe.batch_size}."
            )
        self._of_each = recipe.batch_size // 2 if two else recipe.batch_size

    def build(self) -> SSNet:
        recipe = self.recipe
        return SSNet(
            self.num_classes,
            recipe.backbone,
            recipe.rates if self.setting.network == 2 else None,
            recipe.size,
            recipe.softmax,
            aggregation="saliency" in self.setting.losses,
            deviation=recipe.aggregation_deviation,
        )

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
            return torch.optim.Adam(groups, betas=recipe.betas)

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

    def probabilities(self, network: SSNet, rgb: np.ndarray) -> Tensor:
        """H of one image uint8[H, W, 3], resized to the network's input: float32[C + 1, S, S]."""
        return self._output(network, self._input(rgb)).probability[0]

    def saliency(
        self, network: SSNet, rgb: np.ndarray, crf: CrfSettings | None = None
    ) -> np.ndarray:
        """The saliency map uint8[H, W] of one image uint8[H, W, 3], refined with a CRF if given.

        Raises UsageError for a setting that is not trained with the saliency loss.
        """
        return self.saliencies(network, rgb, [crf])[0]

    def saliencies(
        self, network: SSNet, rgb: np.ndarray, crfs: Sequence[CrfSettings | None]
    ) -> list[np.ndarray]:
        """``saliency`` for each of several CRFs (None: without), from one pass of the network.

        A CRF works at the network's size, on S and 1 - S.
        """
        small = self._input(rgb)
        found = self._output(network, small).saliency
        if found is None:
            raise UsageError(f"SSNet-{self.setting.name} is trained without saliency.")
        two = torch.stack([1 - found[0], found[0]])
        maps = [found[0] if crf is None else densecrf(two, small, crf)[1] for crf in crfs]
        return [resize_nearest(to_uint8(one), *rgb.shape[:2]) for one in maps]

    def segmentation(self, network: SSNet, rgb: np.ndarray) -> np.ndarray:
        """uint8[H, W] of one image uint8[H, W, 3]: the most probable of all C + 1."""
        return _label(self.probabilities(network, rgb), rgb)

    def pseudo_label(
        self, network: SSNet, rgb: np.ndarray, class_ids: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """uint8[H, W] of one image uint8[H, W, 3]: 0 background, c + 1 for class c, no 255.

        ``class_ids`` are those of the image-level label. Raises UsageError for a class that there
        is not.
        """
        small = self._input(rgb)
        probability = self._output(network, small).probability[0]
        crf = PRESETS[self.recipe.crf]
        return _label(pseudo_scores(probability, small, class_ids, crf), rgb)

    def _input(self, rgb: np.ndarray) -> np.ndarray:
        return resize_bicubic(rgb, self.recipe.size, self.recipe.size)

    def _output(self, network: SSNet, rgb: np.ndarray) -> Output:
        device = next(network.parameters()).device
        return network(torch.from_numpy(imagenet_rgb(rgb))[None].to(device))


def _label(scores: Tensor, rgb: np.ndarray) -> np.ndarray:
    """float[C + 1, S, S] to uint8[H, W]: the arg max, nearest to the image's size."""
    return resize_nearest(scores.argmax(0).cpu().numpy().astype(np.uint8), *rgb.shape[:2])
