from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import nn

from stages.ops.determinism import avoid_cache_sized_sums

WIDE = {
    "dilated": {"kernel_size": 3, "dilation": 6, "padding": 6},
    "dilated and strided, two groups": {
        "kernel_size": 3,
        "dilation": (4, 5),
        "padding": (4, 5),
        "stride": 2,
        "groups": 2,
    },
    "large": {"kernel_size": 9, "padding": 4, "bias": False},
}


@pytest.mark.numerical
@pytest.mark.parametrize("window", WIDE.values(), ids=WIDE)
def test_a_convolution_that_bypasses_onednn_computes_the_same(window: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, **window).double()
    other = copy.deepcopy(plain)
    avoid_cache_sized_sums(other)
    image = torch.randn(2, 4, 17, 12, dtype=torch.float64)
    made = []
    for layer in (plain, other, copy.deepcopy(other)):
        x = image.clone().requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        made.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for expected, *found in zip(*made, strict=True):
        for one in found:
            assert_close_in_norm(one, expected, FLOAT64)


def test_a_copy_of_a_network_computes_with_its_own_weights() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=5, dilation=5))
    avoid_cache_sized_sums(network)
    copied = copy.deepcopy(network)
    nn.init.zeros_(copied[0].weight)
    nn.init.zeros_(copied[0].bias)
    image = torch.ones(1, 1, 8, 8)
    assert not copied(image).any()
    assert network(image).any()


def test_other_threads_keep_onednn_meanwhile() -> None:
    """The switch that turns it off is that of the whole process."""
    network = nn.Conv2d(1, 1, 3, padding=5, dilation=5)
    avoid_cache_sized_sums(network)
    seen = []
    network.register_forward_hook(lambda *_: seen.append(torch.backends.mkldnn.enabled))
    network.register_forward_pre_hook(lambda *_: seen.append(torch.backends.mkldnn.enabled))
    network(torch.ones(1, 1, 8, 8))
    assert all(seen)
    assert len(seen) == 2


def test_under_autocast_it_is_computed_in_float32() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3, padding=5, dilation=5))
    avoid_cache_sized_sums(network)
    with torch.autocast("cpu", torch.bfloat16):
        assert network[0](torch.ones(1, 1, 9, 9)).dtype == torch.bfloat16
        assert network(torch.ones(1, 1, 9, 9)).dtype == torch.float32
