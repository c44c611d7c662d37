"""What the conformance tests share: a case's checkpoint as tensors, and what modules give out.

Every test takes the product's own way: ``Method.build``, ``load_published``, ``Phase.loss``,
``Method.saliency``, ``activations`` or ``logits``. An output of the case that is not compared is
named in the test with its reason (``compared`` refuses names that it does not know).
"""

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


def compared(outputs: Mapping[str, np.ndarray], left_out: Mapping[str, str]) -> list[str]:
    """The names of a case's outputs but those that are left out, each with its reason."""
    unknown = left_out.keys() - outputs.keys()
    assert not unknown, f"no outputs of the case: {unknown}"
    assert all(left_out.values())
    return sorted(outputs.keys() - left_out.keys())


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
