"""What torch raises when a machine is too small, said so that a person knows what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wsssbed_hub.utils.errors import HubError

_SIGNS = (
    ("can't allocate memory", "memory"),
    ("out of memory", "memory"),
    ("deterministic implementation", "deterministic"),
    ("DataLoader worker", "worker"),
    ("onnection closed by", "process"),
    ("onnection reset by", "process"),
    ("NCCL", "process"),
)
_ADVICE = {
    "memory": (
        "The memory is exhausted. On a larger machine the same command goes on from the last "
        "checkpoint. A smaller --batch-size or --amp bf16 needs less; either is another training, "
        "which starts with --fresh."
    ),
    "deterministic": (
        "An operation of this network has no deterministic implementation on this device. Leave "
        "--deterministic out, or use --device cpu."
    ),
    "worker": (
        "A process that loads images died. In a container that is often its small shared memory: "
        "start it with --shm-size 8g, or use fewer --workers (0 works everywhere)."
    ),
    "process": "The connection to another of the processes is lost. If it ended, it says why.",
}


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Raises expected trouble of the machine as a HubError that says ``where`` it happened."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = _kind(error)
        if kind is None:
            raise
        said = " ".join(str(error).split())[:300]
        raise HubError(f"{where}: {_ADVICE[kind]}" + (f" ({said})" if said else "")) from None


def _kind(error: BaseException) -> str | None:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "memory"
    return next((kind for sign, kind in _SIGNS if sign in str(error)), None)
