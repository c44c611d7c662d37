from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import Tensor
from torch.nn import functional as F

from stages.backbones.caffe_resnet import CaffeResNet, timm_imagenet
from stages.backbones.imagenet import fold_input
from wsssbed_hub.utils.errors import HubError

pytestmark = pytest.mark.numerical
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def small(strides: tuple[int, ...] = (1, 2, 2, 1)) -> CaffeResNet:
    return CaffeResNet((1, 2, 1, 1), strides, (1, 1, 1, 2), width=4)


@pytest.mark.parametrize(("side", "pooled"), [(400, 101), (257, 65), (64, 17), (65, 17)])
def test_the_pooling_of_the_stem_rounds_up(side: int, pooled: int) -> None:
    levels = small()(torch.zeros(1, 3, side, 64))
    assert levels[1].shape[2] == pooled


def test_the_levels_have_the_strides_and_channels_that_were_asked_for() -> None:
    network = small()
    levels = network(torch.zeros(2, 3, 129, 161))
    assert [level.shape[1] for level in levels] == list(network.channels) == [4, 16, 32, 64, 128]
    assert [level.shape[2] for level in levels] == [65, 33, 17, 9, 9]


def test_a_block_strides_before_its_3x3_convolution() -> None:
    network = small().eval()
    x = torch.randn(1, 16, 8, 8)
    (block, _) = network.layer2
    changed = x.clone()
    changed[..., 1::2, :] = 9  # rows that a 1x1 convolution of stride 2 never sees
    assert torch.equal(block(changed), block(x))


def reference_stem(rgb: Tensor, weight: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """torchvision's way: RGB, value/255, minus mean, over std, then the convolution."""
    normal = (rgb / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    return F.conv2d(normal, weight, stride=2, padding=3)


@pytest.mark.parametrize("mean_rgb", [(0.485, 0.456, 0.406), (0.4811, 0.4575, 0.4079)])
def test_folding_keeps_the_response_of_the_stem(mean_rgb: tuple[float, ...]) -> None:
    """On the same image, when both subtract one mean; Caffe's is the second, in 0..255."""
    torch.manual_seed(0)
    model = timm.create_model("resnet50.tv_in1k", pretrained=False).double()
    std = torch.tensor(model.pretrained_cfg["std"], dtype=torch.float64)
    network = CaffeResNet(BLOCKS[50], (1, 2, 2, 1), (1, 1, 1, 2)).double()
    network.load_initial(fold_input(model.state_dict(), "conv1.weight"), "timm's ResNet-50")
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 40, 48))).double()
    mean = torch.tensor(mean_rgb, dtype=torch.float64)
    expected = reference_stem(rgb, model.conv1.weight, mean, std)
    bgr = rgb.flip(1) - 255 * mean.flip(0).view(1, 3, 1, 1)
    assert_close_in_norm(network.conv1(bgr), expected, FLOAT64)


def test_with_each_its_own_mean_the_responses_differ_by_a_constant_inside() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet50.tv_in1k", pretrained=False).double()
    config = model.pretrained_cfg
    own, std = (torch.tensor(config[name], dtype=torch.float64) for name in ("mean", "std"))
    caffe_bgr = torch.tensor((104.00699, 116.66877, 122.67892), dtype=torch.float64)
    folded = fold_input(model.state_dict(), "conv1.weight")["conv1.weight"]
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 40, 48))).double()
    expected = reference_stem(rgb, model.conv1.weight, own, std)
    response = F.conv2d(rgb.flip(1) - caffe_bgr.view(1, 3, 1, 1), folded, stride=2, padding=3)
    shift = (255 * own - caffe_bgr.flip(0)) / (255 * std)
    constant = torch.einsum("oiyx,i->o", model.conv1.weight, shift)
    moved = expected + constant.view(1, -1, 1, 1)
    inside = (..., slice(2, -2), slice(2, -2))
    assert_close_in_norm(response[inside], moved[inside], FLOAT64)
    assert shift.abs().max() < 0.03  # about one grey level of 255, over a deviation of 0.22


@pytest.mark.parametrize("depth", [50, 101])
def test_all_of_timm_s_resnet_is_taken_but_the_classifier(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []

    def create(name: str, pretrained: bool) -> torch.nn.Module:
        assert (name, pretrained) == (f"resnet{depth}.tv_in1k", True)
        models.append(real(name, pretrained=False))
        return models[0]

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    network = CaffeResNet(BLOCKS[depth], (1, 2, 1, 1), (1, 1, 2, 4))
    network.load_initial(timm_imagenet(depth), "timm's ResNet")
    theirs = models[0].state_dict()
    for key, value in network.state_dict().items():
        if key != "conv1.weight":
            assert torch.equal(value, theirs[key])


def test_without_network_and_cache_timm_s_weights_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(name: str, pretrained: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(HubError, match=r"resnet50\.tv_in1k.*--init"):
        timm_imagenet(50)
