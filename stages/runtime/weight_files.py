"""Named tensors from files: ours, and checkpoints as other programs write them.

A file of torch.save is a pickle, and unpickling runs whatever it says. Here nothing of it is ever
run: torch's own reader takes plain tensors and containers alone, and where a checkpoint holds more
(the configuration, the log and the optimiser that MMSegmentation and others save beside the
weights), every class and function that it names is replaced by one that does nothing.
"""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.runtime.file_kinds import AGAIN, is_safetensors, require_weights
from wsssbed_hub.utils.errors import HubError

# Where checkpoints keep their weights, the first that is there; a moving average is what their
# authors evaluate. (MMEngine's is in ``state_dict``, and the last step's in ``ema_state_dict``.)
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "params",
    "weights",
)
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_AVERAGE = "ema_"  # of MMCV: a second copy of each parameter, beside the first
_DAMAGE = (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors or torch file, on the CPU.

    The weights are looked for in the entries in which published checkpoints keep them; a wrapper's
    ``module.`` before all names is taken off, and MMCV's second copy ``ema_…`` left out (its
    checkpoints hold the moving average in the first). Raises HubError that says what the file is
    if it is none of these, is damaged, holds no tensors, or names programs to run.
    """
    require_weights(path)
    with open(path, "rb") as file:
        head = file.read(9)
    try:
        found = load_file(path) if is_safetensors(head) else _load(path)
    except pickle.UnpicklingError as error:
        raise HubError(f"{path} is damaged: {brief(error)} {AGAIN}") from None
    except _HostileError as error:
        raise HubError(
            f"{path} holds more than tensors: it names {error}, and unpickling that could run any "
            "program, so it is not loaded. Do not trust it; save its state_dict alone, or as "
            "safetensors."
        ) from None
    except _DAMAGE as error:
        raise HubError(f"{path} is damaged or no file of weights: {brief(error)} {AGAIN}") from None
    return _without_copies(_without_prefix(_named_tensors(found, path)))


def brief(error: BaseException) -> str:
    """The first sentence of what a library says, in one line."""
    text = " ".join(str(error).split()).split(". ")[0][:200].rstrip(".")
    return f"{text or type(error).__name__}."


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it cannot read it says so
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_INERT)
    if isinstance(found, Inert):
        raise HubError(
            f"{path} is a whole pickled object, not its tensors. Load it with the program that "
            "wrote it and save the network's state_dict()."
        )
    return found


class _HostileError(Exception):
    """A pickle names a program."""


class Inert:
    """Stands for what is no tensor: takes whatever a pickle does with it, and does nothing."""

    dump_patches = False  # torch asks networks for it

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def ignore(self, *arguments: Any, **named: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = update = ignore

    def __call__(self, *arguments: Any, **named: Any) -> Inert:
        return self


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


# All that a pickle gets besides plain containers and numbers. Hooks are left out.
_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}
# Modules that no checkpoint has a reason to name, and all builtins but these.
_PROGRAMS = {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "importlib", "runpy"}
_PLAIN = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int"}
_PLAIN |= {"list", "object", "range", "set", "slice", "str", "tuple", "type"}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        builtin = module in ("builtins", "__builtin__") and name not in _PLAIN
        if builtin or module.partition(".")[0] in _PROGRAMS:
            raise _HostileError(f"{module[:80]}.{name[:80]}")
        return Inert


def _inert_load(file: Any, **options: Any) -> Any:
    return _InertUnpickler(file, **options).load()


# In the place of the module ``pickle``: nothing that it loads is called.
_INERT = SimpleNamespace(__name__="inert", Unpickler=_InertUnpickler, load=_inert_load)


def _named_tensors(found: Any, path: Path) -> dict[str, Tensor]:
    inside = found
    while isinstance(inside, Mapping):
        entry = next((w for w in WRAPPERS if isinstance(inside.get(w), Mapping)), None)
        if entry is None:
            break
        inside = inside[entry]
    items = inside.items() if isinstance(inside, Mapping) else ()
    tensors = {name: value.detach() for name, value in items if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        entries = f" It has the entries {_few(inside)}." if isinstance(inside, Mapping) else ""
        raise HubError(
            f"{path} holds no named tensors: it is not a checkpoint of a network.{entries}"
        )
    return tensors


def _few(entries: Mapping[Any, Any]) -> str:
    names = [repr(name)[:60] for name in entries]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefix({k.removeprefix(prefix): v for k, v in state.items()})
    return state


def _without_copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    copies = {_AVERAGE + name.replace(".", "_") for name in state}
    return {name: value for name, value in state.items() if name not in copies}
