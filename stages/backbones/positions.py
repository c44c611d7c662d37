"""Tables of positions of vision transformers, brought to other sizes as DINO's code does."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.ops.resizing import resize

_NUDGE = 0.1  # cells, added to the size of the grid so that rounding down gives the size


def resized_positions(table: Tensor, height: int, width: int) -> Tensor:
    """float[1, 1 + side * side, C] to float[1, 1 + height * width, C]; the first is the class's.

    Bicubic. The nudged factor also gives the places where the table is read, so that even a table
    of the same size is not what it was.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    cells = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    factors = (height + _NUDGE) / side, (width + _NUDGE) / side
    resized = rows(resize(cells, scale_factor=factors, mode="bicubic"))
    return torch.cat((table[:, :1], resized), 1)


def rows(cells: Tensor) -> Tensor:
    """float[N, C, H, W] to float[N, H * W, C]."""
    return cells.flatten(2).transpose(1, 2)
