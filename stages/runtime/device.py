"""Where to compute, and how exactly."""

from __future__ import annotations

import os

import torch

from wsssbed_hub.utils.errors import UsageError


def choose_device(name: str) -> tuple[torch.device, str]:
    """The device that ``--device`` names, and what it is in words.

    ``auto`` takes the first GPU, else the CPU. Of several processes each takes the GPU that
    torchrun gave it. Raises UsageError for a device that is not there: nothing falls back.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return device, f"the CPU, {torch.get_num_threads()} threads"
    if device.type == "mps":
        if several or not torch.backends.mps.is_available():
            raise UsageError("--device mps: torch sees no such device here, or several processes.")
        return device, "the GPU of this Mac"
    if device.type != "cuda":
        raise UsageError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps.")
    return _gpu(device, several, local)


def _gpu(device: torch.device, several: bool, local: int) -> tuple[torch.device, str]:
    number = torch.cuda.device_count()
    if number == 0:
        raise UsageError(
            f"--device {device}: torch sees no GPU. In a container, start it with --gpus all; to "
            "compute on the CPU say --device cpu."
        )
    if several and device.index is not None:
        raise UsageError(f"--device {device}: several processes share the GPUs; say --device cuda.")
    index = local if device.index is None else device.index
    if index >= number:
        raise UsageError(f"GPU {index} was asked for, and there are {number} (from 0).")
    torch.cuda.set_device(index)
    return torch.device("cuda", index), torch.cuda.get_device_name(index)


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UsageError if the device cannot compute in that ``--precision``."""
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "tf32" and not ampere:
        raise UsageError(
            "--precision tf32: NVIDIA's GPUs have it, from compute capability 8.0 (Ampere) on, and "
            "this is none. Say --precision float32."
        )
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(
            "--precision bf16: this GPU has no bfloat16. Say --precision fp16 or float32."
        )
