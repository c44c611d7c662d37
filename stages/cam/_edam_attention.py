"""The attention of EDAM: what tells the tokens' places, and one transformer block."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6
LONGEST_WAVE = 10_000.0


def position_table(positions: int, channels: int) -> Tensor:
    """float32[1, positions, channels]: sines in the even channels, cosines in the odd ones."""
    waves = LONGEST_WAVE ** -(np.arange(0, channels, 2) / channels)
    angles = np.arange(positions)[:, None] * waves
    table = np.stack((np.sin(angles), np.cos(angles)), 2).reshape(positions, channels)
    return torch.from_numpy(table.astype(np.float32))[None]


class Embedding(nn.Module):
    """Tokens float[N, images, positions, channels] of each image, told where they are: to one
    sequence float[N, images * positions, channels], the first image first."""

    def __init__(self, grid: int, channels: int, images: int, rows: int, dropout: float) -> None:
        super().__init__()
        self.images = images
        self.position: Tensor
        self.register_buffer("position", position_table(grid * grid, channels), persistent=False)
        self.image = nn.Parameter(torch.empty(rows, channels))
        nn.init.xavier_uniform_(self.image)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        told = tokens + self.position[:, None] + self.image[: self.images, None]
        return self.dropout(told).flatten(1, 2)


class Norm(nn.Module):
    """Layer norm by the sample's deviation (over n - 1), to which epsilon is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        deviation = x.std(-1, keepdim=True)
        centred = x - x.mean(-1, keepdim=True)
        return self.gain * centred / (deviation + EPSILON) + self.shift


class Attention(nn.Module):
    """Self-attention of float[N, tokens, channels], its weights dropped out in training."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.ModuleList([nn.Linear(channels, channels) for _ in range(3)])
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in self.linear
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        found = self.dropout(scores.softmax(3)) @ value
        return self.output(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then two layers at each token, each added to what it is given the norm of."""

    def __init__(self, channels: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.attention = Attention(channels, heads, dropout)
        self.norm2 = Norm(channels)
        self.wide = nn.Linear(channels, inner)
        self.narrow = nn.Linear(inner, channels)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        inner = self.dropout(F.gelu(self.wide(self.norm2(x)), approximate="tanh"))
        return self.dropout(x + self.dropout(self.narrow(inner)))
