"""Batch norm: kept frozen, or with statistics over all processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.runtime import distributed
from wsssbed_hub.utils.errors import HubError

# Changing the class of a module keeps the module itself, its parameters and its place: whoever
# holds a reference to it (an optimiser, a method) still holds the right thing.


class _Frozen:
    """Mixed into a batch norm that keeps its running statistics."""

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


def freeze_batchnorm(module: nn.Module, affine: bool = True) -> None:
    """Keep every batch norm in ``module`` in eval mode, whatever ``train()`` says.

    With ``affine`` scale and shift are frozen too. For a network that is trained with the
    statistics of its initial weights, as most of the published recipes are.
    """
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            if not isinstance(norm, _Frozen):
                norm.__class__ = _frozen(type(norm))  # type: ignore[arg-type]  # modules do hash
            norm.train(False)
            if affine:
                norm.requires_grad_(False)


@cache
def _frozen(kind: type) -> type:
    return type(f"Frozen{kind.__name__}", (_Frozen, kind), {})


class _Synchronised:
    """Mixed into a plain batch norm: in training its statistics are those of all processes."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)  # type: ignore[misc]
        # Sums over a batch overflow in half precision.
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
        local = values.new_tensor(x.numel() // x.shape[1])
        count = distributed.all_sum(local)
        mean = distributed.differentiable_sum(values.sum(axes)) / count
        centred = values - mean.view(shape)
        # In two passes: the mean of squares minus the square of the mean loses digits.
        variance = distributed.differentiable_sum(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        result = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(x.dtype)

    @torch.no_grad()
    def _remember(self: Any, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None:
            return
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


def synchronise_batchnorm(module: nn.Module) -> None:
    """Give every batch norm of ``module`` that trains the statistics of all processes.

    torch's own does this on GPUs only. Frozen ones stay as they are. Raises HubError for a batch
    norm of a foreign class, whose forward pass is not known. Nothing happens with one process.
    """
    if distributed.size() == 1:
        return
    for name, norm in module.named_modules():
        if not isinstance(norm, _BatchNorm) or isinstance(norm, _Frozen | _Synchronised):
            continue
        if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise HubError(
                f"{name} is a {type(norm).__name__}, which cannot be synchronised over several "
                "processes. Train with one."
            )
        norm.__class__ = _synchronised(type(norm))  # type: ignore[arg-type]


@cache
def _synchronised(kind: type) -> type:
    return type(f"Synchronised{kind.__name__}", (_Synchronised, kind), {})
