"""ResNet v1c at stride 8 against timm's, which contracts its dilations in the same way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from stages.backbones.resnet_v1c import ResNetV1c
from wsssbed_hub.utils.errors import HubError

BLOCKS = (2, 1, 3, 2)


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    network = ResNet(Bottleneck, list(BLOCKS), 7, output_stride=8, stem_width=32, stem_type="deep")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.6)
    return network.double().eval()


def levels_of(network: Any, image: Tensor) -> list[Tensor]:
    x = network.maxpool(network.act1(network.bn1(network.conv1(image))))
    levels = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        levels.append(x)
    return levels


@pytest.mark.numerical
@pytest.mark.parametrize("size", [(97, 129), (64, 40)])
def test_every_level_is_timm_s(theirs: Any, size: tuple[int, int]) -> None:
    ours = ResNetV1c(BLOCKS)
    ours.load_initial(theirs.state_dict(), "timm's")
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        found = ours.double().eval()(image)
        expected = levels_of(theirs, image)
    for n, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert got.shape[1] == ours.channels[n]
        assert_close_in_norm(got, want, FLOAT64, f"level {n}")


def open_mmlab(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The names of open-mmlab's ``resnet101_v1c``, whose stem is numbered through."""
    found = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        name = {"conv1": "stem", "bn1": "stem.7"}.get(head, head)
        found[f"{prefix}{name}.{rest}"] = value
    return found


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_open_mmlab_s_names(theirs: Any, prefix: str) -> None:
    ours, state = ResNetV1c(BLOCKS), theirs.float().state_dict()
    given = open_mmlab(state, prefix)
    assert f"{prefix}stem.7.running_var" in given
    if prefix == "backbone.":  # as part of a whole network there is no classifier
        given = {key: value for key, value in given.items() if ".fc." not in key}
    ours.load_initial(given, "open-mmlab's")
    assert torch.equal(ours.stem[7].running_var, state["bn1.running_var"])
    assert torch.equal(ours.layer3[2].conv2.weight, state["layer3.2.conv2.weight"])
    theirs.double()


def test_weights_of_the_plain_stem_are_refused() -> None:
    state = ResNet(Bottleneck, list(BLOCKS), 7).state_dict()
    with pytest.raises(HubError, match=r"The initial ResNet does not fit .*missing: stem\.0"):
        ResNetV1c(BLOCKS).load_initial(state, "The initial ResNet")
