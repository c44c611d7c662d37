"""A plugin for pytest: checkpoints of other authors are loaded wrongly, by a tenth of one tensor.

Tests of reference cases that pass with it compare nothing that comes of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stages.backbones import state

_load = state.load_strictly


def _wrong(network: nn.Module, *arguments: Any, **options: Any) -> None:
    _load(network, *arguments, **options)
    with torch.no_grad():
        first = next(p for p in network.parameters() if p.dim() > 1)
        first.mul_(1.1)


state.load_strictly = _wrong
