"""The same numbers every time: seeds of all random numbers, and exact arithmetic.

Random numbers depend on what they are for, and on nothing else: every use names itself (the run's
seed, the phase, the step or the place in the stream), so numbers do not depend on how many were
drawn before, on workers, or on where a run was resumed.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _entropy(parts: tuple[int | str, ...]) -> int:
    """128 bits; distinct for distinct ``parts``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "little")


def generator(*parts: int | str) -> np.random.Generator:
    """numpy's generator for the use that ``parts`` name."""
    return np.random.Generator(np.random.PCG64(_entropy(parts)))


def reseed(*parts: int | str) -> None:
    """Set torch's generators (all devices), and Python's and numpy's global ones."""
    entropy = _entropy(parts)
    torch.manual_seed(entropy % 2**63)
    random.seed(entropy)
    np.random.seed(entropy % 2**32)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 on a GPU round their factors to TF32's 10 bits, for a while."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def compute_exactly(strict: bool) -> None:
    """The same numbers every time on one machine, and float32 where float32 is asked for.

    On the CPU the order of sums also depends on the number of threads (``OMP_NUM_THREADS``).

    TF32 is off, and cuDNN does not choose algorithms by their speed of the moment, which would not
    be the same ones every time. Where an operation has only an implementation that is not
    deterministic, ``strict`` makes it an error; else it is used.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # Else every new tensor is first filled with NaN, a write of its own.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # The fused attentions have a deterministic gradient, but torch takes it only when strict.
    torch.backends.cuda.enable_flash_sdp(strict)
    torch.backends.cuda.enable_mem_efficient_sdp(strict)


def avoid_cache_sized_sums(network: nn.Module) -> None:
    """Let the convolutions with a padding above 3, dilated ones mostly, bypass oneDNN.

    Its own code for AVX2 takes no wider padding; it hands these to a matrix product whose sums are
    cut into blocks by the size of the processor's cache. torch's own way costs about the same.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and max(map(int, layer.padding)) > 3:
            layer._conv_forward = partial(_convolve_by_products, layer)  # type: ignore[method-assign]


def _convolve_by_products(
    layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """What ``layer`` computes, in float32 under autocast too. No switch of torch's is touched:
    those are the same for all threads."""
    parts = (
        x.to(weight.dtype).chunk(layer.groups, 1),
        weight.chunk(layer.groups),
        [None] * layer.groups if bias is None else bias.chunk(layer.groups),
    )
    window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    found = [_products(one, w, b, *window) for one, w, b in zip(*parts, strict=True)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
) -> Tensor:
    products: Any = torch._C._nn  # has no types
    if max(dilation) > 1:
        return products.slow_conv_dilated2d(x, weight, kernel, bias, stride, padding, dilation)
    return products.thnn_conv2d(x, weight, kernel, bias, stride, padding)
