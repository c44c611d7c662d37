"""What a method says about its training: phases, and where their samples come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

Sample = Mapping[str, "Tensor | np.ndarray | str"]
Batch = dict[str, Any]  # a sample's fields, stacked; text becomes a list


class Samples(Protocol):
    """Something to draw samples from: the same ``index`` and ``rng`` give the same sample."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; all chance (crops, flips) comes from ``rng``."""
        ...


@dataclass(frozen=True)
class Source:
    """A stream of samples.

    ``batch_size`` counts the samples of one optimiser step, over all processes and accumulated
    passes. Every epoch visits every sample once, in a new order if ``shuffle``, else in list order.
    Where the samples of an epoch do not fill its last batch, the batch goes on into the next
    epoch, or is left out with ``drop_last``.
    """

    samples: Samples
    batch_size: int
    shuffle: bool = True
    drop_last: bool = False


Sources = Mapping[str, Source]


@dataclass(frozen=True)
class Phase:
    """One optimisation, as a paper's training section describes it.

    All that training changes lives in the network's ``state_dict`` (buffers included) and in the
    optimisers, so that a checkpoint carries it; after a step it is the same in every process. The
    phases of a method are made one by one: the code between two of them may depend on the recipe,
    not on what was learnt, since a resumed run makes the earlier phases again without training.
    What depends on it belongs into ``prepare`` or ``sources``.
    """

    name: str
    """Distinct among the method's phases."""
    steps: int
    """Optimiser steps."""
    sources: Sources | Callable[[], Sources]
    """By name. Given as a function it is called after ``prepare``. The first counts the epochs."""
    optimizer: Callable[[], Optimizer | Sequence[Optimizer]]
    """Called after ``prepare``. Several take turns, step by step (GANs)."""
    schedule: Callable[[int], float]
    """Factor on each parameter group's initial rate at a step, counted from 0."""
    loss: Callable[[dict[str, Batch], int], dict[str, Tensor]]
    """Batch of each source and step to named terms; their sum is minimised.

    Beside the samples' fields a batch holds ``index`` and ``epoch``, int64[N]. The names are the
    same in every process and pass: a term that does not apply is a zero."""
    accumulate: int = 1
    """Backward passes per optimiser step; each loss is divided by it."""
    clip_norm: float | None = None
    """Largest norm of the gradient; longer ones are scaled down."""
    prepare: Callable[[], None] | None = None
    """Called once before the phase, and again if it was interrupted."""
    epoch_end: Callable[[int], None] | None = None
    """Called with the number (from 0) of the epoch that the last step finished."""


def poly(steps: int, power: float = 0.9) -> Callable[[int], float]:
    """The schedule ``(1 - step / steps) ** power`` of the DeepLab papers."""
    return lambda step: (1 - step / steps) ** power
