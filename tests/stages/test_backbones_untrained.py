from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.backbones.caffe_resnet import CaffeResNet
from stages.backbones.resnet38 import ResNet38
from stages.backbones.untrained import calibrate_batchnorm

pytestmark = pytest.mark.numerical


def deviations(network: nn.Module, image: torch.Tensor) -> list[float]:
    """Of what every batch norm gives out, in eval mode."""
    found: list[float] = []
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(lambda _, __, output: found.append(output.std().item()))
    with torch.no_grad():
        network.eval()(image)
    return found


def picture(scale: float) -> torch.Tensor:
    coarse = torch.randn(4, 3, 6, 6)
    smooth = nn.functional.interpolate(coarse, (96, 96), mode="bilinear")
    return scale * (smooth + 0.3 * torch.randn(4, 3, 96, 96))


def test_signals_keep_their_size_through_a_network_whose_norm_is_frozen() -> None:
    torch.manual_seed(0)
    for network, scale in (
        (CaffeResNet((2, 2, 2, 2), (1, 2, 1, 1), (1, 1, 2, 4), width=8), 65.0),
        (ResNet38(width=4, blocks=(2, 2, 2, 2)), 1.0),
    ):
        calibrate_batchnorm(network, scale)
        sizes = deviations(network, picture(scale))
        # Noise is no photograph: a factor of three around 1 is what a frozen norm must bring.
        assert min(sizes) > 1 / 3
        assert max(sizes) < 3


def test_nothing_but_the_statistics_changes() -> None:
    torch.manual_seed(0)
    network = CaffeResNet((1, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 4), width=4)
    before = {name: value.clone() for name, value in network.named_parameters()}
    calibrate_batchnorm(network, 65.0)
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name])
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert network.training
    assert all(norm.training for norm in norms)
