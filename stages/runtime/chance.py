"""Random numbers that depend on what they are for, and on nothing else.

Every use names itself (the run's seed, the phase, the step or the place in the stream), so
numbers do not depend on how many were drawn before, on workers, or on where a run was resumed.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


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
