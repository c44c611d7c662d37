"""Rates written down from what MMEngine 0.10.7 gives, and groups by hand."""

from __future__ import annotations

import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import nn

from stages.seg._mmengine import Factors, multi_step, parameter_groups, poly, warm_up


def test_the_floor_is_reached_in_the_last_iteration_and_not_before() -> None:
    """(0.01 - 1e-4) * (1 - n / 19999)^0.9 + 1e-4, n = 0 .. 19999."""
    rates = [0.01 * poly(n, end=20_000, power=0.9, floor=0.01) for n in (0, 1, 9_999, 19_998)]
    expected = [
        0.01,
        0.0099 * (19_998 / 19_999) ** 0.9 + 1e-4,
        0.0099 * (10_000 / 19_999) ** 0.9 + 1e-4,
        0.0099 * (1 / 19_999) ** 0.9 + 1e-4,
    ]
    assert_close_in_norm(rates, expected, FLOAT64)
    assert poly(19_999, end=20_000, power=0.9, floor=0.01) == 0.01


def test_a_decay_that_begins_after_the_warm_up() -> None:
    """6e-5 * (1 - (n - 1500) / (160000 - 1500 - 1)), to exactly 0."""

    def rate(n: int) -> float:
        return poly(n, begin=1_500, end=160_000, power=1.0)

    assert rate(1_500) == 1
    assert rate(159_999) == 0
    assert rate(1_501) == pytest.approx(1 - 1 / 158_499, rel=1e-12)
    assert rate(80_000) == pytest.approx(79_999 / 158_499, rel=1e-12)


def test_the_warm_up_ends_in_its_last_iteration() -> None:
    assert warm_up(0, steps=1_500, start=1e-6) == 1e-6
    assert warm_up(1_499, steps=1_500, start=1e-6) == 1
    assert warm_up(750, steps=1_500, start=0.25) == pytest.approx(0.25 + 0.75 * 750 / 1_499)
    assert warm_up(1_500, steps=1_500, start=0.5) == warm_up(99_999, steps=1_500, start=0.5) == 1


def test_milestones_count_from_the_begin() -> None:
    """K-Net's 60,000 and 72,000 after a warm-up of 1,000 come at 61,000 and 73,000."""
    steps = (0, 60_999, 61_000, 72_999, 73_000, 79_999)
    found = [multi_step(n, milestones=(60_000, 72_000), begin=1_000) for n in steps]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert multi_step(5, milestones=(5,), gamma=0.5) == 0.5


@pytest.mark.parametrize("steps", [1, 2])
def test_trainings_of_a_step_or_two(steps: int) -> None:
    assert poly(0, end=steps, power=0.9, floor=0.1) == 1
    assert warm_up(0, steps=steps, start=0.5) == 0.5
    assert poly(0, begin=1_500, end=steps, power=1.0) == 1


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"norm1": nn.LayerNorm(3), "fc": nn.Linear(3, 3)})
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(3), "bn": nn.BatchNorm2d(3)})
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


def test_groups_by_name() -> None:
    """ "head" is as long as "norm" and comes first in the alphabet: its norm is decayed."""
    network = Toy()
    groups = parameter_groups(
        network, 2.0, 0.5, {"norm": Factors(decay=0.0), "head": Factors(rate=10.0)}
    )
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [
        ([names[id(p)] for p in group["params"]], group["lr"], group["weight_decay"])
        for group in groups
    ]
    assert found == [
        (["backbone.norm1.weight", "backbone.norm1.bias"], 2.0, 0.0),
        (["backbone.fc.weight", "backbone.fc.bias"], 2.0, 0.5),
        (["head.norm.weight", "head.norm.bias", "head.bn.weight", "head.bn.bias"], 20.0, 0.5),
    ]


def test_the_longest_key_counts() -> None:
    keys = {"head.norm": Factors(decay=0.0), "head": Factors(rate=10.0), "norm": Factors(rate=3.0)}
    network = Toy().head
    wrapped = nn.ModuleDict({"head": network})
    groups = parameter_groups(wrapped, 1.0, 1.0, keys)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1.0, 0.0), (10.0, 1.0)]
