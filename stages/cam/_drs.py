"""The networks of DRS: a VGG-16 with three more convolutions, its activations suppressed or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.state import Rules, load_strictly
from stages.backbones.vgg import Vgg16Extra
from stages.ops.resizing import adaptive_max_pool2d
from wsssbed_hub.utils.errors import HubError

_PLACES = {  # of the convolutions: the authors' stage and number to our name
    **{
        (f"layer{stage}", n + 1): ("features.trunk.features", first + 2 * n)
        for stage, (count, first) in enumerate(((2, 0), (2, 5), (3, 10), (3, 17), (3, 24)), 1)
        for n in range(count)
    },
    **{("extra", n + 1): ("features.extra", 2 * n) for n in range(3)},
}
PUBLISHED_NAMES: Rules = (
    *(
        rule
        for (stage, n), (ours, number) in _PLACES.items()
        for rule in (
            (rf"^{stage}_conv{n}\.", f"{ours}.{number}."),
            (rf"^{stage}_relu{n}\.fc\.0\.", f"{ours}.{number + 1}.controller.linear."),
        )
    ),
    (r"^extra_conv4\.", "class_layer."),
)


class Controller(nn.Module):
    """The learnable suppression controller: float[N, C, H, W], at least 0, to float[N, C] in 0..1.

    One part for each channel, a sigmoid of what the means of all channels tell.
    """

    def __init__(self, channels: int, deviation: float = 0.01) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels, bias=False)
        nn.init.normal_(self.linear.weight, std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3))).sigmoid()


class Suppression(nn.Module):
    """The DRS module: float[N, C, H, W] of any sign to the same shape, at least 0.

    After a ReLU each channel is cut off at a part of its maximum: ``delta``, or what the
    ``controller`` says of the channel.
    """

    def __init__(self, delta: float = 0.0, controller: Controller | None = None) -> None:
        super().__init__()
        self.delta = delta
        self.controller = controller

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        part = self.delta if self.controller is None else self.controller(x)[:, :, None, None]
        return torch.minimum(x, adaptive_max_pool2d(x, 1) * part)


class MapNetwork(nn.Module):
    """float[N, 3, H, W] (RGB, ImageNet mean and deviation) to raw maps float[N, C, H/8, W/8].

    Sides are rounded down. A class's raw map is of any scale and sign; its mean is its logit.
    """

    def __init__(self, features: Vgg16Extra, classes: int, deviation: float | None) -> None:
        super().__init__()
        self.features = features
        self.class_layer = nn.Conv2d(features.channels, classes, 1)
        if deviation is None:
            nn.init.kaiming_normal_(self.class_layer.weight, mode="fan_out")
        else:
            nn.init.normal_(self.class_layer.weight, std=deviation)
        nn.init.zeros_(self.class_layer.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        return self.class_layer(self.features(image)["extra3"])


class Drs(nn.Module):
    """The classifier and, unless its own maps are wanted, the refinement network."""

    def __init__(self, classifier: MapNetwork, refinement: MapNetwork | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.refinement = refinement

    @property
    def last(self) -> MapNetwork:
        """The network whose maps are written."""
        return self.refinement or self.classifier

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint of the network whose maps are written.

        They hold the trunk twice, as ``layer1_conv1`` and so on, which count, and as ``features``.
        Raises HubError if it does not fit exactly, and if it is that of the other network.
        """
        names = {key: key.removeprefix("module.") for key in state}
        kept = {key: state[key] for key, name in names.items() if not name.startswith("features.")}
        controlled = any("_relu" in name for name in names.values())
        wanted = any(isinstance(module, Controller) for module in self.last.modules())
        if controlled and not wanted:
            raise HubError(
                "The DRS checkpoint is that of a classifier with learnable suppression. Give it "
                "with --set maps=classifier --set suppression=learnable."
            )
        if wanted and not controlled and "extra_conv4.weight" in names.values():
            raise HubError(
                "The DRS checkpoint has no controllers: it is that of a refinement network (--set "
                "maps=refined), or of a classifier with fixed suppression (--set maps=classifier "
                "--set suppression=fixed)."
            )
        load_strictly(self.last, kept, "The DRS checkpoint", PUBLISHED_NAMES)
