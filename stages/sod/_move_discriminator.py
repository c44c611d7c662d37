"""The discriminator of MOVE: a projected GAN's (Sauer et al., NeurIPS 2021, arXiv 2111.01007).

Features of a frozen classifier at four strides are mixed by convolutions that stay as they were
drawn; small networks of convolutions judge each level.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stages.backbones.state import load_strictly
from stages.backbones.untrained import calibrate_batchnorm
from stages.ops.images import MEAN_RGB, STD_RGB
from stages.ops.resizing import resize
from stages.runtime.method import Frozen, HasFrozen

TAPS = (1, 2, 3, 4)  # of timm's features: the last blocks of strides 4, 8, 16 and 32
_UNUSED = ("conv_head.", "bn2.", "classifier.")  # of the classifier, behind the last tap
_NOISE = 0.5  # deviation of an image in [-1, 1], roughly


class Discriminator(HasFrozen):
    """Images float[N, 3, H, W] in [-1, 1] to logits float[N, K]; above 0 for what seems real.

    ``width`` is the channels of the finest level; ``side`` that to which images are resized.
    """

    def __init__(self, features: Frozen[nn.Module], width: int = 64, side: int = 224) -> None:
        super().__init__()
        self.side = side
        self.features = features
        mixed = [width * 2**level for level in range(4)]
        fused = [width, *mixed[:3]]
        channels = self.features.network.feature_info.channels()  # type: ignore[operator, union-attr]
        self.mix = _projections(channels, mixed)
        self.fuse = _projections(mixed, fused)
        self.heads = nn.ModuleList(_head(fused[level], mixed[level:]) for level in range(4))

    def forward(self, image: Tensor) -> Tensor:
        levels = self.projected(resize(image, self.side))
        judged = [head(level).flatten(1) for head, level in zip(self.heads, levels, strict=True)]
        return torch.cat(judged, 1)

    def projected(self, image: Tensor) -> list[Tensor]:
        """The features of the four heads, the finest level first."""
        levels = [mix(x) for mix, x in zip(self.mix, self.features(image), strict=True)]
        found: list[Tensor] = []
        for level, fuse in zip(reversed(levels), reversed(self.fuse), strict=True):
            x = found[0] + level if found else level
            double = [2 * side for side in x.shape[2:]]
            found.insert(0, fuse(resize(x, double, align_corners=True)))
        return found

    def load_classifier(self, state: Mapping[str, Tensor]) -> None:
        """Weights of the whole classifier in timm's names. HubError if they do not fit."""
        kept = {name: value for name, value in state.items() if not name.startswith(_UNUSED)}
        load_strictly(self.features.network, kept, "The classifier for the discriminator")


def classifier_features(name: str) -> nn.Module:
    """timm's classifier without its end, with random weights: float[N, 3, H, W] to four levels."""
    import timm

    network: nn.Module = timm.create_model(name, features_only=True, out_indices=TAPS)
    calibrate_batchnorm(network, _NOISE)
    return network


def augmented(image: Tensor, brightness: float, saturation: float, contrast: float) -> Tensor:
    """The image as the discriminator sees it: in [-1, 1], its colours changed at random.

    Differentiable (Zhao et al., NeurIPS 2020). Drawn on the CPU: every device gets the same.
    """
    mean, deviation = (torch.tensor(c).view(3, 1, 1).to(image) for c in (MEAN_RGB, STD_RGB))
    x = (image * deviation + mean) * 2 - 1

    def drawn(spread: float) -> Tensor:
        return ((torch.rand(len(x), 1, 1, 1) * 2 - 1) * spread).to(image)

    x = x + drawn(brightness)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + drawn(saturation))
    level = x.mean((1, 2, 3), keepdim=True)
    return level + (x - level) * (1 + drawn(contrast))


def _projections(inputs: list[int], outputs: list[int]) -> nn.ModuleList:
    """Convolutions over the channels alone, which nothing trains."""
    made = (nn.Conv2d(n, m, 1) for n, m in zip(inputs, outputs, strict=True))
    return nn.ModuleList(made).requires_grad_(False)


def _head(inputs: int, widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            spectral_norm(nn.Conv2d(inputs, width, 4, 2, 1)),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
        ]
        inputs = width
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(inputs, 1, 4, bias=False)))
