"""OAA: integral object mining via online attention accumulation, on VGG-16.

Papers: Jiang, Hou, Cao, Cheng, Wei, Xiong, ICCV 2019; Jiang, Han, Hou, Cheng, Wei, TPAMI 2021 (the
attention-drop layer). Code: PengtaoJiang/OAA-PyTorch, whose README says CC BY-NC-SA 4.0.

A classifier, the attention network, is trained; what its class maps show of each training image is
accumulated from epoch to epoch (``_oaa.py``). Then a second network, the integral network, is
trained from the same initial weights to give the accumulated maps. ``Recipe.maps`` says whose maps
are written: ``integral`` (OAA+, the default and what was published), ``accumulated`` (OAA: those
of the training itself, which need no network any more), or ``attention`` (the classifier's, for
comparison). ``Recipe.drop_layer`` is the TPAMI extension, whose published run has
``maps=accumulated``.

Where the published code departs from the paper, or says more, it is followed: the maps of an image
are accumulated by their maximum, if the class is among the k highest scores of an image of k
classes; nothing of epoch 0; accumulated are maps of the jittered colours, with neither crop nor
flip; the integral loss counts pixels over all classes together; the gradients of the attention
network are averaged over the five images of a step, those of the integral network added up
(``integral_scale``). ``input_size`` and ``crop_size``, which are read and not used, are not here.

Where this file departs from it: the last images of an epoch that fill no step share one with the
first of the next, whose drop masks are then those of one epoch earlier; there they are added to the
next step. The new layers of both networks begin with the same random numbers. Fewer epochs than two
accumulate nothing; the targets are then zero, which is said.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.state import Rules, load_strictly
from stages.backbones.vgg import EXTRA_NAMES, Vgg16Extra, norm_and_relu, rate_groups, timm_imagenet
from stages.cam import CamData, CamMethod
from stages.cam._oaa import Accumulation, attention_maps, drop_mask, integral_targets, zoom
from stages.ops.augment import colour_jitter, resize_short_side
from stages.ops.images import imagenet_rgb, resize_bicubic
from stages.runtime.artifacts import open_scratch_maps, write_scratch_maps
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.runtime.progress import say
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.registry.open_artifact import Activations, Maps
from wsssbed_hub.utils.errors import UsageError

STRIDE = 8
MAPS = ("integral", "accumulated", "attention")


@dataclass(frozen=True)
class Recipe:
    """The published training on VOC (``train.sh``, ``train+.sh``, ``train_iam.sh``).

    Raises UsageError for maps that nobody makes, no epochs, and images that fill no cell.
    """

    initial: str = "vgg16-397923af.pth"  # ImageNet, for the trunk
    maps: str = "integral"  # or accumulated, attention
    width: int = 64  # channels of the first stage
    new_deviation: float = 0.01  # of new weights; 0: as wide as He et al. draw them
    batch_norm: bool = False  # before each ReLU, for a trunk that starts from nothing
    short_side: int = 224  # pixels, the aspect kept; no crop, no flip
    squares: bool = False  # images are squeezed to squares of short_side, and a step is one pass
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    shuffle: bool = False  # else list order in every epoch
    batch_size: int = 5  # images of a step (iter_size), each in a pass of its own, of its own size
    epochs: int = 15  # of the attention network
    integral_epochs: int = 15
    steps: int = 0  # in all, instead of the epochs, if not 0; each network has its share
    learning_rate: float = 1e-3  # of the trunk's weights
    bias_factor: float = 2.0  # times the rate of weights
    new_factor: float = 10.0  # times the trunk's rate
    drops: tuple[float, ...] = (10 / 15,)  # after so much of a training the rate drops
    decay: float = 0.1
    momentum: float = 0.9  # Nesterov's
    weight_decay: float = 5e-4
    first_epoch: int = 1  # from which on maps are accumulated, counted from 0
    drop_layer: bool = False
    drop_rate: float = 0.5  # how often it is applied
    drop_threshold: float = 0.6  # of a map's 255 levels
    integral_scale: float = 5.0  # of the loss: gradients of iter_size images are added up
    positive_above: float = 0.001  # target of the integral loss, from which a pixel is positive
    negative_weight: float = 1.0  # of the integral loss's negative part

    def __post_init__(self) -> None:
        if self.maps not in MAPS:
            raise UsageError(f"maps={self.maps}: choose one of {', '.join(MAPS)}.")
        if self.epochs < 1 or self.integral_epochs < 1:
            raise UsageError(
                f"epochs={self.epochs}, integral_epochs={self.integral_epochs}: choose at least 1; "
                "maps=attention does without the integral network."
            )
        if self.short_side < STRIDE:
            raise UsageError(f"short_side={self.short_side}: choose at least {STRIDE} pixels.")

    def unread(self) -> Iterator[tuple[Collection[str], str]]:
        """Fields that change nothing beside the others, and why."""
        if self.maps != "integral":
            idle = ["integral_epochs", "integral_scale", "positive_above", "negative_weight"]
            yield idle, f"With maps={self.maps} there is no integral network"
        if not self.drop_layer:
            yield ["drop_rate", "drop_threshold"], "There is no drop layer (--set drop_layer=true)"
            if self.maps == "attention":
                yield ["first_epoch"], "With maps=attention nothing is made of accumulated maps"


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        width=8,
        new_deviation=0.0,
        batch_norm=True,
        short_side=96,
        squares=True,
        shuffle=True,
        batch_size=8,
        epochs=12,
        integral_epochs=5,
        first_epoch=7,  # what the classifier shows before is noise, and a maximum would keep it
        learning_rate=0.03,
        new_factor=1.0,
        integral_scale=1.0,
    ),
}

PUBLISHED_NAMES: Rules = (
    *EXTRA_NAMES,
    (r"^(trunk|extra)\.", r"backbone.\1."),
    (r"^extra_convs\.6\.", "classifier."),
)


class ClassMaps(nn.Module):
    """float[N, 3, H, W] (RGB, ImageNet mean and deviation) to class maps float[N, C, H/8, W/8],
    of any sign. The attention network and the integral network are both this."""

    def __init__(self, classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.backbone = Vgg16Extra(
            width=recipe.width,
            activation=norm_and_relu if recipe.batch_norm else None,
            deviation=recipe.new_deviation or None,
        )
        self.classifier = nn.Conv2d(self.backbone.channels, classes, 1)
        deviation = recipe.new_deviation or self.backbone.channels**-0.5
        nn.init.normal_(self.classifier.weight, std=deviation)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.backbone(image)["extra3"])

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint, of either network. Raises HubError if it does not fit."""
        load_strictly(self, state, "The OAA checkpoint", PUBLISHED_NAMES)


def scores_of(maps: Tensor) -> Tensor:
    """Class scores float[N, C], before the sigmoid: the mean of each map."""
    return maps.mean((2, 3))


def classification_loss(scores: Tensor, label: Tensor) -> Tensor:
    """Sigmoid cross entropy, mean over classes and images; ``label`` is multi-hot float[N, C]."""
    return F.binary_cross_entropy_with_logits(scores, label)


def integral_loss(
    maps: Tensor, target: Tensor, positive_above: float = 0.001, negative_weight: float = 1.0
) -> Tensor:
    """Cross entropy of class maps and targets, float[N, C, h, w], these in 0..1.

    Pixels with a target above ``positive_above`` are positive: the mean over them of -t log p. The
    mean of -log(1 - p) over all others is added. Both count over all images and classes together,
    and a part without pixels is 0.
    """
    positive = target > positive_above
    zero = maps.new_zeros(())
    taken = torch.where(positive, -target * F.logsigmoid(maps), zero).sum()
    left = torch.where(positive, zero, -(1 - maps.sigmoid() + 1e-8).log()).sum()
    number = positive.sum()
    return taken / number.clamp(min=1) + negative_weight * left / (~positive).sum().clamp(min=1)


def scaled(rgb: np.ndarray, recipe: Recipe) -> np.ndarray:
    """uint8[H, W, 3] at the size that the networks take."""
    side = recipe.short_side
    return resize_bicubic(rgb, side, side) if recipe.squares else resize_short_side(rgb, side)


class Views:
    """Images with their labels, each of its own size."""

    def __init__(self, data: CamData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def view(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """float32[3, h, w] as the networks take it."""
        rgb = scaled(self.data.read_image(self.data.image_ids[index]), self.recipe)
        return imagenet_rgb(colour_jitter(rgb, rng, *self.recipe.jitter))


class LabelledViews(Views):
    """For the attention network."""

    def __init__(self, data: CamData, recipe: Recipe, accumulation: Accumulation) -> None:
        super().__init__(data, recipe)
        self.accumulation = accumulation

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, h, w], ``label`` float32[C].

        The attention-drop layer leaves the mean colour where the image's maps were high.
        """
        recipe, image_id = self.recipe, self.data.image_ids[index]
        image = self.view(index, rng)
        if recipe.drop_layer and rng.random() < recipe.drop_rate:
            found = self.accumulation.current(image_id)
            if found is not None:
                maps, there = found
                image[:, drop_mask(maps[there], image.shape[1:], recipe.drop_threshold)] = 0
        label = np.zeros(self.data.num_classes, np.float32)
        label[list(self.data.image_labels(image_id))] = 1
        return {"image": image, "label": label}


class AccumulatedViews(Views):
    """For the integral network."""

    def __init__(self, data: CamData, recipe: Recipe, accumulation: Accumulation) -> None:
        super().__init__(data, recipe)
        self.accumulation = accumulation

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, h, w], ``target`` float32[C, h/8, w/8] in 0..1."""
        image, image_id = self.view(index, rng), self.data.image_ids[index]
        class_ids = self.data.image_labels(image_id)
        found = self.accumulation.accumulated(image_id)
        if found is None:
            height, width = (side // STRIDE for side in image.shape[1:])
            maps = np.zeros((len(class_ids), height, width), np.uint8)
        else:
            maps, _ = found
        return {"image": image, "target": integral_targets(maps, class_ids, self.data.num_classes)}


class Method(CamMethod):
    card = manifest.MethodCitation(
        name="OAA",
        paper="https://openaccess.thecvf.com/content_ICCV_2019/html/"
        "Jiang_Integral_Object_Mining_via_Online_Attention_Accumulation_ICCV_2019_paper.html",
        code="https://github.com/PengtaoJiang/OAA-PyTorch",
        licence="CC-BY-NC-SA-4.0",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "vgg16-397923af.pth",
            "https://download.pytorch.org/models/vgg16-397923af.pth, torchvision's",
        )
    }
    recipe: Recipe

    def build(self) -> ClassMaps:
        return ClassMaps(self.num_classes, self.recipe)

    def load_initial(self, network: ClassMaps, state: Mapping[str, Tensor], name: str) -> None:
        network.backbone.load_initial(state, "The initial VGG-16")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        return timm_imagenet()

    def phases(self, network: ClassMaps, data: CamData) -> Iterator[Phase]:
        yield from Mining(self, network, data).phases()

    def activations(self, network: ClassMaps, image: Image, data: CamData) -> np.ndarray:
        """uint8[K, H, W]: of one scale, without flip; or what was accumulated in training."""
        size = image.rgb.shape[:2]
        if self.recipe.maps == "accumulated":
            found = self._accumulated.read(image.id)
            assert isinstance(found, Activations)
            return zoom(found.activations, size)
        pixels = imagenet_rgb(scaled(image.rgb, self.recipe))
        maps = network(torch.from_numpy(pixels)[None].to(network.classifier.weight.device))[0]
        return attention_maps(maps[image.class_ids].float().cpu().numpy(), size)

    @cached_property
    def _accumulated(self) -> Maps:
        folder = self.kept / "accumulated"
        if not folder.is_dir():
            raise UsageError(
                "maps=accumulated: these maps are made in training, and there are none of the "
                "weights that were given. Leave --weights out, or choose maps=integral."
            )
        return open_scratch_maps(folder, "cam")


class Mining:
    """The training of both networks, one after the other in the same module.

    Raises UsageError for accumulated maps after fewer epochs than accumulate any.
    """

    def __init__(self, method: Method, network: ClassMaps, data: CamData) -> None:
        self.method, self.network, self.data = method, network, data
        self.recipe = method.recipe
        self.initial = {key: value.clone() for key, value in network.state_dict().items()}
        self.attention_steps, self.integral_steps, self.epochs = self._lengths()
        recipe = self.recipe
        self.accumulation = Accumulation(
            self.epochs, first=recipe.first_epoch, drop=recipe.drop_layer
        )
        if recipe.maps == "accumulated" and self.epochs <= recipe.first_epoch:
            raise UsageError(
                f"After {self.epochs} epochs no maps are accumulated, since those before epoch "
                f"{recipe.first_epoch} (counted from 0) are not. Choose more --epochs or --steps."
            )

    def phases(self) -> Iterator[Phase]:
        """``attention network`` and, for its maps, ``integral network``."""
        keeps = self.recipe.maps == "accumulated"
        yield self._phase(
            "attention network",
            self.attention_steps,
            LabelledViews(self.data, self.recipe, self.accumulation),
            self._attention_loss,
            memories=self.accumulation.memories,
            epoch_end=self._keep_maps if keeps else None,
        )
        if self.recipe.maps == "integral":
            yield self._phase(
                "integral network",
                self.integral_steps,
                AccumulatedViews(self.data, self.recipe, self.accumulation),
                self._integral_loss,
                prepare=self._begin_again,
            )

    def _phase(self, name: str, steps: int, views: Any, loss: Any, **more: Any) -> Phase:
        recipe = self.recipe
        drops = [round(share * steps) for share in recipe.drops]

        def optimizer() -> torch.optim.Optimizer:
            groups = rate_groups(
                self.network,
                self.network.backbone.trunk,
                recipe.learning_rate,
                new_factor=recipe.new_factor,
                bias_factor=recipe.bias_factor,
            )
            return torch.optim.SGD(
                groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
            )

        return Phase(
            name=name,
            steps=steps,
            sources={"views": Source(views, recipe.batch_size, shuffle=recipe.shuffle)},
            optimizer=optimizer,
            schedule=lambda step: recipe.decay ** sum(step >= drop for drop in drops),
            loss=loss,
            accumulate=1 if recipe.squares else recipe.batch_size,
            **more,
        )

    def _lengths(self) -> tuple[int, int, int]:
        """Steps of the attention network and of the integral one, and whole epochs of the first."""
        recipe, images = self.recipe, len(self.data.image_ids)
        epochs = recipe.epochs
        integral = recipe.integral_epochs if recipe.maps == "integral" else 0
        if not recipe.steps:
            steps = [math.ceil(n * images / recipe.batch_size) for n in (epochs, integral)]
            return steps[0], steps[1], epochs
        attention = recipe.steps * epochs // (epochs + integral)
        return attention, recipe.steps - attention, attention * recipe.batch_size // images

    def _attention_loss(self, batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
        batch = batches["views"]
        maps = self.network(batch["image"]).float()
        places = zip(batch["index"].tolist(), batch["epoch"].tolist(), strict=True)
        for (index, epoch), found, label in zip(places, maps.detach(), batch["label"], strict=True):
            self.accumulation.see(self.data.image_ids[index], found, label, epoch)
        return {"classification": classification_loss(scores_of(maps), batch["label"])}

    def _integral_loss(self, batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
        recipe, batch = self.recipe, batches["views"]
        maps = self.network(batch["image"]).float()
        loss = integral_loss(maps, batch["target"], recipe.positive_above, recipe.negative_weight)
        return {"integral": recipe.integral_scale * loss}

    def _begin_again(self) -> None:
        self.network.load_state_dict(self.initial)
        without = sum(self.accumulation.accumulated(one) is None for one in self.data.image_ids)
        if without:
            say(
                f"No maps were accumulated of {without:,} of {len(self.data.image_ids):,} images, "
                f"in {self.epochs} whole epochs: their targets are zero."
            )

    def _keep_maps(self, epoch: int) -> None:
        if epoch != self.epochs - 1:
            return

        def kept(image_id: str) -> Activations:
            found = self.accumulation.accumulated(image_id)
            assert found is not None  # of the last epoch
            return Activations(found[0], np.array(self.data.image_labels(image_id), np.int64))

        folder = self.method.kept / "accumulated"
        write_scratch_maps(folder, "cam", self.data.image_ids, self.network, kept)
