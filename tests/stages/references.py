"""What the conformance tests share: a case's checkpoint as tensors, and what modules give out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from conformance import conformance
from torch import Tensor, nn


def checkpoint(case: str) -> dict[str, Tensor]:
    """The checkpoint that the reference ran with, under the authors' names."""
    return {key: torch.from_numpy(array) for key, array in tensors(case)}


def tensors(case: str) -> Iterator[tuple[str, object]]:
    for key, array in conformance.checkpoint(case).items():
        yield key, array.reshape(array.shape) if array.shape else array[()].reshape(())


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects what each of the named modules gives out, the last time it is called."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: found.__setitem__(name, output)
        )
        for name, module in modules.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
