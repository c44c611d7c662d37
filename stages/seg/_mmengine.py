"""Schedules and groups of parameters as MMEngine makes them, for MMSegmentation's recipes.

A schedule gives the factor on the rates at a step, counted from 0. A stretch from ``begin`` to
``end`` has ``end - begin`` steps and reaches its last value in the last of them, ``end - 1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn


def poly(step: int, *, begin: int = 0, end: int, power: float, floor: float = 0.0) -> float:
    """From 1 at ``begin`` to ``floor`` in the last step: PolyLR, ``floor`` its ``eta_min`` over
    the base rate."""
    done = _share(step, begin, end)
    return (1 - floor) * (1 - done) ** power + floor


def warm_up(step: int, *, steps: int, start: float) -> float:
    """From ``start`` linearly to 1 in the last of ``steps``, then 1: LinearLR."""
    return start + (1 - start) * _share(step, 0, steps) if step < steps else 1.0


def multi_step(
    step: int, *, milestones: Sequence[int], begin: int = 0, gamma: float = 0.1
) -> float:
    """``gamma`` to the number of milestones passed: MultiStepLR, which counts them from its
    ``begin``, the end of the warm-up, and not from the first step."""
    return gamma ** sum(step - begin >= milestone for milestone in milestones)


def _share(step: int, begin: int, end: int) -> float:
    return min(1.0, max(0, step - begin) / max(1, end - begin - 1))


class Factors(NamedTuple):
    """Factors on the learning rate and on the weight decay of some parameters."""

    rate: float = 1.0
    decay: float = 1.0


def parameter_groups(
    network: nn.Module, rate: float, decay: float, factors: Mapping[str, Factors]
) -> list[dict[str, Any]]:
    """Groups for an optimiser: MMEngine's ``custom_keys``.

    A parameter takes the factors of the longest key that is part of its name (of two as long, of
    the alphabet's first), all others the rate and decay as they are. One group for each pair of
    factors that occurs, in order of occurrence; parameters that do not train are in none.
    """
    keys = sorted(sorted(factors), key=len, reverse=True)
    members: dict[Factors, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            found = next((factors[key] for key in keys if key in name), Factors())
            members.setdefault(found, []).append(parameter)
    return [
        {"params": parameters, "lr": rate * found.rate, "weight_decay": decay * found.decay}
        for found, parameters in members.items()
    ]
