"""Batch norm of a network that starts from nothing."""

from __future__ import annotations

import torch
from torch import nn

from stages.ops.resizing import resize

_GRAINS = (2, 8, 32, 64)  # pixels per side; coarse and fine together look a little like a picture


@torch.no_grad()
def calibrate_batchnorm(network: nn.Module, deviation: float) -> None:
    """Set the running statistics of every batch norm to those of smooth noise.

    ``deviation`` is that of the network's input. Recipes that never update their batch norm rely
    on the statistics of pretrained weights; without those, activations would grow or vanish from
    layer to layer. Weights loaded later bring their own. Draws from torch's generator.
    """
    layers = [resize(torch.randn(8, 3, grain, grain), (64, 64)) for grain in _GRAINS]
    noise = torch.stack(layers).sum(0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    network(noise * (deviation / noise.std()))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train()
