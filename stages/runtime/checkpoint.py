"""Files of tensors: checkpoints of a training, and weights, ours and those of other authors."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from stages.backbones.state import load_strictly
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors, write_whole

# Where checkpoints keep their weights; a moving average is what their authors evaluate.
_WRAPPERS = ("state_dict_ema", "state_dict", "model", "network", "params")


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
            raise HubError(
                f"{path} is damaged: {_brief(error)} Begin again with --fresh."
            ) from None


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Named tensors as a safetensors file; equal tensors give equal bytes."""
    # Tensors that share memory are not allowed in the format, so each gets its own.
    return safetensors_bytes({k: v.detach().cpu().clone().contiguous() for k, v in state.items()})


def save_weights(network: nn.Module, path: Path) -> None:
    """The network's parameters and buffers as a safetensors file. HubError if the disk is full."""
    data = weights_bytes(network.state_dict())
    with disk_errors(path.parent, len(data)):
        write_whole(path, data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors or torch file, on the CPU.

    Nothing but tensors and plain containers is ever unpickled. The weights are looked for in the
    entries in which published checkpoints keep them. Raises HubError if the file is not there, is
    damaged, holds other objects, or no tensors.
    """
    if not path.is_file():
        raise HubError(f"{path} is not there. Name a file of weights (.safetensors, .pth, .pt).")
    with open(path, "rb") as file:
        begin = file.read(9)
    try:
        if begin[8:] == b"{" and not begin.startswith(b"PK"):
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it cannot read it says so
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise HubError(
            f"{path} holds more than tensors, and unpickling that could run any program, so it is "
            f"not loaded ({_brief(error)}). Save its state_dict alone, or as safetensors."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise HubError(f"{path} is damaged or no file of weights: {_brief(error)}") from None
    return _named_tensors(found, path)


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


def _named_tensors(found: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    items = found.items() if isinstance(found, Mapping) else ()
    tensors = {name: value for name, value in items if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise HubError(f"{path} holds no named tensors: it is not a checkpoint of a network.")
    return tensors


def _brief(error: BaseException) -> str:
    """The first sentence of what a library says, in one line."""
    text = " ".join(str(error).split()).split(". ")[0][:200].rstrip(".")
    return f"{text}."
