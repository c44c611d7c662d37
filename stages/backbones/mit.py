"""Mix Transformer (MiT), the hierarchical encoder of SegFormer: four maps of an image of any size.

Xie et al., NeurIPS 2021, arXiv 2105.15203. Code: NVlabs/SegFormer (its own licence, for research);
the arithmetic is also that of MMSegmentation (Apache-2.0), whose names the parameters have.

Not transformers': its attention is torch's fused one, whose gradients differ from run to run on a
GPU, its layer norms have another epsilon than the published ones, and it would be one more large
dependency for what is written here.

Input: float[N, 3, H, W], RGB, ImageNet mean and deviation, both sides at least 29 pixels: the first
stage attends to cells of 8 by 8 places, each of 4 by 4 pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.backbones.positions import rows
from stages.backbones.state import Rules, load_strictly, without_classifier
from stages.backbones.swin import drop_path
from stages.backbones.t2t_vit import attend, draw_linear

EPSILON = 1e-6  # of every layer norm
WINDOWS = ((7, 4), (3, 2), (3, 2), (3, 2))  # side and stride of the patches, stage by stage
RATIO = 4  # inner width of a feed-forward network over its outer width


@dataclass(frozen=True)
class MiTSize:
    """A network of the paper's table 6, by what makes its size."""

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    """Places a side of the cells that become one key and one value."""


_WIDE = (64, 128, 320, 512)
SIZES: Mapping[str, MiTSize] = {
    "mit-b0": MiTSize((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit-b1": MiTSize(_WIDE, (2, 2, 2, 2)),
    "mit-b2": MiTSize(_WIDE, (3, 4, 6, 3)),
    "mit-b3": MiTSize(_WIDE, (3, 4, 18, 3)),
    "mit-b4": MiTSize(_WIDE, (3, 8, 27, 3)),
    "mit-b5": MiTSize(_WIDE, (3, 6, 40, 3)),
    "shapes": MiTSize((24, 32, 48, 64), (1, 1, 1, 1), (1, 2, 3, 4)),  # none of the paper's
}

# NVIDIA's names, those of the authors' repository first, then those of transformers' files.
_NVIDIA_NAMES: Rules = (
    (r"^segformer\.encoder\.", "backbone."),
    (r"\bpatch_embed(\d)\.proj\.", lambda at: f"layers.{int(at[1]) - 1}.0.projection."),
    (r"\bpatch_embed(\d)\.", lambda at: f"layers.{int(at[1]) - 1}.0."),
    (r"\bblock(\d)\.", lambda at: f"layers.{int(at[1]) - 1}.1."),
    (r"^(backbone\.)?norm(\d)\.", lambda at: f"{at[1] or ''}layers.{int(at[2]) - 1}.2."),
    (r"\battn\.(q|kv)\.", r"attn.attn.\1_proj_"),
    (r"\battn\.proj\.", "attn.attn.out_proj."),
    (r"\bpatch_embeddings\.(\d)\.proj\.", r"layers.\1.0.projection."),
    (r"\bpatch_embeddings\.(\d)\.layer_norm\.", r"layers.\1.0.norm."),
    (r"\bblock\.(\d)\.", r"layers.\1.1."),
    (r"^(backbone\.)?layer_norm\.(\d)\.", r"\1layers.\2.2."),
    (r"\blayer_norm_([12])\.", r"norm\1."),
    (r"\battention\.self\.(query|key|value)\.", lambda at: f"attn.attn.{at[1][0]}_proj_"),
    (r"\battention\.self\.sr\.", "attn.sr."),
    (r"\battention\.self\.layer_norm\.", "attn.norm."),
    (r"\battention\.output\.dense\.", "attn.attn.out_proj."),
    (r"\bmlp\.(fc|dense)1\.", "ffn.layers.0."),
    (r"\bmlp\.dwconv\.dwconv\.", "ffn.layers.1."),
    (r"\bmlp\.(fc|dense)2\.", "ffn.layers.4."),
)
_PARTS = ("q", "k", "v"), ("q", "kv")  # of the packed projection, as files have them
_CLASSIFIERS = ("head.", "classifier.")


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint in MMSegmentation's names, from those or from either of NVIDIA's.

    Projections to queries, keys and values become one, and the linear layers of the feed-forward
    networks 1x1 convolutions. What is not known keeps its name.
    """
    found = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        for pattern, replacement in _NVIDIA_NAMES:
            name = re.sub(pattern, replacement, name)
        if re.search(r"\bffn\.layers\.[04]\.weight$", name) and value.dim() == 2:
            value = value[:, :, None, None]
        found[name] = value
    for name in [name for name in found if ".attn.q_proj_" in name]:
        before, after = name.split("q_proj_")
        for parts in _PARTS:
            members = [f"{before}{part}_proj_{after}" for part in parts]
            if all(member in found for member in members):
                joined = torch.cat([found.pop(member) for member in members])
                found[f"{before}in_proj_{after}"] = joined
                break
    return found


class PatchEmbedding(nn.Module):
    """Overlapping patches, each a place of the map, then a layer norm."""

    def __init__(self, inputs: int, width: int, side: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, width, side, stride, side // 2)
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """float[N, C, H, W] to float[N, h w, width], and (h, w)."""
        x = self.projection(x)
        return self.norm(rows(x)), (x.shape[2], x.shape[3])


class _Projections(nn.Module):
    """Attention of several heads with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cells: Tensor) -> Tensor:
        """Queries of float[N, T, C], keys and values of float[N, S, C], to float[N, T, C]."""
        width = x.shape[2]
        weights, biases = self.in_proj_weight.split(width), self.in_proj_bias.split(width)
        sources = (x, cells, cells)
        query, key, value = (
            nn.functional.linear(*given).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for given in zip(sources, weights, biases, strict=True)
        )
        found = attend(query, key, value, key.shape[-1] ** -0.5)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class Attention(nn.Module):
    """Every place attends to cells of ``reduction`` by ``reduction`` places (section 3.1).

    What is left over at the right and at the bottom of a map is in no cell.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.attn = _Projections(width, heads)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        cells = x
        if self.reduction > 1:
            cells = self.norm(rows(self.sr(_plane(x, size))))
        return self.attn(x, cells)


class MixFFN(nn.Module):
    """A feed-forward network with a 3x3 convolution of each channel inside, which tells places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = RATIO * width
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
            nn.GELU(),
            nn.Identity(),  # dropout in MMSegmentation, with a probability of 0 in every recipe
            nn.Conv2d(inner, width, 1),
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return rows(self.layers(_plane(x, size)))


class Block(nn.Module):
    """Attention and Mix-FFN, each after a layer norm, around a skip and with drop path."""

    def __init__(self, width: int, heads: int, reduction: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.ffn = MixFFN(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + drop_path(self.attn(self.norm1(x), size), self.drop, self.training)
        return x + drop_path(self.ffn(self.norm2(x), size), self.drop, self.training)


class MiT(nn.Module):
    """float[N, 3, H, W] to four maps with strides of 4, 8, 16 and 32 pixels, ``channels`` wide.

    ``drop`` is the share of samples that go past the last block in training, growing linearly from
    0 at the first.
    """

    def __init__(self, size: MiTSize, drop: float = 0.0) -> None:
        super().__init__()
        self.channels = size.widths
        total = sum(size.depths)
        drops = iter([drop * n / max(1, total - 1) for n in range(total)])
        stages: list[nn.ModuleList] = []
        for n, width in enumerate(size.widths):
            blocks = [
                Block(width, size.heads[n], size.reductions[n], next(drops))
                for _ in range(size.depths[n])
            ]
            embedding = PatchEmbedding(size.widths[n - 1] if n else 3, width, *WINDOWS[n])
            norm = nn.LayerNorm(width, EPSILON)
            stages.append(nn.ModuleList([embedding, nn.ModuleList(blocks), norm]))
        self.layers = nn.ModuleList(stages)
        self._draw()

    def forward(self, image: Tensor) -> list[Tensor]:
        x, maps = image, []
        for stage in self.layers:
            parts: Any = stage
            embedding, blocks, norm = parts
            tokens, size = embedding(x)
            for block in blocks:
                tokens = block(tokens, size)
            x = _plane(norm(tokens), size)
            maps.append(x)
        return maps

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """An ImageNet classifier in MMSegmentation's or NVIDIA's names, without its last layer.

        Raises HubError if the rest does not fit exactly.
        """
        theirs = published_names(without_classifier(state, _CLASSIFIERS))
        load_strictly(self, theirs, source, ((r"^backbone\.", ""),))

    def _draw(self) -> None:
        """New layers as the published code draws them."""
        draw_linear(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                outputs = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / outputs))
                assert module.bias is not None
                nn.init.zeros_(module.bias)


def _plane(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """float[N, H W, C] to float[N, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))
