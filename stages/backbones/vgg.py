"""VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) with named taps, in the forms of several papers.

The layers are torchvision's, so the entries of ``features`` have the names of its checkpoints
whatever a paper does with the last two poolings:

- ``halve``: 2x2, stride 2, as in the paper (DSS's port, PFAN);
- ``halve3``: 3x3, stride 2, padding 1 (DSS's authors);
- ``keep``: 3x3, stride 1, padding 1 (OAA, L2G, DRS: the fourth);
- ``none``: nothing (SSNet: the fourth).

After a fourth pooling that keeps the size, the convolutions of stage 5 have dilation 2.

``Vgg16Extra`` is the form of OAA and of those who build on it: three more 3x3 convolutions on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.imagenet import fold_input, timm_model
from stages.backbones.state import Rules, load_strictly, without_classifier

Pooling = Literal["halve", "halve3", "keep", "none"]
CLASSIFIERS = ("classifier.", "pre_logits.", "head.")  # torchvision's and timm's
# Several published networks hold the backbone as ``base.0.weight`` or ``vgg16.0.weight``.
_BARE_NAMES: Rules = ((r"^(\d+)\.", r"features.\1."),)
EXTRA_NAMES: Rules = (
    (r"^features\.", "trunk.features."),
    (r"^extra_convs\.([0-5])\.", r"extra.\1."),
)
"""OAA's names (MCIS's and L2G's too) to those of a ``Vgg16Extra``."""
_CONVOLUTIONS = (2, 2, 3, 3, 3)
_DEPTHS = (1, 2, 4, 8, 8)  # channels of the stages, over those of the first


class Vgg16(nn.Module):
    """float[N, 3, H, W] to the features that ``taps`` name, in a dict.

    ``conv3_2`` is the second convolution of stage 3 after its activation, ``pool3`` the pooling at
    the stage's end. What comes after the last tap is not made. ``width`` is the number of channels
    of the first stage (64 in the paper), and ``channels`` says those of every tap.
    ``activation(channels)`` makes each activation, ReLU by default. ``first_padding`` is that of
    the very first convolution. With ``round_up`` the poolings round sizes up, as in Caffe.
    ``dropout`` is the share of numbers dropped after each of the first four poolings in training.
    The weights are random (He et al., fan out).
    """

    def __init__(
        self,
        taps: Sequence[str],
        *,
        width: int = 64,
        pool4: Pooling = "halve",
        pool5: Pooling = "halve",
        first_padding: int = 1,
        round_up: bool = False,
        dropout: float = 0.0,
        activation: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.dropout = dropout
        self.features, names = _layers(width, (pool4, pool5), round_up, activation)
        unknown = set(self.taps) - set(names)
        if unknown:
            raise ValueError(f"no layers of a VGG-16: {sorted(unknown)}")
        self.features = self.features[: max(names[tap] for tap in self.taps) + 1]
        self._names = {n: name for name, n in names.items()}
        stages = {tap: int(tap.removeprefix("conv").removeprefix("pool")[0]) for tap in taps}
        self.channels = {tap: _DEPTHS[stage - 1] * width for tap, stage in stages.items()}
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        first.padding = (first_padding, first_padding)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found, x = {}, image
        for n, layer in enumerate(self.features):
            x = layer(x)
            name = self._names.get(n, "")
            if name in self.taps:
                found[name] = x
            if self.dropout and name.startswith("pool") and name != "pool5":
                x = F.dropout(x, self.dropout, self.training)
        return found

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """An ImageNet VGG-16 in torchvision's or timm's names; its classifier is left out.

        Activations that have weights keep theirs. Raises HubError if the rest does not fit exactly.
        """
        kept = {key: value for key, value in self.state_dict().items() if key.count(".") > 2}
        state = {**kept, **without_classifier(state, CLASSIFIERS)}
        load_strictly(self, state, source, _BARE_NAMES)


class Vgg16Extra(nn.Module):
    """float[N, 3, H, W] to the features that ``taps`` name, in a dict, deep ones of stride 8.

    A ``Vgg16`` whose fourth pooling keeps the size and that has no fifth, then three 3x3
    convolutions, each with an activation: the taps ``extra1`` to ``extra3``, of ``channels``
    channels (8 times ``width``), beside those of the trunk. ``activation(channels)`` makes all 16
    activations, ReLU by default. The extra weights are normal with ``deviation``, or as the trunk's
    are (He et al., fan out) if it is None; biases are zero.
    """

    def __init__(
        self,
        taps: Sequence[str] = ("extra3",),
        *,
        width: int = 64,
        activation: Callable[[int], nn.Module] | None = None,
        deviation: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.channels = _DEPTHS[-1] * width
        of_trunk = [tap for tap in self.taps if not tap.startswith("extra")]
        trunk_taps = dict.fromkeys((*of_trunk, "conv5_3"))
        self.trunk = Vgg16([*trunk_taps], width=width, pool4="keep", activation=activation)
        self.extra = nn.Sequential()
        for _ in range(3):
            conv = nn.Conv2d(self.channels, self.channels, 3, padding=1)
            _draw(conv, deviation)
            self.extra.append(conv)
            self.extra.append(activation(self.channels) if activation else nn.ReLU(inplace=True))
        unknown = set(self.taps) - {*of_trunk, "extra1", "extra2", "extra3"}
        if unknown:
            raise ValueError(f"no layers of a VGG-16 with three more: {sorted(unknown)}")

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.trunk(image)
        x = found["conv5_3"]
        for n in range(3):
            x = self.extra[2 * n + 1](self.extra[2 * n](x))
            found[f"extra{n + 1}"] = x
        return {tap: found[tap] for tap in self.taps}

    def load_initial(self, state: Mapping[str, Tensor], source: str) -> None:
        """An ImageNet VGG-16 for the trunk, as ``Vgg16.load_initial``."""
        self.trunk.load_initial(state, source)


def norm_and_relu(channels: int) -> nn.Module:
    """Batch norm and ReLU: the activation of a VGG that learns from random weights."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def rate_groups(
    network: nn.Module,
    trunk: Vgg16,
    learning_rate: float,
    *,
    new_factor: float = 10.0,
    bias_factor: float = 2.0,
) -> list[dict[str, Any]]:
    """Parameter groups of OAA and those who build on it, for an optimiser.

    In this order: weights of the trunk's convolutions, their biases, all other weights of
    ``network`` (those of activation modules in the trunk too), and all other biases. The other ones
    learn ``new_factor`` times as fast, biases ``bias_factor`` times as fast as weights.
    """
    convolutions = (m for m in trunk.features if isinstance(m, nn.Conv2d))
    pretrained = {id(p) for conv in convolutions for p in conv.parameters()}
    groups: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_new = id(parameter) not in pretrained
            groups[2 * is_new + name.endswith("bias")].append(parameter)
    rates = (1.0, bias_factor, new_factor, new_factor * bias_factor)
    return [
        {"params": parameters, "lr": learning_rate * rate}
        for parameters, rate in zip(groups, rates, strict=True)
    ]


def timm_imagenet() -> dict[str, Tensor]:
    """torchvision's ImageNet weights, by timm from the Hub cache. Raises HubError without them."""
    return dict(timm_model("vgg16.tv_in1k").state_dict())


def for_caffe_input(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's weights, made to take BGR, 0..255, minus a mean colour."""
    return fold_input(state, "features.0.weight")


def _layers(
    width: int,
    last_pools: tuple[Pooling, Pooling],
    round_up: bool,
    activation: Callable[[int], nn.Module] | None,
) -> tuple[nn.Sequential, dict[str, int]]:
    """torchvision's layers, and the number of the last layer of each tap."""
    from torchvision.models import vgg

    plan = [v if isinstance(v, str) else v * width // 64 for v in vgg.cfgs["D"]]
    layers = vgg.make_layers(plan)
    pools: tuple[Pooling, ...] = ("halve", "halve", "halve", *last_pools)
    names: dict[str, int] = {}
    n = 0
    for stage, count in enumerate(_CONVOLUTIONS, 1):
        for number in range(1, count + 1):
            conv = layers[n]
            assert isinstance(conv, nn.Conv2d)
            _draw(conv)
            if stage == 5 and last_pools[0] in ("keep", "none"):
                conv.dilation = conv.padding = (2, 2)
            if activation is not None:
                layers[n + 1] = activation(conv.out_channels)
            names[f"conv{stage}_{number}"] = n + 1
            n += 2
        layers[n] = _pooling(pools[stage - 1], round_up)
        names[f"pool{stage}"] = n
        n += 1
    return layers, names


def _pooling(kind: Pooling, round_up: bool) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "halve":
        return nn.MaxPool2d(2, 2, ceil_mode=round_up)
    return nn.MaxPool2d(3, 1 if kind == "keep" else 2, 1, ceil_mode=round_up)


def _draw(conv: nn.Conv2d, deviation: float | None = None) -> None:
    if deviation is None:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.normal_(conv.weight, std=deviation)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
