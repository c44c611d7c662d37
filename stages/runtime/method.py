"""The contract of a method: its network, its training, and where its samples come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.runtime.memory import Memory
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

Network = TypeVar("Network", bound=nn.Module, covariant=True)
Sample = Mapping[str, "Tensor | np.ndarray | str"]
Batch = dict[str, Any]  # a sample's fields, stacked; text becomes a list


@dataclass(frozen=True)
class Image:
    """An image that maps are made of."""

    id: str
    rgb: np.ndarray
    """uint8[H, W, 3]."""
    class_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64[K], the classes of the image-level label, from 0; empty where maps are made without."""


class Samples(Protocol):
    """Something to draw samples from: the same ``index`` and ``rng`` give the same sample."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; all random numbers (crops, flips) come from ``rng``."""
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
    together: int = 1
    """So many neighbours come into one pass of one process: 2 for pairs, ``batch_size`` for a loss
    that looks at the whole batch. A batch that cannot be shared so is a UsageError."""


Sources = Mapping[str, Source]


@dataclass(frozen=True)
class Phase:
    """One optimisation, as a paper's training section describes it.

    All that training changes lives in the network's ``state_dict`` (buffers included), in the
    optimisers and in the memories, so that a checkpoint carries it; after a step it is the same in
    every process. All phases of a method are made before the first one begins, when the network
    has its initial weights: what depends on what was learnt belongs into ``prepare`` or
    ``sources``.
    """

    name: str
    """Distinct among the method's phases; people see it: ``round 2 of 3``."""
    steps: int
    """Optimiser steps."""
    sources: Sources | Callable[[], Sources]
    """By name. Given as a function it is called after ``prepare``. The first counts the epochs."""
    optimizer: Callable[[], Optimizer | Sequence[Optimizer]]
    """Called after ``prepare``. Several take turns, one a step (GANs)."""
    schedule: Callable[[int], float]
    """Factor on each parameter group's initial rate at a step, counted from 0."""
    loss: Callable[[dict[str, Batch], int], dict[str, Tensor]]
    """Batch of each source and step to named terms; their sum is minimised.

    Beside the samples' fields a batch holds ``index`` and ``epoch``, int64[N]. The names are the
    same in every process and pass of a step: a term that does not apply is a zero. With several
    optimisers ``turn(step)`` says whose step it is."""
    accumulate: int = 1
    """Backward passes per optimiser step; each loss is divided by it."""
    clip_norm: float | None = None
    """Largest norm of the gradient; longer ones are scaled down."""
    turns: Sequence[int] = ()
    """The optimiser of each step of a round, by number: ``(0, 0, 1)`` for two steps of the first,
    then one of the second. By default each has one, in order."""
    one_batch: bool = False
    """Whether all turns of a round see the same batch; else each step has its own."""
    memories: Mapping[str, Memory] = field(default_factory=dict)
    """What is remembered of each image, by name. A later phase that names a memory too goes on
    with what is in it."""
    prepare: Callable[[], None] | None = None
    """Called once before the phase, and again if it was interrupted."""
    epoch_end: Callable[[int], None] | None = None
    """Called with the number (from 0) of the epoch that the last step finished, when the memories
    have taken what the epoch put. What it changes, the samples of the next step see. A signal
    stops it anywhere; it is then called again, with the network as it was."""

    def __post_init__(self) -> None:
        if self.one_batch and not self.turns:
            raise ValueError(f"{self.name}: one batch for a round of no turns")

    @property
    def steps_of_a_batch(self) -> int:
        """Steps in a row that see the same batch."""
        return len(self.turns) if self.one_batch else 1

    def turn(self, step: int) -> int:
        """The number of the optimiser whose step it is. For a phase that has ``turns``."""
        return self.turns[step % len(self.turns)]


def poly(steps: int, power: float = 0.9) -> Callable[[int], float]:
    """The schedule ``(1 - step / steps) ** power`` of the DeepLab papers."""
    return lambda step: (1 - step / steps) ** power


class Frozen(Generic[Network]):
    """A helper network that is used and never trained: features of DINO, an inpainting MAE.

    As an attribute of a ``HasFrozen`` it moves to its device, but is none of its submodules: it is
    always in eval mode, without gradients of its own (they pass through it to its input), and
    neither in checkpoints and weights nor among the trained parameters. Several modules may share
    one, which is then in memory once. Its weights come from an ``Initial`` that is ``frozen``.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.network(*arguments, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen[Network]:
        return self  # copies of a network share its helper


class HasFrozen(nn.Module):
    """A module with ``Frozen`` attributes: they go where it goes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HasFrozen:
        for value in vars(self).values():
            if isinstance(value, Frozen):
                value.network._apply(fn)
        super()._apply(fn, recurse)
        return self


@dataclass(frozen=True)
class Initial:
    """Pretrained weights that a method starts from, for ``--init FILE`` or ``--init NAME=FILE``."""

    file: str
    """What its authors call the file."""
    where: str
    """Where to get it: an address, or a sentence."""
    frozen: bool = False
    """Whether they are a helper's that maps are made with, and that is not in the trained weights:
    ``--weights`` needs them beside these. A helper of the training alone is none of those."""


class Method(ABC):
    """A published method: how its network is made and trained.

    A family's base class adds how an image becomes a map. Methods hold no state of the training.
    """

    card: ClassVar[manifest.MethodCitation]
    """Paper, code and licence, for the manifests."""
    recipes: ClassVar[Mapping[str, Any]]
    """By the name that ``--recipe`` takes; frozen dataclasses of one class.

    ``published`` and ``shapes``. Where the authors published one for VOC and one for COCO these
    are ``published-voc`` and ``published-coco``, and ``--recipe published`` follows the target.
    A field ``initial`` of ``"none"`` says that the recipe starts from random weights, ``"timm"``
    from those of ``timm_weights``; with any other value the person names them with ``--init``.
    With several in ``initial`` the fields are ``initial_<name>``.
    ``--steps``, ``--epochs`` and ``--batch-size`` set the fields ``steps``, ``epochs`` and
    ``batch_size``; in a recipe that has both, steps other than 0 count. A recipe some of whose
    fields count beside certain others alone has a method ``unread``, that yields the names of
    those that do not, and why: ``--set`` of them is refused."""
    initial: ClassVar[Mapping[str, Initial]] = {}
    """Which weights the published training starts from, by the name in ``--init NAME=FILE``; with
    one alone ``--init FILE`` will do."""

    def __init__(self, recipe: Any, scratch: Path) -> None:
        self.recipe = recipe
        self.scratch = scratch
        """Folder for files that ``Phase.prepare`` makes; it lives as long as the training."""

    @property
    def kept(self) -> Path:
        """Folder for files that maps are made of, beside the weights. It stays when the training is
        finished; with ``--weights`` there is none."""
        return self.scratch.with_name("kept")

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights, on the CPU.

        If it has a method ``load_published(state)`` that maps the authors' names to its own
        and raises HubError for what does not fit, ``--weights`` takes the authors' checkpoint."""

    def load_initial(self, network: Any, state: Mapping[str, Tensor], name: str) -> None:
        """Put the pretrained weights ``name`` into ``network``. HubError if they misfit."""
        raise UsageError(f"{self.card.name} starts from random weights; leave --init out.")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """The weights of ``--init timm``, for ``load_initial``: from the Hub cache."""
        raise UsageError(
            f"timm has no initial weights for {self.card.name}. Name a file with --init FILE."
        )

    @abstractmethod
    def phases(self, network: Any, data: Any) -> Iterator[Phase]:
        """The training, in order. ``network`` is on its device; ``data`` is the family's."""
