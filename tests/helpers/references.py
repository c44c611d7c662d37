"""What the conformance tests share: a case's checkpoint as tensors, and what modules give out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import conformance
import numpy as np
import torch
from torch import Tensor, nn


def checkpoint(case: str) -> dict[str, Tensor]:
    """The checkpoint that the reference ran with, under the authors' names."""
    state = conformance.checkpoint(case)
    return {key: torch.from_numpy(np.asarray(array)) for key, array in state.items()}


def error(actual: Tensor, expected: np.ndarray) -> float:
    """Relative error; infinite for another shape."""
    return conformance.compare(actual.detach().numpy(), expected)


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects what each of the named modules gives out, the last time it is called."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output

        hooks.append(modules[name].register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name in modules:
        keep(name)
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()
