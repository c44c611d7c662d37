"""Shared memory: how a process that loads images hands them over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from wsssbed_hub.utils.errors import HubError


def share(batches: Mapping[str, Mapping[str, Any]]) -> None:
    """Move the tensors to shared memory, if this is a process that loads images.

    Queues do that unasked, but in a thread of their own: where the shared memory is full, the
    process that waits for the batch would never hear of it. Raises HubError if it is.
    """
    if get_worker_info() is None:
        return
    tensors = [x for batch in batches.values() for x in batch.values() if isinstance(x, Tensor)]
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        size = sum(tensor.nbytes for tensor in tensors)
        raise HubError(
            f"The shared memory (/dev/shm) is too small: a batch of {size / 1e6:.1f} MB does not "
            "fit beside those that wait. In a container, start it with --shm-size 8g, or use fewer "
            "--workers (0 needs none)."
        ) from None
