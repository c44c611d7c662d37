"""T2T-ViT_t: a vision transformer whose first tokens come of overlapping windows; its performer.

Paper: Yuan et al., Tokens-to-Token ViT, ICCV 2021, arXiv 2101.11986; the form with transformers in
the tokens-to-token part. Its other form has performers there, which VST takes for its decoder.
Code: yitu-opensource/T2T-ViT (Clear BSD). timm has no such network.

What its code does and the paper does not tell: attention in the tokens-to-token part is scaled by
the width of its *input*, not of its heads, and its skip connection carries the values, as the input
is wider than the output.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.state import Rules, load_strictly

WINDOWS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # side, stride and padding, level by level
STRIDE = 16  # pixels from one of the last tokens to the next
INIT_STD = 0.02  # of new linear layers
EPSILON = 1e-8  # beside the normaliser of a performer

BLOCK_NAMES: Rules = (
    (r"\bnorm1\.", "norm."),
    (r"\battn\.(qkv|proj)\.", r"\1."),
    (r"\bnorm2\.", "mlp.0."),
    (r"\bmlp\.fc1\.", "mlp.1."),
    (r"\bmlp\.fc2\.", "mlp.3."),
)
PUBLISHED_NAMES: Rules = (
    (r"\bcls_token$", "class_token"),
    (r"\bpos_embed$", "positions"),
    (r"\btokens_to_token\.attention([12])\.", lambda at: f"transformers.{int(at[1]) - 1}."),
    (r"\btokens_to_token\.project\.", "project."),
    *BLOCK_NAMES,
)


def normed_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Layer norm, then two linear layers with a GELU between them."""
    return nn.Sequential(
        nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs)
    )


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Softmax attention: float[..., T, D], float[..., S, D], float[..., S, E] to [..., T, E].

    Not torch's fused one, whose gradients differ from run to run on a GPU.
    """
    return ((query * scale) @ key.transpose(-2, -1)).softmax(-1) @ value


class Block(nn.Module):
    """A block of ViT: attention, then an MLP, each after a layer norm and around a skip."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.mlp = normed_mlp(width, ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        found = attend(query, key, value, key.shape[-1] ** -0.5)
        x = x + self.proj(found.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class TokenTransformer(nn.Module):
    """Tokens of a window's width to narrower ones: one head, skip connection of the values."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.scale = inputs**-0.5
        self.norm = nn.LayerNorm(inputs)
        self.qkv = nn.Linear(inputs, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.mlp = normed_mlp(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        x = value + self.proj(attend(query, key, value, self.scale))
        return x + self.mlp(x)


class Performer(nn.Module):
    """A transformer block whose attention is linear in the number of tokens (arXiv 2009.14794)."""

    directions: Tensor

    def __init__(self, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.kqv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = normed_mlp(width, width, width)
        self.dropout = nn.Dropout(dropout)
        orthogonal = nn.init.orthogonal_(torch.empty(features, width, dtype=torch.float64))
        self.register_buffer("directions", (orthogonal * features**0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        kqv = self.kqv(self.norm(x)).to(self.directions)
        with torch.autocast(x.device.type, enabled=False):  # the exponentials overflow in float16
            key, query, value = kqv.chunk(3, -1)
            key, query = self._features(key), self._features(query)
            total = query @ key.sum(1).unsqueeze(2)
            found = query @ (key.transpose(1, 2) @ value) / (total + EPSILON)
        x = x + self.dropout(self.proj(found))
        return x + self.dropout(self.mlp(x))

    def _features(self, x: Tensor) -> Tensor:
        """Positive ones, whose products are on average the exponential of ``x``'s products."""
        half_square = x.square().sum(-1, keepdim=True) / 2
        return (x @ self.directions.T - half_square).exp() * len(self.directions) ** -0.5


class T2TViT(nn.Module):
    """float[N, 3, S, S] to tokens at 1/16, 1/8 and 1/4 of its size, for one size S.

    They are float[N, (S/16)^2, ``width``] (after the last norm, without the class token) and
    float[N, (S/8)^2 or (S/4)^2, ``token_width``] (of the tokens-to-token part), row by row. S is a
    multiple of 16. The head of the classifier, which gives nothing to them, is left out.
    """

    positions: Tensor

    def __init__(
        self,
        size: int = 224,
        width: int = 384,
        depth: int = 14,
        heads: int = 6,
        ratio: int = 3,
        token_width: int = 64,
    ) -> None:
        super().__init__()
        inputs = [
            channels * side**2
            for channels, (side, _, _) in zip((3, token_width, token_width), WINDOWS, strict=True)
        ]
        self.size = size
        self.transformers = nn.ModuleList(TokenTransformer(n, token_width) for n in inputs[:2])
        self.project = nn.Linear(inputs[2], width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * INIT_STD)
        self.register_buffer("positions", sinusoids(1 + (size // STRIDE) ** 2, width)[None])
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        draw_linear(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        finest = self.transformers[0](self._windows(image, 0))
        finer = self.transformers[1](self._windows(self._plane(finest, 4), 1))
        x = self.project(self._windows(self._plane(finer, 8), 2))
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1:], finer, finest

    def _windows(self, plane: Tensor, level: int) -> Tensor:
        side, stride, padding = WINDOWS[level]
        return F.unfold(plane, side, stride=stride, padding=padding).transpose(1, 2)

    def _plane(self, tokens: Tensor, stride: int) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, (self.size // stride, self.size // stride))

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """An ImageNet checkpoint of the authors, its position table too, without its head.

        Raises HubError if it does not fit exactly.
        """
        load_strictly(self, without_head(state), source, PUBLISHED_NAMES)


def without_head(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """A checkpoint without the classifier, whose names begin with ``prefix`` and ``head.``."""
    head = f"{prefix}head."
    return {k: v for k, v in state.items() if not k.removeprefix("module.").startswith(head)}


def draw_linear(network: nn.Module, deviation: float = INIT_STD) -> None:
    """New linear layers: normal weights of this ``deviation``, no bias.

    The published code cuts the normal distribution at 100 deviations, that is nowhere.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def sinusoids(positions: int, width: int) -> Tensor:
    """float32[positions, width]: sines in even and cosines in odd channels (base 10,000)."""
    channels = np.arange(width)
    angles = np.arange(positions)[:, None] / 10000.0 ** (2 * (channels // 2) / width)
    table = np.where(channels % 2 == 0, np.sin(angles), np.cos(angles))
    return torch.from_numpy(table.astype(np.float32))
