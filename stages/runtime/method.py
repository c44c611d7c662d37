"""What a method says of itself: its network, its training, and where its samples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

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


@dataclass(frozen=True)
class Initial:
    """The pretrained weights that the published training starts from, for ``--init FILE``."""

    file: str
    """What its authors call the file."""
    where: str
    """Where to get it: an address, or a sentence."""


class Method(ABC):
    """A published method: how its network is made and trained.

    A family's base class adds how an image becomes a map. Methods hold no state of the training.
    """

    card: ClassVar[manifest.Method]
    """Paper, code and licence, for the manifests."""
    recipes: ClassVar[Mapping[str, Any]]
    """By the name that ``--recipe`` takes; frozen dataclasses of one class.

    A field ``initial`` of ``"none"`` says that the recipe starts from random weights, ``"timm"``
    from those of ``timm_weights``; with any other value the person names them with ``--init``.
    ``--steps``, ``--epochs`` and ``--batch-size`` set the fields ``steps``, ``epochs`` and
    ``batch_size``; in a recipe that has both, steps other than 0 count."""
    initial: ClassVar[Initial | None] = None
    """Which weights the published training starts from, if any."""

    def __init__(self, recipe: Any, scratch: Path) -> None:
        self.recipe = recipe
        self.scratch = scratch
        """Folder for files that ``Phase.prepare`` makes; it lives as long as the run."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights, on the CPU.

        If it has a method ``load_published(state)`` that maps the authors' names to its own
        and raises HubError for what does not fit, ``--weights`` takes the authors' checkpoint."""

    def load_initial(self, network: Any, state: Mapping[str, Tensor]) -> None:
        """Put the pretrained weights of ``--init`` into ``network``. HubError if they misfit."""
        raise UsageError(f"{self.card.name} starts from random weights; leave --init out.")

    def timm_weights(self) -> Mapping[str, Tensor]:
        """What ``--init timm`` hands to ``load_initial``: weights from the Hub cache."""
        raise UsageError(
            f"timm has no initial weights for {self.card.name}. Name a file with --init FILE."
        )

    @abstractmethod
    def phases(self, network: Any, data: Any) -> Iterator[Phase]:
        """The training, in order. ``network`` is on its device; ``data`` is the family's."""
