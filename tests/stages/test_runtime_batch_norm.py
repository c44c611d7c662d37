"""Batch norm: frozen, and with statistics over all processes (with two: test_runtime_processes)."""

from __future__ import annotations

import copy

import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import nn

from stages.runtime import distributed
from stages.runtime.batch_norm import freeze_batchnorm, synchronise_batchnorm
from wsssbed_hub.utils.errors import HubError

pytestmark = pytest.mark.numerical
KINDS = [
    (nn.BatchNorm1d, (6, 3)),
    (nn.BatchNorm2d, (4, 3, 5, 2)),
    (nn.BatchNorm3d, (2, 3, 2, 3, 4)),
]


def test_frozen_batch_norm_stays_as_it_is_through_train_mode() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    norm, names = network[1], list(network.state_dict())
    freeze_batchnorm(network)
    network.train()
    network(torch.randn(4, 3, 5, 5)).sum().backward()
    assert not norm.training
    assert norm.running_mean.tolist() == [0.0] * 4
    assert norm.weight.grad is None
    assert network[0].weight.grad is not None
    assert list(network.state_dict()) == names
    assert not copy.deepcopy(network).train()[1].training


def test_frozen_statistics_with_trained_scale() -> None:
    norm = nn.BatchNorm1d(2)
    freeze_batchnorm(norm, affine=False)
    norm.train()(torch.randn(8, 2)).sum().backward()
    assert norm.running_mean.tolist() == [0.0, 0.0]
    assert norm.weight.grad is not None


@pytest.fixture
def _as_if_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion asks for the number of processes; the sums are over this one alone."""
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "all_sum", lambda tensor: tensor.detach().clone())


@pytest.mark.usefixtures("_as_if_two")
@pytest.mark.parametrize(("kind", "shape"), KINDS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_over_one_process_it_is_what_torch_computes(
    kind: type, shape: tuple[int, ...], momentum: float | None
) -> None:
    ours = kind(3, momentum=momentum).double()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.normal_()
    theirs = copy.deepcopy(ours)
    synchronise_batchnorm(ours)
    assert type(ours) is not type(theirs)
    weight = torch.randn(shape).double()
    for _ in range(2):
        x = 3 * torch.randn(shape).double() + 5
        outputs, gradients = [], []
        for norm in (ours, theirs):
            y = x.clone().requires_grad_()
            outputs.append(norm(y))
            (outputs[-1] * weight).sum().backward()
            gradients.append(y.grad)
        assert_close_in_norm(*outputs, FLOAT64)
        assert_close_in_norm(*gradients, FLOAT64)
    for name, value in theirs.state_dict().items():
        assert_close_in_norm(ours.state_dict()[name], value, FLOAT64)
    assert_close_in_norm(ours.weight.grad, theirs.weight.grad, FLOAT64)
    assert_close_in_norm(ours.bias.grad, theirs.bias.grad, FLOAT64)
    assert_close_in_norm(ours.eval()(x), theirs.eval()(x), FLOAT64)


@pytest.mark.usefixtures("_as_if_two")
def test_half_precision_comes_back_as_half_precision() -> None:
    norm = nn.BatchNorm2d(3)
    synchronise_batchnorm(norm)
    x = 300 * torch.randn(8, 3, 40, 40)  # the squares overflow float16
    result = norm(x.half())
    assert result.dtype == torch.float16
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    # float16 has 11 bits: input and output are each rounded by 2**-11 of themselves at most.
    assert_close_in_norm(result, expected, 2**-9)


@pytest.mark.usefixtures("_as_if_two")
def test_frozen_ones_stay_and_foreign_ones_are_refused() -> None:
    frozen = nn.BatchNorm2d(3)
    freeze_batchnorm(frozen)
    kind = type(frozen)
    synchronise_batchnorm(frozen)
    assert type(frozen) is kind

    class Foreign(nn.BatchNorm2d):
        pass

    with pytest.raises(HubError, match=r"1 is a Foreign.*Train with one"):
        synchronise_batchnorm(nn.Sequential(nn.ReLU(), Foreign(3)))


def test_alone_nothing_is_changed() -> None:
    norm = nn.BatchNorm2d(3)
    synchronise_batchnorm(norm)
    assert type(norm) is nn.BatchNorm2d
