"""DRS: discriminative region suppression, and refinement of the maps.

Paper: Kim, Han, Kim, AAAI 2021, arXiv 2103.07246. Code: qjadud1994/DRS (MIT).

Two networks, one after the other, each a VGG-16 with three more convolutions that starts from
ImageNet's. In the first, the classifier, a DRS module in place of each of the 16 ReLUs keeps every
channel below a part of its own maximum, so that the rest of an object counts too. The second has
plain ReLUs and learns by regression the classifier's maps of the training images, of which at each
pixel the largest alone is kept. ``suppression`` says what that part is: ``learnable``, of what the
channels' means tell, or ``fixed``, the number ``delta``. ``maps`` says whose maps are written:
``refined``, of the second network, or ``classifier``; then there is no second.

What the published code does and the paper does not tell:

- Gradients pass the maximum and the control of a DRS module: what is suppressed teaches the place
  of the maximum.
- The controllers learn at the rate of the new layers, also those inside the trunk.
- After every epoch both networks are measured against the masks of VOC's 1,464 train images, and
  the best of the epochs is kept. Pixel labels would choose the network of a method that is
  trained without; here it is that of the last epoch.
- Images are squeezed to squares. The maps of three sizes are merged by their maximum.
- The defaults of the refinement's program are 15 epochs with drops at 5 and 10; ``run.sh`` asks
  for 30, 10 and 20, which are taken.

The authors published the training on VOC alone, so that there is one recipe for all targets, and
say nothing of the fixed delta in it; 0.55 is the value of the reference case.

Where this file departs from the published code:

- Images that are left over at the end of an epoch go into the next one's first step; there they
  are a smaller step.
- Refined maps may exceed 1 and are not rounded there, labels being made at once. Here they become
  8 bits, so what exceeds 1 is 1. Both networks' maps are rounded down, as those are that the
  second network learns: what reaches 0.2, where the labels cut, is 51 or more.
- Maps of the classifier have the size of the image; those that the second network learns, and
  which do not outlive the training, the square's, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.vgg import Vgg16Extra, rate_groups, timm_imagenet
from stages.cam import CamData, CamMethod
from stages.cam._drs import Controller, Drs, MapNetwork, Suppression
from stages.ops.augment import colour_jitter, random_crop
from stages.ops.images import divide_by_maximum, imagenet_rgb, resize_bilinear
from stages.ops.resizing import resize
from stages.runtime.artifacts import open_scratch_maps, write_scratch_maps
from stages.runtime.method import Batch, Image, Initial, Phase, Source, Sources
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.registry.open_artifact import Activations, Maps
from wsssbed_hub.utils.errors import UsageError

FIXED_DELTA = 0.55


@dataclass(frozen=True)
class Recipe:
    """The published training (``run.sh`` on two GPUs, ``train_cls.py``, ``train_refine.py``).

    Raises UsageError for values that cannot be.
    """

    initial: str = "vgg16-397923af.pth"  # for the trunks of both networks
    suppression: Literal["learnable", "fixed"] = "learnable"
    delta: float = FIXED_DELTA  # of the fixed suppression, above 0 and at most 1
    maps: Literal["refined", "classifier"] = "refined"  # whose are written
    width: int = 64  # channels of the first stage; all others follow
    batch_norm: bool = False  # before each activation; instead of pretrained weights
    control_std: float = 0.01  # of the controllers' first weights
    refinement_std: float = 0.01  # of the second network's new layers; the first's: He, fan out
    scaled: int = 384  # pixels a side of the square that the classifier's crops come from
    crop: int = 320  # pixels a side in both trainings, and before the scales
    scales: tuple[int, ...] = (256, 320, 384)  # pixels a side, for maps
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    batch_size: int = 10  # 5 on each GPU
    steps: int = (
        0  # of both trainings, instead of the epochs, if not 0; each has its share, 1 at least
    )
    classifier_epochs: int = 15
    classifier_drops: tuple[int, ...] = (5, 10)  # epochs, from 1, before which the rate drops
    classifier_rate: float = 1e-3
    new_factor: float = 10.0  # times the rate: new layers and controllers
    bias_factor: float = 2.0  # times the rate: biases
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4  # of the classifier; the refinement has none
    refinement_epochs: int = 30
    refinement_drops: tuple[int, ...] = (10, 20)
    refinement_rate: float = 1e-4  # Adam's
    drop: float = 0.1  # the rate's factor

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise UsageError(f"delta={self.delta}: choose a number above 0 and at most 1.")
        if self.scaled < self.crop or self.crop < 1 or not self.scales or min(self.scales) < 1:
            raise UsageError(
                f"scaled={self.scaled}, crop={self.crop}, scales={self.scales}: sizes are 1 or "
                "more, and a crop is at most as large as the square that it comes from."
            )

    def unread(self) -> Iterator[tuple[Collection[str], str]]:
        """Fields that change nothing beside the others, and why."""
        if self.suppression == "learnable":
            yield ["delta"], "The suppression is learnt (--set suppression=fixed: it is not)"
        else:
            yield ["control_std"], "With suppression=fixed there are no controllers"
        if self.maps == "classifier":
            idle = [f"refinement_{name}" for name in ("std", "epochs", "drops", "rate")]
            yield idle, "With maps=classifier there is no second network"


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        width=8,
        batch_norm=True,
        scaled=72,
        crop=64,
        scales=(48, 64, 80),
        jitter=(0.0, 0.0, 0.0, 0.0),
        batch_size=16,
        classifier_epochs=17,
        classifier_drops=(14,),
        classifier_rate=0.1,
        new_factor=1.0,
        bias_factor=1.0,
        refinement_epochs=10,
        refinement_drops=(8,),
        refinement_rate=2e-3,
    ),
}


def classification_loss(raw: Tensor, label: Tensor) -> Tensor:
    """Multi-label soft margin of the maps' means, mean over classes and images.

    ``raw`` is float[N, C, h, w], ``label`` multi-hot float[N, C].
    """
    return F.binary_cross_entropy_with_logits(raw.mean((2, 3)).float(), label)


def localized(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """The classifier's maps float[N, C, H, W] in 0..1, each divided by its maximum.

    ``raw`` is float[N, C, h, w]; ``size`` is height and width.
    """
    return divide_by_maximum(refined(F.relu(raw), size))


def refined(raw: Tensor, size: tuple[int, int]) -> Tensor:
    """The refinement network's maps float[N, C, H, W], of any scale and sign, as ``localized``."""
    return resize(raw.float(), size, align_corners=True)


def refinement_target(maps: Tensor) -> Tensor:
    """The classifier's maps uint8[N, C, H, W] as the second network learns them, in 0..1.

    At each pixel the classes that have the largest value keep it; all others are 0.
    """
    strongest = maps == maps.amax(1, keepdim=True)
    return (maps * strongest).float() / 255


def refinement_loss(maps: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all classes, absent ones too: both float[N, C, H, W]."""
    return F.mse_loss(maps.float(), target)


class Squares:
    """Images squeezed to squares, jittered, with what belongs to them."""

    def __init__(self, data: CamData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def square(self, image_id: str, side: int, rng: np.random.Generator) -> np.ndarray:
        """float32[3, side, side] as the network takes it."""
        rgb = resize_bilinear(self.data.read_image(image_id), side, side)
        return imagenet_rgb(colour_jitter(rgb, rng, *self.recipe.jitter))


class Crops(Squares):
    """Crops of the images with their image-level labels, for the classifier."""

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, crop, crop], mirrored at random, ``label`` float32[C]."""
        image_id = self.data.image_ids[index]
        pixels = self.square(image_id, self.recipe.scaled, rng)
        if rng.random() < self.recipe.flip:
            pixels = pixels[:, :, ::-1]
        label = np.zeros(self.data.num_classes, np.float32)
        label[list(self.data.image_labels(image_id))] = 1
        return {"image": random_crop(pixels, self.recipe.crop, rng), "label": label}


class Localized(Squares):
    """Whole images with the classifier's maps of them, for the refinement network."""

    def __init__(self, data: CamData, recipe: Recipe, maps: Maps) -> None:
        super().__init__(data, recipe)
        self.maps = maps

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, crop, crop] and ``maps`` uint8[C, crop, crop], mirrored together."""
        image_id, side = self.data.image_ids[index], self.recipe.crop
        pixels = self.square(image_id, side, rng)
        maps = np.zeros((self.data.num_classes, side, side), np.uint8)
        found = self.maps.read(image_id)
        assert isinstance(found, Activations)
        maps[found.class_ids] = found.activations
        if rng.random() < self.recipe.flip:
            pixels, maps = pixels[:, :, ::-1], maps[:, :, ::-1]
        return {"image": pixels.copy(), "maps": maps.copy()}


def drops(
    steps: int, epochs: int, before: tuple[int, ...], factor: float
) -> Callable[[int], float]:
    """The schedule of a rate that drops by ``factor`` before some epochs, counted from 1."""
    return lambda step: factor ** sum(1 + step * epochs // steps >= epoch for epoch in before)


class Method(CamMethod):
    card = manifest.MethodCitation(
        name="DRS",
        paper="https://arxiv.org/abs/2103.07246",
        code="https://github.com/qjadud1994/DRS",
        licence="MIT",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "trunk": Initial(
            "vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth"
        )
    }
    recipe: Recipe

    def build(self) -> Drs:
        recipe = self.recipe

        def suppression(channels: int) -> nn.Module:
            if recipe.suppression == "fixed":
                return self._normed(channels, Suppression(delta=recipe.delta))
            controller = Controller(channels, recipe.control_std)
            return self._normed(channels, Suppression(controller=controller))

        def relu(channels: int) -> nn.Module:
            return self._normed(channels, nn.ReLU(inplace=True))

        def network(activation: Callable[[int], nn.Module], std: float | None) -> MapNetwork:
            features = Vgg16Extra(width=recipe.width, activation=activation, deviation=std)
            return MapNetwork(features, self.num_classes, std)

        classifier = network(suppression, None)
        two = recipe.maps == "refined"
        return Drs(classifier, network(relu, recipe.refinement_std) if two else None)

    def _normed(self, channels: int, activation: nn.Module) -> nn.Module:
        if not self.recipe.batch_norm:
            return activation
        return nn.Sequential(nn.BatchNorm2d(channels), activation)

    def load_initial(self, network: Drs, state: Mapping[str, Tensor], name: str) -> None:
        """An ImageNet VGG-16 in torchvision's or timm's names, for both networks' trunks."""
        for one in filter(None, (network.classifier, network.refinement)):
            one.features.load_initial(state, "The initial VGG-16")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        return timm_imagenet()

    def phases(self, network: Drs, data: CamData) -> Iterator[Phase]:
        first, second = self._steps(len(data.image_ids))
        yield self._classification(network.classifier, data, first)
        if network.refinement is not None:
            yield self._refinement(network.classifier, network.refinement, data, second)

    def _steps(self, images: int) -> tuple[int, int]:
        """Of the classifier and of the refinement network."""
        recipe = self.recipe
        epochs = (recipe.classifier_epochs, recipe.refinement_epochs)
        if not recipe.steps:
            one, two = (max(1, n * images // recipe.batch_size) for n in epochs)
            return one, two
        if recipe.maps == "classifier":
            return recipe.steps, 0
        one = max(1, recipe.steps * epochs[0] // sum(epochs))
        return one, max(1, recipe.steps - one)

    def _classification(self, network: MapNetwork, data: CamData, steps: int) -> Phase:
        recipe = self.recipe

        def optimizer() -> torch.optim.Optimizer:
            groups = rate_groups(
                network,
                network.features.trunk,
                recipe.classifier_rate,
                new_factor=recipe.new_factor,
                bias_factor=recipe.bias_factor,
            )
            return torch.optim.SGD(
                groups,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=True,
            )

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            crops = batches["crops"]
            return {"classification": classification_loss(network(crops["image"]), crops["label"])}

        return Phase(
            name="classifier",
            steps=steps,
            sources={"crops": Source(Crops(data, recipe), recipe.batch_size)},
            optimizer=optimizer,
            schedule=drops(steps, recipe.classifier_epochs, recipe.classifier_drops, recipe.drop),
            loss=loss,
        )

    def _refinement(
        self, classifier: MapNetwork, network: MapNetwork, data: CamData, steps: int
    ) -> Phase:
        recipe, folder = self.recipe, self.scratch / "classifier-maps"
        square = (recipe.crop, recipe.crop)

        def maps_of(image_id: str) -> Activations:
            image = data.image(image_id)
            maps = self.merged(classifier, localized, image, square)
            return Activations(maps, image.class_ids)

        def sources() -> Sources:
            samples = Localized(data, recipe, open_scratch_maps(folder, "cam"))
            return {"squares": Source(samples, recipe.batch_size)}

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            squares = batches["squares"]
            maps = refined(network(squares["image"]), squares["image"].shape[2:])
            return {"refinement": refinement_loss(maps, refinement_target(squares["maps"]))}

        return Phase(
            name="refinement",
            steps=steps,
            sources=sources,
            optimizer=lambda: torch.optim.Adam(
                network.parameters(), lr=recipe.refinement_rate, fused=True
            ),
            schedule=drops(steps, recipe.refinement_epochs, recipe.refinement_drops, recipe.drop),
            loss=loss,
            prepare=partial(write_scratch_maps, folder, "cam", data.image_ids, classifier, maps_of),
        )

    def merged(
        self,
        network: MapNetwork,
        finish: Callable[[Tensor, tuple[int, int]], Tensor],
        image: Image,
        size: tuple[int, int],
    ) -> np.ndarray:
        """Maps uint8[K, *size] of the image's classes: the maximum over the scales, and 0.

        ``finish`` makes maps of raw ones, ``localized`` or ``refined``. What exceeds 1 is 1.
        """
        crop, device = self.recipe.crop, network.class_layer.weight.device
        square = torch.from_numpy(imagenet_rgb(resize_bilinear(image.rgb, crop, crop)))
        pixels = square[None].to(device)
        total = torch.zeros(len(image.class_ids), *size, device=device)
        if len(total):
            chosen = torch.from_numpy(image.class_ids).to(device)
            for side in self.recipe.scales:
                raw = network(resize(pixels, side))[:, chosen]
                total = torch.maximum(total, finish(raw, size)[0])
        levels: np.ndarray = (total.clamp(max=1) * 255).byte().cpu().numpy()
        return levels

    def activations(self, network: Drs, image: Image, data: CamData) -> np.ndarray:
        """uint8[K, H, W], rounded down, of the network whose maps are written."""
        finish = localized if network.refinement is None else refined
        return self.merged(network.last, finish, image, image.rgb.shape[:2])
