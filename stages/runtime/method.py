"""What every method is to the runtime, whatever it makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from stages.runtime.phases import Phase
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError


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
