from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from closeness import FLOAT64, assert_close_in_norm
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.dilated import Dilated, timm_imagenet
from wsssbed_hub.utils.errors import HubError, UsageError

pytestmark = pytest.mark.numerical
NAMES = ("densenet169", "vgg16")


def image(size: int) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[Dilated, nn.Module]:
    """Ours and timm's, in float64, with the same random weights and statistics of batch norm."""
    torch.manual_seed(0)
    theirs = timm.create_model(request.param, pretrained=False).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = Dilated(request.param).eval()
    ours.load_initial(theirs.state_dict(), "timm's")
    return ours.double(), theirs.double()


@pytest.mark.parametrize(("name", "channels"), [("densenet169", 1664), ("vgg16", 512)])
def test_the_feature_of_a_256_image(name: Any, channels: int) -> None:
    backbone = Dilated(name).eval()
    with torch.inference_mode():
        assert backbone(image(256)).shape == (1, channels, 32, 32)
    assert backbone.channels == channels


def test_densenet_169_has_the_parameters_of_the_specification() -> None:
    assert sum(p.numel() for p in Dilated("densenet169").parameters()) == 12_484_480


def test_every_weight_is_timm_s(pair: tuple[Dilated, nn.Module]) -> None:
    ours, theirs = pair
    state = theirs.state_dict()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key])


def layers(backbone: Dilated) -> dict[str, nn.Module]:
    return dict(backbone.features.named_modules())


def test_densenet_s_pooling_and_dilation() -> None:
    """Section 2 of the specification, layer by layer."""
    found = layers(Dilated("densenet169"))
    poolings = {name: type(found[name]) for name in found if name.endswith("pool")}
    assert poolings == {
        "transition1.pool": nn.AvgPool2d,
        "transition2.pool": nn.Identity,
        "transition3.pool": nn.Identity,
    }
    dilations: dict[str, set[tuple[Any, ...]]] = {}
    for name, layer in found.items():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            settings = (layer.dilation, layer.padding, layer.stride)
            dilations.setdefault(name.split(".")[0], set()).add(settings)
    assert dilations == {
        f"denseblock{n + 1}": {((rate, rate), (rate, rate), (1, 1))}
        for n, rate in enumerate((1, 1, 2, 4))
    }
    counts = [len(found[f"denseblock{n}"]) for n in (1, 2, 3, 4)]  # type: ignore[arg-type]
    assert counts == [6, 12, 32, 32]


def test_vgg_s_pooling_and_dilation() -> None:
    found = layers(Dilated("vgg16"))
    assert [n for n, layer in found.items() if isinstance(layer, nn.MaxPool2d)] == ["4", "9", "16"]
    rates = {n: x.dilation[0] for n, x in found.items() if isinstance(x, nn.Conv2d)}
    assert {n for n, rate in rates.items() if rate == 2} == {"24", "26", "28"}
    assert set(rates.values()) == {1, 2}
    assert len(rates) == 13
    assert all(x.padding == x.dilation for x in found.values() if isinstance(x, nn.Conv2d))


def test_without_dilation_it_is_timm_s_network_before_its_last_relu(
    pair: tuple[Dilated, nn.Module],
) -> None:
    """The same layers in the same order: pooling put back, the features are timm's."""
    ours, theirs = pair
    copy: Any = Dilated(ours.name).double()
    copy.load_state_dict(ours.state_dict())
    undilate(copy.eval())
    if ours.name == "densenet169":
        copy.features.transition2.pool = copy.features.transition3.pool = nn.AvgPool2d(2, 2)
    else:
        copy.features[23] = nn.MaxPool2d(2, 2)
    with torch.inference_mode():
        feature = copy(image(64).double())
        expected = theirs.features(image(64).double())  # type: ignore[operator]
    if ours.name == "densenet169":
        assert (feature < 0).any()  # no ReLU after the last batch norm
        feature = F.relu(feature)
    else:
        feature = F.max_pool2d(feature, 2)
    assert_close_in_norm(feature, expected, FLOAT64)


def test_dilated_layers_see_what_they_were_trained_to_see(pair: tuple[Dilated, nn.Module]) -> None:
    """Every fourth (VGG: second) place of the feature is that of a network which drops the others
    where the pooling was, and has no dilation."""
    ours, _ = pair
    dropping: Any = Dilated(ours.name).double()
    dropping.load_state_dict(ours.state_dict())
    undilate(dropping.eval())
    if ours.name == "densenet169":
        dropping.features.transition2.pool = dropping.features.transition3.pool = nn.MaxPool2d(1, 2)
    else:
        dropping.features[23] = nn.MaxPool2d(1, 2)
    with torch.inference_mode():
        feature, expected = (network(image(128).double()) for network in (ours, dropping))
    step = 4 if ours.name == "densenet169" else 2
    assert expected.shape[2] == 16 // step
    assert_close_in_norm(feature[..., ::step, ::step], expected, FLOAT64)


def undilate(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.dilation = layer.padding = (1, 1)


def test_torchvision_s_own_file_numbers_its_layers_another_way() -> None:
    backbone, other = Dilated("densenet-small"), Dilated("densenet-small")
    state = {
        key.replace("norm1.", "norm.1.", 1)
        .replace("norm2.", "norm.2.", 1)
        .replace("conv1.", "conv.1.", 1)
        .replace("conv2.", "conv.2.", 1)
        if "denselayer" in key
        else key: value
        for key, value in other.state_dict().items()
    } | {"classifier.weight": torch.zeros(3, 66), "classifier.bias": torch.zeros(3)}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    backbone.load_initial(state, "The file")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_another_network_s_weights_are_refused(pair: tuple[Dilated, nn.Module]) -> None:
    ours, theirs = pair
    state = theirs.state_dict()
    key = next(key for key in state if key.startswith("features.") and key.endswith("weight"))
    rest = {name: value for name, value in state.items() if name != key}
    with pytest.raises(HubError, match=rf"The file does not fit.*1 missing: {key}"):
        ours.load_initial(rest, "The file")


@pytest.mark.parametrize("name", NAMES)
def test_the_initial_weights_come_through_timm(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(model: str, pretrained: bool) -> nn.Module:
        asked.append((model, pretrained))
        return nn.Linear(2, 1)

    monkeypatch.setattr(timm, "create_model", create)
    assert timm_imagenet(name).keys() == {"weight", "bias"}
    assert asked == [(f"{name}.tv_in1k", True)]
    assert f"{name}.tv_in1k" in timm.list_pretrained()


def test_the_small_densenet_has_no_weights_to_start_from() -> None:
    with pytest.raises(UsageError, match=r"no ImageNet weights of densenet-small.*--init random"):
        timm_imagenet("densenet-small")
