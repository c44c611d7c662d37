"""Swin Transformer as a backbone of dense prediction: four maps of an image of any size.

Liu et al., ICCV 2021, arXiv 2103.14030. Code: microsoft/Swin-Transformer (MIT); the arithmetic here
is that of its form for segmentation, as MMSegmentation (Apache-2.0) has it.

Not timm's: its blocks roll a map before they pad it to whole windows. Here, as in both programs, it
is padded first, so that other pixels share a window wherever a side is no multiple of 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.imagenet import timm_model
from stages.backbones.state import Rules, load_strictly
from stages.backbones.t2t_vit import INIT_STD, draw_linear

PATCH = 4  # pixels a side of a place of the first map; each map after it is half as wide
APART = -100.0  # beside the score of two places that a roll has brought into one window

_BLOCK_NAMES: Rules = (
    (r"\.attn\.(w_msa\.)?", ".attention."),
    (r"\.(ffn\.layers\.0\.0|mlp\.fc1)\.", ".mlp.0."),
    (r"\.(ffn\.layers\.1|mlp\.fc2)\.", ".mlp.2."),
)
PUBLISHED_NAMES: Rules = (
    (r"^(backbone\.)?patch_embed\.projection\.", r"\1embed."),
    (r"^(backbone\.)?patch_embed\.norm\.", r"\1embed_norm."),
    (r"^(backbone\.)?norm([0-3])\.", r"\1norms.\2."),
    *_BLOCK_NAMES,
)
"""MMSegmentation's; as a backbone, or as the ``backbone`` of a network."""
_MICROSOFT_NAMES: Rules = (
    (r"^patch_embed\.proj\.", "embed."),
    (r"^layers\.", "stages."),
    *PUBLISHED_NAMES,
)
_COMPUTED = (".relative_position_index", ".attn_mask")  # entries that follow from the sizes
_CLASSIFIER = ("head.", "norm.")


@dataclass(frozen=True)
class SwinSize:
    """A network of the paper, by what makes its size."""

    width: int
    """Channels of the first map; each map after it has twice as many."""
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    timm: str | None = None
    """timm's name of the weights that the published trainings start from."""


SIZES: Mapping[str, SwinSize] = {
    "swin-t": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), "swin_tiny_patch4_window7_224.ms_in1k"),
    "swin-s": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), "swin_small_patch4_window7_224.ms_in1k"),
    "swin-b": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), "swin_base_patch4_window7_224.ms_in22k"),
    "swin-l": SwinSize(
        192, (2, 2, 18, 2), (6, 12, 24, 48), "swin_large_patch4_window7_224.ms_in22k"
    ),
    "shapes": SwinSize(24, (1, 2, 2, 1), (2, 2, 4, 4)),  # none of the paper's
}


def timm_imagenet(size: SwinSize) -> dict[str, Tensor]:
    """Microsoft's ImageNet weights, by timm from the Hub cache. Raises HubError without them."""
    assert size.timm is not None
    return dict(timm_model(size.timm).state_dict())


class WindowAttention(nn.Module):
    """Attention within windows, each pair of places with a bias that depends on their offset."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        table = torch.zeros((2 * side - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.normal_(table, std=INIT_STD))
        index = relative_position_index(side)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """float[N, windows, T, C]; ``mask`` is float[windows, T, T], added to the scores."""
        qkv = self.qkv(x).unflatten(3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = qkv.unbind()
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        scores = (query * key.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
        if mask is not None:
            scores = scores + mask[:, None]
        found = scores.softmax(-1) @ value
        return self.proj(found.transpose(2, 3).flatten(3))


class Block(nn.Module):
    """Attention in windows, moved by ``shift`` places, then an MLP; each with skip and drop path.

    ``drop`` is the share of samples that go past it in training.
    """

    def __init__(
        self, width: int, heads: int, side: int, shift: int, ratio: int, drop: float
    ) -> None:
        super().__init__()
        self.side, self.shift, self.drop = side, shift, drop
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, side)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """float[N, H, W, C]; ``mask`` is that of ``shift_mask``."""
        x = x + drop_path(self._attend(self.norm1(x), mask), self.drop, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop, self.training)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.side, 0, -height % self.side))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        found = self.attention(windows_of(x, self.side), mask if self.shift else None)
        x = map_of(found, *x.shape[1:3])
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Each two by two places become one, of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float[N, H, W, C] to [N, ceil(H/2), ceil(W/2), 2C]; channel 4c + 2 row + column."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [N, h, row, w, column, C]
        return self.reduction(self.norm(x.permute(0, 1, 3, 5, 2, 4).flatten(3)))


class Stage(nn.Module):
    """Blocks of one resolution, every second one with shifted windows; then the merging, if any."""

    def __init__(
        self, width: int, heads: int, side: int, ratio: int, drops: list[float], merges: bool
    ) -> None:
        super().__init__()
        self.side, self.shift = side, side // 2
        self.blocks = nn.ModuleList(
            Block(width, heads, side, self.shift * (number % 2), ratio, drop)
            for number, drop in enumerate(drops)
        )
        self.downsample = PatchMerging(width) if merges else None

    def forward(self, x: Tensor) -> Tensor:
        """What the blocks make of float[N, H, W, C], before the merging."""
        mask = shift_mask(x.shape[1], x.shape[2], self.side, self.shift, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class Swin(nn.Module):
    """float[N, 3, H, W] (ImageNet's mean and deviation) to four maps, at 1/4 to 1/32 of its size.

    Each is float[N, ``channels[i]``, h, w] after a layer norm of its own; sizes are rounded up.
    ``drop_path`` is that of the last block, and grows linearly from 0; ``deviation`` that of new
    linear layers, 0.02 in the published code for networks much wider than those for ``shapes``.
    """

    def __init__(
        self,
        size: SwinSize,
        drop_path: float = 0.0,
        window: int = 7,
        ratio: int = 4,
        deviation: float = INIT_STD,
    ) -> None:
        super().__init__()
        self.channels = tuple(size.width * 2**level for level in range(4))
        self.embed = nn.Conv2d(3, size.width, PATCH, PATCH)
        self.embed_norm = nn.LayerNorm(size.width)
        count = sum(size.depths)
        drops = iter(drop_path * block / max(1, count - 1) for block in range(count))
        self.stages = nn.ModuleList(
            Stage(width, heads, window, ratio, [next(drops) for _ in range(depth)], level < 3)
            for level, (width, depth, heads) in enumerate(
                zip(self.channels, size.depths, size.heads, strict=True)
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)
        draw_linear(self, deviation)

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % PATCH, 0, -height % PATCH))
        x = self.embed_norm(self.embed(image).permute(0, 2, 3, 1))
        maps = []
        stages: Iterable[Any] = self.stages
        for stage, norm in zip(stages, self.norms, strict=True):
            x = stage(x)
            maps.append(norm(x).permute(0, 3, 1, 2))
            x = x if stage.downsample is None else stage.downsample(x)
        return maps

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """An ImageNet checkpoint of Microsoft, timm or MMSegmentation, without its classifier.

        The norms of the four maps may be missing, and then stay as they are. Raises HubError if
        the rest does not fit exactly.
        """
        bare = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in state.items()}
        bare = without_computed(bare)
        microsoft = any(name.startswith("layers.") for name in bare)
        if microsoft:
            bare = _in_our_order(bare)
        bare = {k: v for k, v in bare.items() if not k.startswith(_CLASSIFIER)}
        kept = {f"norm{k}": v for k, v in self.norms.state_dict().items()}
        rules = _MICROSOFT_NAMES if microsoft else PUBLISHED_NAMES
        load_strictly(self, kept | bare, source, rules)


def without_computed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint without tables of indices and masks, which some have and this code computes."""
    return {k: v for k, v in state.items() if not k.endswith(_COMPUTED)}


def _in_our_order(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Microsoft's or timm's checkpoint, its mergings in MMSegmentation's order and place.

    There the places (0, 0), (1, 0), (0, 1), (1, 1) are blocks of channels; here they are next to
    each other, row by row. timm holds a merging with the stage after it.
    """
    timm = "layers.0.downsample.norm.weight" not in state
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - timm)
            blocks = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
            value = blocks.transpose(-2, -1).flatten(-2)
        found[".".join(parts)] = value
    return found


def relative_position_index(side: int) -> Tensor:
    """int64[T, T], T = side squared: the row of the table of biases for each pair of places."""
    places = torch.arange(side)
    row, column = (grid.flatten() for grid in torch.meshgrid(places, places, indexing="ij"))
    rows, columns = (at[:, None] - at + side - 1 for at in (row, column))
    return rows * (2 * side - 1) + columns


def shift_mask(height: int, width: int, side: int, shift: int, device: torch.device) -> Tensor:
    """float32[windows, T, T]: what is added to scores when a map of this size is padded and rolled.

    Places that came round an edge, and those beside them, are no neighbours.
    """
    regions = []
    for length in (height, width):
        length += -length % side
        at = torch.arange(length, device=device)
        regions.append((at >= length - side).long() + (at >= length - shift).long())
    region = 3 * regions[0][:, None] + regions[1]
    places = windows_of(region[None, :, :, None], side)[0, :, :, 0]
    return APART * (places[:, None] != places[:, :, None]).float()


def windows_of(x: Tensor, side: int) -> Tensor:
    """[N, H, W, C], sides multiples of ``side``, to [N, windows, side * side, C], row by row."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def map_of(windows: Tensor, height: int, width: int) -> Tensor:
    """[N, windows, T, C] to [N, height, width, C]: ``windows_of`` undone."""
    side = round(windows.shape[2] ** 0.5)
    x = windows.unflatten(2, (side, side)).unflatten(1, (height // side, width // side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def drop_path(x: Tensor, share: float, training: bool) -> Tensor:
    """x float[N, ...] without a random ``share`` of its samples, the others made up for it."""
    if not training or share == 0:
        return x
    kept = 1 - share
    drawn = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) < kept
    return x * (drawn / kept).to(x.dtype)
