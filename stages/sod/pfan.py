"""PFAN: pyramid feature attention network for saliency detection.

Paper: Zhao and Wu, CVPR 2019, arXiv 1903.00179. The authors' code,
CaitinZhao/cvpr2019_Pyramid-Feature-Attention-Network-for-Saliency-detection (Keras, no licence
found), departs from the paper, and the port that the reference case ran, sairajk/PyTorch-Pyramid-
Feature-Attention-Network-for-Saliency-Detection (GPL-3.0), from the authors' code. The published
recipe is the port's, ``--recipe keras`` the authors'; each difference is a field of its own.

In both programs, and not in the paper:

- Both groups of the spatial attention end in batch norm and ReLU, so its weights are at least 0.5.
- Each low level has its own 3x3 convolution before the two are joined.
- An edge is ReLU(tanh(Laplacian)), the inner side of a border alone; the paper takes the absolute
  value (equation 9). The losses are means over the pixels with the weight 1.12 on salient ones.
- One training with the edge loss from the start instead of two; the mean channel weight is added
  to the loss; brightness and contrast vary, not saturation.

Where this file departs from both programs:

- The last weights are taken, as the authors do; the port keeps those that are best on DUTS-TE,
  which is a test set.
- Maps are made as the authors' demo makes them: the probability in 256 levels, cut off, enlarged
  bilinearly, the padding cut away. The port writes none.
- Turned pictures are rounded to 256 levels before brightness and contrast change.
- What is left of an epoch goes into the next one's first step.
- With the authors' batch norm weights of Keras would have to be given these names; the port's
  checkpoint loads as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.state import Rules, load_strictly
from stages.backbones.vgg import Vgg16, for_caffe_input, timm_imagenet
from stages.ops.augment import trimmed, turned_on_black
from stages.ops.images import MEAN_RGB, STD_RGB
from stages.ops.resizing import adaptive_avg_pool2d, resize
from stages.ops.squares import Resizing, Square, resized_planes
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.sod import SodData, SodMethod
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

TAPS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
DILATIONS = (3, 5, 7)
LONG = 9  # cells of the spatial attention's kernels
SWAPPED_MEANS = (103.939, 116.779, 123.68)  # of B, G and R, which Keras subtracts from R, G and B


@dataclass(frozen=True)
class Recipe:
    """The port's training (train.py, dataloader.py, loss.py); an image counts once per epoch.

    Raises UsageError for values that cannot be.
    """

    initial: str = "vgg16-397923af.pth"  # for the backbone
    width: int = 64  # channels of the backbone's first stage; all others follow
    high_kernel: Literal[1, 3] = 3  # of the convolution after the channel attention; paper: 1
    batch_norm: Literal["running", "batch"] = "running"  # statistics that maps are made with
    norm_epsilon: float = 1e-5
    dropout: float = 0.0  # after four poolings and conv5_3
    init: Literal["torch", "glorot"] = "torch"  # of all but the backbone
    pixels: Literal["imagenet-rgb", "swapped-means"] = "imagenet-rgb"  # the network's colours
    size: int = 256  # pixels a side
    padding: Literal["black", "mean"] = "black"  # to a square, for black one pixel short if odd
    resizing: Literal["area", "bilinear"] = "area"  # bilinear: the mask by nearest pixels
    crop: int = 8  # at most one part in so many of a side is cut off
    flip: float = 0.5
    turn: int = 25  # degrees: -25 to 24
    turned_canvas: Literal["enlarged", "same"] = "enlarged"
    contrast: tuple[float, float] = (0.5, 1.5)  # factor
    brightness: tuple[int, int] = (-20, 19)  # added after that
    alpha: float = 0.7  # share of the saliency loss
    positive_weight: float = 1.12  # of salient pixels (paper: 0.528 and 0.472)
    log_epsilon: float = 1e-15  # of the saliency loss; 0: computed from logits
    edge_clip: float = 0.0  # probabilities of edges at least this from 0 and 1; 0: logs from -100
    channel_regulariser: float = 1.0  # times the mean channel weight, added to the loss
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 4e-4
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    halvings: int = 0  # the rate halves after each epoch that passes such a part of the training
    epochs: int = 391  # of the program's default
    steps: int = 0  # instead of epochs, if not 0
    batch_size: int = 6

    def __post_init__(self) -> None:
        if self.size < 32:
            raise UsageError(f"size={self.size}: the deepest level is a 16th of it; 32 is least.")
        if self.width < 4 or self.width % 2:
            raise UsageError(f"width={self.width}: attention halves it; an even number from 4 on.")
        if self.crop < 2 or not 0 <= self.turn <= 180:
            raise UsageError(
                f"crop={self.crop}, turn={self.turn}: less than one part in crop, 2 or more, is "
                "cut off, and a picture turns by 0 to 180 degrees."
            )
        if not (0 < self.contrast[0] <= self.contrast[1]) or (
            self.brightness[0] > self.brightness[1]
        ):
            raise UsageError(
                f"contrast={self.contrast}, brightness={self.brightness}: least, then most."
            )


RECIPES = {
    "published": Recipe(),
    "keras": Recipe(  # the authors' (train.py, data.py, model.py, edge_hold_loss.py)
        initial="vgg16-00b39a1b.pth",
        high_kernel=1,
        batch_norm="batch",
        norm_epsilon=1e-3,
        dropout=0.3,
        init="glorot",
        pixels="swapped-means",
        padding="mean",
        resizing="bilinear",
        turned_canvas="same",
        log_epsilon=0.0,
        edge_clip=1e-7,
        optimizer="sgd",
        learning_rate=1e-2,
        halvings=8,
        epochs=50,
        batch_size=15,
    ),
    "shapes": Recipe(
        initial="none",
        width=8,
        size=128,
        turn=0,
        learning_rate=2e-3,
        halvings=3,
        steps=300,
        batch_size=8,
    ),
}

_PART = {"conv": "conv", "bn": "norm"}
PUBLISHED_NAMES: Rules = (
    (r"^vgg16\.", "backbone.features."),
    (r"^cpfe_conv(\d)_3\.", lambda at: f"pyramids.{int(at[1]) - 3}."),
    (r"\.conv_1_1\.", ".convs.0."),
    (r"\.conv_dil_(\d)\.", lambda at: f".convs.{DILATIONS.index(int(at[1])) + 1}."),
    (r"^(pyramids\.\d)\.bn\.", r"\1.norm."),
    (r"^cha_att\.linear_1\.", "channel_attention.squeeze."),
    (r"^cha_att\.linear_2\.", "channel_attention.excite."),
    (r"^hl_conv1\.", "high.conv."),
    (r"^hl_bn1\.", "high.norm."),
    (r"^ll_(conv|bn)_(\d)\.", lambda at: f"low.{int(at[2]) - 1}.{_PART[at[1]]}."),
    (r"^spa_att\.grp1_conv1k\.", "spatial_attention.rows.0.conv."),
    (r"^spa_att\.grp1_convk1\.", "spatial_attention.rows.1.conv."),
    (r"^spa_att\.grp2_convk1\.", "spatial_attention.columns.0.conv."),
    (r"^spa_att\.grp2_conv1k\.", "spatial_attention.columns.1.conv."),
    (r"^spa_att\.grp1_bn(\d)\.", lambda at: f"spatial_attention.rows.{int(at[1]) - 1}.norm."),
    (r"^spa_att\.grp2_bn(\d)\.", lambda at: f"spatial_attention.columns.{int(at[1]) - 1}.norm."),
    (r"^ff_conv_1\.", "score."),
)


class Predicted(NamedTuple):
    logits: Tensor
    """float[N, 1, H, W]."""
    channel_weights: Tensor
    """float[N, 6 width], in 0..1."""


class NormRelu(nn.Module):
    """Batch norm, then ReLU; with ``always`` by the batch's own statistics in eval mode too."""

    def __init__(self, channels: int, epsilon: float, always: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, epsilon)
        self.always = always

    def normalised(self, x: Tensor) -> Tensor:
        norm = self.norm
        if self.always and not self.training:
            x = F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        else:
            x = norm(x)
        return F.relu(x)


class Norms(NamedTuple):
    """Settings that all batch norms of a network share."""

    epsilon: float
    always: bool


class ConvNormRelu(NormRelu):
    """A convolution that keeps the size, with a bias, then batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], norms: Norms) -> None:
        super().__init__(outputs, *norms)
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(self.conv(x))


class Pyramid(NormRelu):
    """Context-aware pyramid feature extraction: one level seen with four dilations."""

    def __init__(self, inputs: int, each: int, norms: Norms) -> None:
        super().__init__(4 * each, *norms)
        self.convs = nn.ModuleList([nn.Conv2d(inputs, each, 1, bias=False)])
        for rate in DILATIONS:
            self.convs.append(nn.Conv2d(inputs, each, 3, padding=rate, dilation=rate, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.normalised(torch.cat([conv(x) for conv in self.convs], 1))


class ChannelAttention(nn.Module):
    """A weight for every channel (equation 1): float[N, C, H, W] to float[N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 4)
        self.excite = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        means = adaptive_avg_pool2d(x, 1).flatten(1)
        return self.excite(F.relu(self.squeeze(means))).sigmoid()


class SpatialAttention(nn.Module):
    """A weight for every place (equations 3 to 5): float[N, C, H, W] to float[N, 1, H, W]."""

    def __init__(self, channels: int, norms: Norms) -> None:
        super().__init__()

        def group(first: tuple[int, int], second: tuple[int, int]) -> nn.Sequential:
            return nn.Sequential(
                ConvNormRelu(channels, channels // 2, first, norms),
                ConvNormRelu(channels // 2, 1, second, norms),
            )

        self.rows = group((1, LONG), (LONG, 1))
        self.columns = group((LONG, 1), (1, LONG))

    def forward(self, x: Tensor) -> Tensor:
        return (self.rows(x) + self.columns(x)).sigmoid()


class Pfan(nn.Module):
    """float[N, 3, H, W] to logits of the same size; in the port 16 must divide both sides."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        w = recipe.width
        norms = Norms(recipe.norm_epsilon, recipe.batch_norm == "batch")
        self.dropout = recipe.dropout
        self.backbone = Vgg16(TAPS, width=w, dropout=recipe.dropout)
        self.pyramids = nn.ModuleList(
            Pyramid(self.backbone.channels[tap], w // 2, norms) for tap in TAPS[2:]
        )
        self.channel_attention = ChannelAttention(6 * w)
        self.high = ConvNormRelu(6 * w, w, (recipe.high_kernel,) * 2, norms)
        self.low = nn.ModuleList(
            ConvNormRelu(inputs, w, (3, 3), norms) for inputs in (w, 2 * w, 2 * w)
        )
        self.spatial_attention = SpatialAttention(w, norms)
        self.score = nn.Conv2d(2 * w, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Predicted:
        features = self.backbone(image)
        first, second, *deeper = (features[tap] for tap in TAPS)
        if self.dropout:
            deeper[-1] = F.dropout(deeper[-1], self.dropout, self.training)
        levels = [pyramid(x) for pyramid, x in zip(self.pyramids, deeper, strict=True)]
        high = torch.cat([_enlarged(x, levels[0]) for x in levels], 1)
        weights = self.channel_attention(high)
        high = _enlarged(self.high(high * weights[..., None, None]), image)
        low = [self.low[0](first), _enlarged(self.low[1](second), image)]
        joined = self.low[2](torch.cat(low, 1)) * self.spatial_attention(high)
        return Predicted(self.score(torch.cat([joined, high], 1)), weights)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The port's checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The PFAN checkpoint", PUBLISHED_NAMES)


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return resize(x, like.shape[2:], align_corners=True)


def saliency_loss(logits: Tensor, label: Tensor, positive_weight: float, epsilon: float) -> Tensor:
    """Cross entropy with a weight on salient pixels (equation 7), mean over all pixels.

    ``epsilon`` is added inside the logarithms of probabilities; 0 computes it from the logits.
    """
    if not epsilon:
        weight = torch.full((1,), positive_weight, dtype=logits.dtype, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, label, pos_weight=weight)
    p = logits.sigmoid()
    salient = positive_weight * label * (p + epsilon).log()
    return -(salient + (1 - label) * (1 - p + epsilon).log()).mean()


def edges(maps: Tensor) -> Tensor:
    """ReLU(tanh(Laplacian)) of float[N, 1, H, W]; beyond the border all is 0."""
    kernel = torch.full((1, 1, 3, 3), -1.0, dtype=maps.dtype, device=maps.device)
    kernel[0, 0, 1, 1] = 8.0
    return F.conv2d(maps, kernel, padding=1).tanh().relu()


def edge_loss(logits: Tensor, label: Tensor, clip: float) -> Tensor:
    """Cross entropy of the edges of both (equation 10), mean over all pixels.

    ``clip`` keeps the probabilities of edges from 0 and 1; with 0 logarithms end at -100.
    """
    found, wanted = edges(logits.sigmoid()), edges(label)
    if clip:
        found = found.clamp(clip, 1 - clip)
    return -(wanted * _bounded_log(found) + (1 - wanted) * _bounded_log(1 - found)).mean()


def _bounded_log(p: Tensor) -> Tensor:
    """At least -100; without a gradient, instead of none that is finite, at 0."""
    positive = p > 0
    return torch.where(positive, torch.where(positive, p, 1.0).log(), -100.0).clamp(min=-100.0)


def to_input(rgb: np.ndarray, recipe: Recipe) -> np.ndarray:
    """float32[3, size, size] as the network takes it, from [H, W, 3] in 0..255."""
    square = Square.around(rgb, recipe.padding == "black")
    imagenet = recipe.pixels == "imagenet-rgb"
    colour = [255 * value for value in MEAN_RGB] if imagenet else SWAPPED_MEANS
    padded = square.put(rgb, (0.0, 0.0, 0.0) if recipe.padding == "black" else colour)
    pixels = resized_planes(padded, recipe.size, recipe.resizing)
    pixels -= np.array(colour, np.float32)[:, None, None]
    if imagenet:
        pixels /= 255 * np.array(STD_RGB, np.float32)[:, None, None]
    return pixels


def to_label(mask: np.ndarray, recipe: Recipe) -> np.ndarray:
    """float32[1, size, size] in 0..1: the mask over its maximum, padded with 0."""
    square = Square.around(mask, recipe.padding == "black")
    label = mask[..., None].astype(np.float32) / max(1, mask.max())
    how: Resizing = "area" if recipe.resizing == "area" else "nearest"
    return resized_planes(square.put(label, (0.0,)), recipe.size, how)


class Pairs:
    """Images with their masks, changed at random: cut, mirrored, turned, lit."""

    def __init__(self, data: SodData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, S, S] as the network takes it, ``label`` float32[1, S, S] in 0..1.

        Raises HubError if image or mask cannot be read, or if they differ in size.
        """
        recipe = self.recipe
        image_id = self.data.image_ids[index]
        planes = [self.data.read_image(image_id), self.data.read_mask(image_id)]
        planes = trimmed(planes, recipe.crop, rng)
        if rng.random() < recipe.flip:
            planes = [plane[:, ::-1] for plane in planes]
        if recipe.turn:
            degrees = int(rng.integers(-recipe.turn, recipe.turn))
            enlarged = recipe.turned_canvas == "enlarged"
            planes = [turned_on_black(plane, degrees, enlarged) for plane in planes]
        rgb = planes[0] * np.float32(rng.uniform(*recipe.contrast))
        least, most = recipe.brightness
        rgb = np.clip(rgb + np.float32(rng.integers(least, most + 1)), 0, 255)
        return {"image": to_input(rgb, recipe), "label": to_label(planes[1], recipe)}


def _draw_glorot(network: Pfan) -> None:
    backbone = set(network.backbone.modules())
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in backbone:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Method(SodMethod):
    card = manifest.MethodCitation(
        name="PFAN",
        paper="https://arxiv.org/abs/1903.00179",
        code="https://github.com/CaitinZhao/"
        "cvpr2019_Pyramid-Feature-Attention-Network-for-Saliency-detection",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "vgg16-397923af.pth (recipe keras: vgg16-00b39a1b.pth)",
            "https://download.pytorch.org/models/vgg16-397923af.pth, torchvision's; those that "
            "Caffe trained, as Keras has them, from https://github.com/jcjohnson/pytorch-vgg",
        )
    }
    recipe: Recipe

    def build(self) -> Pfan:
        network = Pfan(self.recipe)
        if self.recipe.init == "glorot":
            _draw_glorot(network)
        return network

    def load_initial(self, network: Pfan, state: Mapping[str, Tensor], name: str) -> None:
        """The backbone. With ``swapped-means`` it was trained for BGR and sees RGB, as there."""
        network.backbone.load_initial(state, "The initial VGG-16")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """torchvision's; with ``swapped-means`` made for BGR, which they will not get, as there."""
        state = timm_imagenet()
        return state if self.recipe.pixels == "imagenet-rgb" else for_caffe_input(state)

    def _optimizer(self, network: Pfan) -> torch.optim.Optimizer:
        recipe, parameters = self.recipe, network.parameters()
        rate, decay = recipe.learning_rate, recipe.weight_decay
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=decay)
        return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)

    def phases(self, network: Pfan, data: SodData) -> Iterator[Phase]:
        recipe = self.recipe
        pairs = Pairs(data, recipe)
        steps = recipe.steps or max(1, recipe.epochs * len(pairs) // recipe.batch_size)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            logits, weights = network(batches["pairs"]["image"])
            logits, label = logits.float(), batches["pairs"]["label"]
            saliency = saliency_loss(logits, label, recipe.positive_weight, recipe.log_epsilon)
            edge = edge_loss(logits, label, recipe.edge_clip)
            return {
                "saliency": recipe.alpha * saliency,
                "edge": (1 - recipe.alpha) * edge,
                "channels": recipe.channel_regulariser * weights.mean(),
            }

        def schedule(step: int) -> float:
            epoch = step * recipe.epochs // steps
            return 0.5 ** ((1 + epoch) * recipe.halvings // recipe.epochs)

        yield Phase(
            name="train",
            steps=steps,
            sources={"pairs": Source(pairs, recipe.batch_size)},
            optimizer=lambda: self._optimizer(network),
            schedule=schedule,
            loss=loss,
        )

    def saliency(self, network: Pfan, image: Image) -> np.ndarray:
        """uint8[H, W]: the sigmoid times 255, cut off, enlarged bilinearly to the padded image."""
        recipe = self.recipe
        pixels = torch.from_numpy(to_input(image.rgb, recipe))[None]
        logits = network(pixels.to(network.score.weight.device)).logits
        levels = (logits.float().sigmoid() * 255).floor()
        square = Square.around(image.rgb, recipe.padding == "black")
        padded = resize(levels, square.padded)[0, 0].cpu().numpy()
        return np.rint(square.cut(padded)).astype(np.uint8)
