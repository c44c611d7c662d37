"""Several processes that train one network, started by ``torchrun``; with one, all of it is free.

Gradients are averaged over the processes, so a loss that is the mean over the samples of a process
gives the gradient of the mean over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from wsssbed_hub.utils.errors import HubError, UsageError

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)  # one process may write labels or a checkpoint while others wait
_BUCKET = 1 << 24  # numbers that are sent at a time


class SaidElsewhere(SystemExit):
    """The first process has said what went wrong; this one ends with the same exit code."""


def start(device: torch.device) -> None:
    """Join the processes that torchrun started, if there is more than one.

    Raises UsageError if torchrun's environment is incomplete.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is set but not {', '.join(missing)}. Start several processes with "
            "`torchrun --nproc-per-node N -m stages …`."
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)


def stop() -> None:
    """Leave the group of processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, without gradient; the tensor must be on the run's device."""
    total = tensor.detach().clone()
    if size() > 1:
        distributed.all_reduce(total)
    return total


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return differentiable_sum(gradients[0])  # itself, so that it can be differentiated again


def differentiable_sum(tensor: Tensor) -> Tensor:
    """Sum over the processes, with gradients of every order (of the sum of all losses)."""
    return _AllSum.apply(tensor) if size() > 1 else tensor


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """The mean over all processes of something of which every process has another number.

    ``total`` is this process's sum, ``count`` the number of its summands. The result is scaled so
    that averaging gradients, as the trainer does, gives exactly the gradient of
    ``sum of totals / sum of counts``; its average over the processes is that mean. Zero if the
    count is zero everywhere.
    """
    number = all_sum(torch.as_tensor(count, dtype=torch.float32, device=total.device))
    return total * size() / number.clamp(min=1)


def barrier() -> None:
    """Wait for the other processes."""
    if size() > 1:
        distributed.barrier()


def on_main(work: Callable[[], T]) -> T:
    """Runs ``work`` in the first process, and returns its result in every process.

    A HubError is raised there, and ends the others with its exit code.
    """
    if size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    failed: HubError | None = None
    if is_main():
        try:
            outcome = [work(), None]
        except HubError as error:
            failed = error
            outcome = [None, error.exit_code]
    distributed.broadcast_object_list(outcome, src=0)
    if failed is not None:
        raise failed
    if outcome[1] is not None:
        raise SaidElsewhere(outcome[1])
    return outcome[0]


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of their numbers. It is sent pickled."""
    values: list[Any] = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def share_state(network: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if size() > 1:
        for tensor in network.state_dict().values():
            distributed.broadcast(tensor, src=0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its average over the processes.

    A parameter that only some processes have a gradient of counts as zero in the others.
    """
    if size() == 1 or not parameters:
        return
    device = parameters[0].device
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    used = [p for p, any_has in zip(parameters, all_sum(has).tolist(), strict=True) if any_has]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in used if p.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= size()
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one dtype, ``_BUCKET`` numbers or so together."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if room < gradient.numel() or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            room = max(_BUCKET, gradient.numel())
        buckets[-1].append(gradient)
        room -= gradient.numel()
    return buckets
