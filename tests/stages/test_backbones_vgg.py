from __future__ import annotations

import conformance
import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm
from references import checkpoint
from torch import Tensor, nn
from torchvision.models import vgg

from stages.backbones.state import load_strictly
from stages.backbones.vgg import (
    EXTRA_NAMES,
    Pooling,
    Vgg16,
    Vgg16Extra,
    for_caffe_input,
    rate_groups,
)
from stages.ops.images import MEAN_RGB, STD_RGB, caffe_bgr, imagenet_rgb
from wsssbed_hub.utils.errors import HubError

ALL = [f"conv{s}_{n}" for s in range(1, 6) for n in range(1, 3 + (s > 2))]
ALL += [f"pool{s}" for s in range(1, 6)]


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.numerical
def test_its_taps_are_those_of_torchvision_s_network() -> None:
    """timm's is compared in test_backbones_dilated.py."""
    torch.manual_seed(0)
    theirs = vgg.make_layers(vgg.cfgs["D"])
    ours = Vgg16(ALL)
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    ours.load_initial(state, "torchvision's")
    x = image(32, 64).double()
    names = {3: "conv1_2", 4: "pool1", 13: "conv3_2", 23: "pool4", 29: "conv5_3", 30: "pool5"}
    with torch.inference_mode():
        taps = ours.double()(x)
        for n, layer in enumerate(theirs.double()):
            x = layer(x.clone())
            if n in names:
                assert_close_in_norm(taps[names[n]], x, FLOAT64, names[n])
    assert {name: tap.shape[1] for name, tap in taps.items()} == ours.channels


@pytest.mark.parametrize(
    ("pool4", "pool5", "round_up", "size"),
    [
        ("halve", "halve", False, (2, 3)),
        ("halve", "halve", True, (2, 4)),
        ("halve3", "halve3", True, (3, 4)),
        ("keep", "none", False, (8, 12)),
        ("none", "none", False, (8, 12)),
    ],
)
def test_the_forms_of_its_last_poolings(
    pool4: Pooling, pool5: Pooling, round_up: bool, size: tuple[int, int]
) -> None:
    backbone = Vgg16(("conv5_3", "pool5"), width=4, pool4=pool4, pool5=pool5, round_up=round_up)
    assert backbone(image(64, 97))["pool5"].shape == (1, 32, *size)
    dilations = {n: x.dilation for n, x in backbone.features.named_children() if hasattr(x, "bias")}
    dilated = {name for name, dilation in dilations.items() if dilation == (2, 2)}
    assert dilated == ({"24", "26", "28"} if pool4 in ("keep", "none") else set())


def test_what_comes_after_the_last_tap_is_not_there() -> None:
    backbone = Vgg16(("pool3", "conv4_1"), width=2)
    assert [*backbone(image(32, 32))] == ["pool3", "conv4_1"]
    assert max(int(name) for name, _ in backbone.features.named_children()) == 18
    with pytest.raises(ValueError, match="conv3_4"):
        Vgg16(("conv3_4",))


def test_every_activation_can_be_another_module() -> None:
    made: list[int] = []

    class Negative(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            made.append(channels)

        def forward(self, x: Tensor) -> Tensor:
            return -x.relu()

    backbone = Vgg16(("conv1_1", "conv5_3"), width=2, activation=Negative)
    assert (backbone(image(32, 32))["conv1_1"] <= 0).all()
    assert made == [2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16]


def test_dropout_follows_the_first_four_poolings_in_training_alone() -> None:
    backbone = Vgg16(("pool4", "conv5_3", "pool5"), width=4, dropout=0.9)
    plain = Vgg16(("pool4", "conv5_3", "pool5"), width=4)
    plain.load_state_dict(backbone.state_dict())
    x = image(64, 64)
    assert torch.equal(backbone.eval()(x)["pool5"], plain.eval()(x)["pool5"])
    torch.manual_seed(0)
    assert not torch.equal(backbone.train()(x)["conv5_3"], plain(x)["conv5_3"])


@pytest.mark.numerical
def test_oaa_s_trunk_and_its_three_more_convolutions() -> None:
    """Case cam-oaa, whose class layer is the test's."""
    inputs, outputs = conformance.load("cam-oaa")
    state = checkpoint("cam-oaa")
    weight, bias = (state.pop(f"extra_convs.6.{part}") for part in ("weight", "bias"))
    backbone = Vgg16Extra(("conv5_3", "extra3"))
    load_strictly(backbone, state, "OAA's", EXTRA_NAMES)
    with torch.inference_mode():
        found = backbone(torch.from_numpy(inputs["x"]))
        maps = nn.functional.conv2d(found["extra3"], weight, bias)
    assert [*found] == ["conv5_3", "extra3"]
    assert_close_in_norm(found["conv5_3"][:1], outputs["feature"], 1e-4)
    assert_close_in_norm(maps, outputs["cam"], 1e-4)


def test_the_more_convolutions_may_have_other_activations_and_taps() -> None:
    class Scaled(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.scale = nn.Linear(channels, channels, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return -(x.relu() * self.scale.weight.diag()[:, None, None].abs())

    taps = ("conv1_1", "pool4", "conv5_3", "extra1", "extra3")
    backbone = Vgg16Extra(taps, width=2, activation=Scaled)
    found = backbone(image(32, 48))
    shapes = [(1, 2, 32, 48), *[(1, 16, 4, 6)] * 4]
    assert [tuple(found[tap].shape) for tap in taps] == shapes
    assert all((tap <= 0).all() for tap in found.values())
    assert backbone.channels == 16
    weight_group, bias_group, new_weights, new_biases = (
        group["params"] for group in rate_groups(backbone, backbone.trunk, 1.0)
    )
    assert [len(weight_group), len(bias_group)] == [13, 13]
    assert [len(new_weights), len(new_biases)] == [16 + 3, 3]
    assert {tuple(p.shape) for p in new_weights} >= {(2, 2), (16, 16), (16, 16, 3, 3)}
    with pytest.raises(ValueError, match="extra4"):
        Vgg16Extra(("extra4",), width=2)


def test_the_rates_of_its_four_groups_and_what_does_not_train() -> None:
    backbone = Vgg16Extra(width=2)
    backbone.trunk.features[0].requires_grad_(False)
    groups = rate_groups(backbone, backbone.trunk, 0.5, new_factor=4, bias_factor=3)
    assert [group["lr"] for group in groups] == [0.5, 1.5, 2.0, 6.0]
    assert [len(group["params"]) for group in groups] == [12, 12, 3, 3]


@pytest.mark.parametrize(("deviation", "want"), [(0.01, 0.01), (None, (2 / (9 * 128)) ** 0.5)])
def test_the_random_weights_of_the_more_convolutions(deviation: float | None, want: float) -> None:
    torch.manual_seed(0)
    backbone = Vgg16Extra(width=16, deviation=deviation)
    convolutions = [layer for layer in backbone.extra if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 3
    for conv in convolutions:
        assert conv.weight.std().item() == pytest.approx(want, rel=0.02)
        assert not conv.bias.any()


def test_initial_weights_are_for_the_trunk() -> None:
    backbone, other = Vgg16Extra(width=2), Vgg16(("conv5_3",), width=2)
    extra = backbone.extra[0].weight.clone()
    backbone.load_initial(other.state_dict(), "it")
    assert torch.equal(backbone.trunk.features[28].weight, other.features[28].weight)
    assert torch.equal(backbone.extra[0].weight, extra)


@pytest.mark.numerical
def test_weights_for_rgb_take_bgr() -> None:
    backbone = Vgg16(("conv1_1",)).double()
    rgb = torch.randint(0, 256, (9, 8, 3), generator=torch.Generator().manual_seed(1)).byte()
    mean = [255 * value for value in reversed(MEAN_RGB)]
    as_rgb = backbone(torch.from_numpy(imagenet_rgb(rgb.numpy()))[None].double())["conv1_1"]
    backbone.load_initial(for_caffe_input(backbone.state_dict()), "its own")
    as_bgr = backbone(torch.from_numpy(caffe_bgr(rgb.numpy(), mean))[None].double())["conv1_1"]
    assert_close_in_norm(as_bgr, as_rgb, 1e-5)  # pixels are float32
    assert len(STD_RGB) == 3


def test_a_classifier_is_left_out_and_anything_else_is_not() -> None:
    backbone = Vgg16(("conv5_3",), width=2)
    state = backbone.state_dict()
    backbone.load_initial(state | {"classifier.6.bias": torch.zeros(1000)}, "it")
    bare = {key.removeprefix("features."): value for key, value in state.items()}
    backbone.load_initial(bare, "a published file without the prefix")
    with pytest.raises(HubError, match=r"1 unknown: fc\.weight"):
        backbone.load_initial(state | {"fc.weight": torch.zeros(1)}, "it")
