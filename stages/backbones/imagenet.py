"""ImageNet weights by timm, from the Hub cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.ops.images import STD_RGB
from wsssbed_hub.utils.errors import HubError


def timm_model(name: str) -> Any:
    """timm's pretrained model ``name``. Raises HubError if its weights cannot be had."""
    import timm

    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # the Hub client raises a dozen types for "not there"
        raise HubError(
            f"The ImageNet weights {name} are neither in the Hub cache nor to be had now "
            f"({type(error).__name__}). Connect once to fetch them, or give a file with --init."
        ) from None


def fold_input(state: Mapping[str, Tensor], first: str) -> dict[str, Tensor]:
    """Weights for RGB (value/255 - mean)/deviation, made to take BGR 0..255 minus a mean colour.

    The factor 1/(255 deviation) and the order of the channels go into the convolution ``first``,
    exactly. The mean stays with the caller: Caffe's differs from torchvision's by about one grey
    level.
    """
    scale = 1.0 / (255.0 * torch.tensor(STD_RGB, dtype=torch.float64).view(1, 3, 1, 1))
    weight = state[first]
    return dict(state) | {first: (weight.double() * scale).flip(1).to(weight.dtype)}
