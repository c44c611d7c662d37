"""Each substitute gives torch's values and gradients. The CPU has torch's own in any mode, so the
substitutes are asked for by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.runtime import deterministic_ops as ops

# Sums of a few hundred float32 numbers of size 1 in another order: some units of the last place.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SIZES = [1, 3, 5, (2, 7), (13, 17)]


@pytest.fixture(autouse=True)
def substituted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "needed", lambda x: True)


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.linspace(-1, 2, y.numel()).view_as(y)  # every output gets its own gradient
    (y * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("size", SIZES)
def test_average_pooling_is_torchs(size: ops.Size) -> None:
    x = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    mine = with_gradient(lambda x: ops.adaptive_avg_pool2d(x, size), x)
    same(mine, with_gradient(lambda x: F.adaptive_avg_pool2d(x, size), x))


def test_average_pooling_of_fewer_cells_than_bins_is_torchs() -> None:
    x = torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    mine = with_gradient(lambda x: ops.adaptive_avg_pool2d(x, 5), x)
    same(mine, with_gradient(lambda x: F.adaptive_avg_pool2d(x, 5), x))


def test_average_pooling_keeps_the_precision_of_its_input() -> None:
    x = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.adaptive_avg_pool2d(x, 3)
    assert found.dtype == torch.bfloat16
    # bfloat16 has 8 bits: one unit of the last place is 2**-8 of the number.
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, 3), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_max_pooling_is_torchs(size: ops.Size) -> None:
    x = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(3))
    mine = with_gradient(lambda x: ops.adaptive_max_pool2d(x, size), x)
    same(mine, with_gradient(lambda x: F.adaptive_max_pool2d(x, size), x))


def test_max_pooling_gives_the_gradient_of_equal_numbers_to_the_first() -> None:
    x = torch.randint(0, 3, (2, 3, 8, 8), generator=torch.Generator().manual_seed(4)).float()
    mine = with_gradient(lambda x: ops.adaptive_max_pool2d(x, 2), x)
    same(mine, with_gradient(lambda x: F.adaptive_max_pool2d(x, 2), x))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_torchs(reduction: Literal["mean", "sum"], weighted: bool) -> None:
    chance = torch.Generator().manual_seed(5)
    logits = torch.randn(2, 4, 9, 11, generator=chance)
    target = torch.randint(0, 4, (2, 9, 11), generator=chance)
    target[:, :3] = 255
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    how: dict[str, Any] = {"ignore_index": 255, "reduction": reduction}
    mine = with_gradient(lambda x: ops.cross_entropy(x, target, weight, **how)[None], logits)
    theirs = with_gradient(lambda x: F.cross_entropy(x, target, weight, **how)[None], logits)
    same(mine, theirs)


def test_cross_entropy_over_nothing_is_torchs() -> None:
    logits, target = torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 255)
    assert ops.cross_entropy(logits, target, ignore_index=255).isnan()
    assert F.cross_entropy(logits, target, ignore_index=255).isnan()


def test_elsewhere_they_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.use_deterministic_algorithms(True)
    try:
        assert not ops.needed(torch.zeros(1))  # on the CPU torch's own are deterministic
    finally:
        torch.use_deterministic_algorithms(False)
