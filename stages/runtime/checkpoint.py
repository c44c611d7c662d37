"""Checkpoints of a training, and the weights that come of it or that others published."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from stages.backbones.state import load_strictly
from stages.runtime.weight_files import brief, read_tensors
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors, write_whole


@dataclass
class Checkpoint:
    """Everything that a training needs to go on."""

    phase: int
    """Number of the phase that is to go on or to begin."""
    step: int
    """Steps of it that are done."""
    prepared: bool
    """Whether the phase's ``prepare`` is done."""
    network: dict[str, Tensor]
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    epoch_due: bool = False
    """Whether the last step finished an epoch whose end has still to be dealt with."""
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)
    log_bytes: int = 0
    """Length of the metrics log at this moment."""
    seconds: float = 0.0
    """Time spent in training so far."""

    def save(self, path: Path) -> None:
        """Replace the file at ``path``; until that is done the old one stays.

        Raises HubError if the disk is full.
        """
        buffer = io.BytesIO()  # torch's own writer turns a full disk into a riddle
        torch.save({key: getattr(self, key) for key in self.__dataclass_fields__}, buffer)
        with disk_errors(path.parent, buffer.tell()):
            write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Checkpoint | None:
        """The saved state, on the CPU; None without a file. HubError if damaged."""
        if not path.exists():
            return None
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError, OSError) as error:
            raise HubError(f"{path} is damaged: {brief(error)} Begin again with --fresh.") from None


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Named tensors as a safetensors file; equal tensors give equal bytes."""
    # Tensors that share memory are not allowed in the format, so each gets its own.
    return safetensors_bytes({k: v.detach().cpu().clone().contiguous() for k, v in state.items()})


def save_weights(network: nn.Module, path: Path) -> None:
    """The network's parameters and buffers as a safetensors file. HubError if the disk is full."""
    data = weights_bytes(network.state_dict())
    with disk_errors(path.parent, len(data)):
        write_whole(path, data)


def load_weights(network: nn.Module, path: Path) -> None:
    """Put a checkpoint into ``network``: one of this project's, or the authors' own.

    Raises HubError if it does not fit exactly.
    """
    state = read_tensors(path)
    published = getattr(network, "load_published", None)
    if published is None or state.keys() == network.state_dict().keys():
        load_strictly(network, state, str(path))
    else:
        published(state)
