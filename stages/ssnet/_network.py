"""SSNet's networks: a dilated backbone, one of two heads, and the saliency aggregation module.

Section 3 of the paper; ``stages/ssnet/_ssnet.py`` says what the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from stages.backbones.dilated import STRIDE, Dilated, DilatedName
from stages.backbones.state import Rules, load_strictly
from stages.runtime.ops import resize
from wsssbed_hub.utils.errors import HubError

SMALLEST = 1e-7  # probabilities are cut here before their logarithm
NEW_DEVIATION = 0.02  # of the weights of new layers, in the published code

Softmax = Literal["output", "eighth"]

PUBLISHED_NAMES: Rules = (
    (r"^feature\.", "backbone."),
    (r"^pred_seg\.", "head.branches."),
    (r"^pred_sal\.", "aggregation.conv."),
    (r"^upsample\.", "upsampling."),
)


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


def bilinear_kernel(factor: int) -> Tensor:
    """float32[2 factor, 2 factor], for an even factor: 1 - |k - centre| / factor, in both axes."""
    profile = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    return profile[:, None] * profile


def _new(conv: nn.Conv2d, deviation: float = NEW_DEVIATION) -> nn.Conv2d:
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=deviation)
    nn.init.zeros_(conv.bias)
    return conv


class Output(NamedTuple):
    """What SSNet gives, at the size of its input, in float32."""

    probability: Tensor
    """H, float[N, C + 1, S, S], background first; the sum over the channels is 1."""
    log_probability: Tensor
    """Its logarithm, without the rounding to 0."""
    saliency: Tensor | None
    """S, float[N, S, S], 0..1; None without saliency aggregation."""


class SSNet(nn.Module):
    """Images float[N, 3, S, S] (RGB, ImageNet mean and deviation) to ``Output``.

    With ``rates`` it is SSNet-2, without SSNet-1; ``size`` is S, a multiple of 8. Without
    ``aggregation`` it has no saliency: a setting that has no saliency loss would leave those
    weights, 34 million of 48, as they were drawn.
    """

    def __init__(
        self,
        classes: int,
        backbone: DilatedName = "densenet169",
        rates: Sequence[int] | None = None,
        size: int = 256,
        softmax: Softmax = "output",
        aggregation: bool = True,
        deviation: float = NEW_DEVIATION,
    ) -> None:
        super().__init__()
        self.backbone = Dilated(backbone)
        channels = self.backbone.channels
        self.head = (
            SSNet1Head(channels, classes) if rates is None else SSNet2Head(channels, classes, rates)
        )
        self.upsampling = Upsampling(classes + 1) if softmax == "output" else None
        self.aggregation = (
            SaliencyAggregation(channels, classes, size // STRIDE, deviation)
            if aggregation
            else None
        )

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
