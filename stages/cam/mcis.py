"""MCIS: mining cross-image semantics for weakly supervised semantic segmentation.

Paper: Sun, Wang, Dai, Van Gool, ECCV 2020, arXiv 2007.01947. Code: GuoleiSun/MCIS_wsss, folder
``Classifier`` (no licence found).

OAA's VGG-16 sees two images that share a class. Each position of one attends to all of the other
(co-attention), and what it finds there, instead of its own feature, has to tell the classes that
both images have. What is left of its own feature where a gate closes has to tell the classes that
the other image lacks (contrastive co-attention). The activation maps are those of the co-attention.

Where the published code differs from the paper, the code's doing is the default:

- ``self_pairs``: the image is paired with three copies of itself too, mirrored, smaller and larger:
  six more losses.
- ``contrastive_from``: the contrastive losses begin with the third epoch; ``contrastive``: only
  where some pair of the batch has a class that is not shared. The other pairs then count, with no
  class at all as their label.
- The classes of the co-attention have a layer of their own. The rates of all layers with "extra" in
  their name are tenfold. (The paper's weight decay and steps may be others.)
- ``epochs``: the training goes on to epoch 15, but the published maps are made by the checkpoint of
  epoch 10, counted from 0. No rate depends on the last epoch.
- A map is the mean of five, of which the mirrored image, the copies and the images that share a
  class are admitted where they are sure enough (``admitted``); a map that is not still counts as
  zero. The paper has neither the copies nor this.

Where this file departs from the code:

- The images related to a test image are drawn by ``related_seed``, the image's id and the class,
  so that maps repeat; there they are others every time.
- A batch that an epoch's images do not fill goes on into the next epoch; there it stays smaller.
- An image without a class, of which VOC has none, is paired with itself.
- Hiding random patches, which has the probability 0 there, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones.state import Rules, load_strictly
from stages.backbones.vgg import EXTRA_NAMES, Vgg16Extra, norm_and_relu, rate_groups, timm_imagenet
from stages.cam import CamData, CamMethod
from stages.cam._pairs import drawn, partner
from stages.cam._views import multi_hot
from stages.ops.augment import colour_jitter
from stages.ops.determinism import generator
from stages.ops.images import imagenet_rgb, resize_bilinear, resize_maps_bicubic
from stages.ops.resizing import resize
from stages.runtime import distributed
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

STRIDE = 8
EPSILON = 1e-8
COPIES = ("mirrored", "small", "large")
CONTRASTIVE = ("contrastive1", "contrastive2")  # terms of the loss
Feature = Callable[[Sequence[np.ndarray]], Tensor]  # of inputs of one size


@dataclass(frozen=True)
class Recipe:
    """The published training on VOC (``train.sh``, ``test.sh``)."""

    initial: str = "vgg16-397923af.pth"  # ImageNet, for the trunk
    width: int = 64  # channels of the first stage; all others follow
    batch_norm: bool = False  # after each convolution, for networks that start from nothing
    size: int = 256  # images become squares of so many pixels
    copies: tuple[float, float] = (0.75, 2.0)  # sizes of the copies of an image
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)  # not of the copies
    self_pairs: bool = True
    contrastive: Literal["unshared", "always"] = "unshared"
    contrastive_from: int = 2  # epochs
    epochs: int = 11
    steps: int = 0  # instead of epochs, if not 0; what an epoch begins then has the same share
    batch_size: int = 5  # pairs
    learning_rate: float = 1e-3
    new_factor: float = 10.0  # of all but the trunk
    bias_factor: float = 2.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    drops: tuple[int, ...] = (5, 10)  # epochs
    decay: float = 0.1
    related: int = 3  # images for each class of a test image
    related_seed: int = 0
    admitted: float = 0.1  # the sigmoid of a map's mean has to be above

    def __post_init__(self) -> None:
        least = int(self.size * min(1.0, *self.copies))
        if least < STRIDE:
            raise UsageError(
                f"size={self.size}, copies={self.copies}: the smallest copy has {least} pixels; "
                f"{STRIDE} are needed."
            )
        if self.related < 1:
            raise UsageError(f"related={self.related}: 1 or more.")


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        width=8,
        batch_norm=True,
        size=80,
        copies=(0.75, 1.25),
        contrastive="always",  # many pairs have one class, the same
        contrastive_from=5,
        steps=200,
        batch_size=8,
        learning_rate=0.005,
        new_factor=1.0,
        bias_factor=1.0,
        drops=(8,),
    ),
}

PUBLISHED_NAMES: Rules = (
    (r"^extra_linear_e\.", "affinity."),
    (r"^extra_gate\.", "co_classifier."),
    (r"^extra_gate_merge\.", "gate."),
    (r"^vgg\.extra_last_conv\.", "classifier."),
    (r"^vgg\.", ""),
    *((pattern, f"backbone.{ours}") for pattern, ours in EXTRA_NAMES),
)


class CoAttention(nn.Module):
    """The co-attention classifier; images are RGB with ImageNet's mean and deviation.

    float[N, 3, H, W] to features float[N, C, h, w] of stride 8, C eight times the width. The other
    methods take features; two of them may differ in their sizes, and one may stand for many.
    """

    def __init__(self, classes: int, width: int = 64, batch_norm: bool = False) -> None:
        super().__init__()
        activation = norm_and_relu if batch_norm else None
        self.backbone = Vgg16Extra(width=width, activation=activation, deviation=None)
        channels = self.backbone.channels
        self.classifier = nn.Conv2d(channels, classes, 1)
        nn.init.kaiming_normal_(self.classifier.weight, mode="fan_out", nonlinearity="relu")
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)
        self.affinity = nn.Linear(channels, channels, bias=False)
        self.co_classifier = nn.Conv2d(channels, classes, 1, bias=False)
        self.gate = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.backbone(image)["extra3"]

    def affinities(self, one: Tensor, other: Tensor) -> Tensor:
        """float[N, h1 w1, h2 w2]: of each position of one to each of the other."""
        return self.affinity(one.flatten(2).transpose(1, 2)) @ other.flatten(2)

    def attend(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """What each of two finds in the other, in place of its own feature and of its shape."""
        affinity = self.affinities(one, other)
        in_other = other.flatten(2) @ affinity.softmax(2).transpose(1, 2)
        in_one = one.flatten(2) @ affinity.softmax(1)
        return in_other.unflatten(2, one.shape[2:]), in_one.unflatten(2, other.shape[2:])

    def co_maps(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps of both, logits float[N, classes, h, w], of what they find in each other."""
        first, second = self.attend(one, other)
        return self.co_classifier(first), self.co_classifier(second)

    def gates(self, attended: Tensor) -> Tensor:
        """float[N, 1, h, w], 0 to 1: how much of a position the other image explains."""
        return self.gate(attended).sigmoid()

    def contrastive_maps(self, own: Tensor, attended: Tensor) -> Tensor:
        """Class maps of what the other image does not explain, logits float[N, classes, h, w]."""
        return self.co_classifier(own * (1 - self.gates(attended)))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The MCIS checkpoint", PUBLISHED_NAMES)


def classification_loss(maps: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Sigmoid cross entropy of the maps' means, mean over classes, images and all of the maps.

    Maps are logits float[N, C, h, w], labels multi-hot float[N, C].
    """
    scores = torch.cat([one.float().mean((2, 3)) for one in maps])
    return F.binary_cross_entropy_with_logits(scores, torch.cat([*labels]))


def pair_losses(
    network: CoAttention, features: Sequence[Tensor], labels: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The four losses of pairs, of two features and two multi-hot labels float[N, C].

    Of the classes of each image alone; of what both share; of what is in the first, and in the
    second image alone.
    """
    common = labels[0] * labels[1]
    attended = network.attend(*features)
    co_maps = [network.co_classifier(one) for one in attended]
    found = {
        "basic": classification_loss([network.classifier(one) for one in features], labels),
        "co": classification_loss(co_maps, [common] * 2),
    }
    for n, name in enumerate(CONTRASTIVE):
        maps = network.contrastive_maps(features[n], attended[n])
        found[name] = classification_loss([maps], [labels[n] - common])
    return found


def self_losses(
    network: CoAttention, feature: Tensor, copy: Tensor, label: Tensor
) -> dict[str, Tensor]:
    """The two losses of images and a copy of each, which share all of their classes."""
    maps = [network.classifier(one) for one in (feature, copy)]
    return {
        "self_basic": classification_loss(maps, [label] * 2),
        "self_co": classification_loss(network.co_maps(feature, copy), [label] * 2),
    }


def squared(rgb: np.ndarray, size: int) -> np.ndarray:
    """float32[3, size, size] as the network takes it, the aspect not kept."""
    return imagenet_rgb(resize_bilinear(rgb, size, size))


def copies(rgb: np.ndarray, recipe: Recipe) -> dict[str, np.ndarray]:
    """The mirrored, the smaller and the larger copy of an image, as the network takes them."""
    small, large = (squared(rgb, int(recipe.size * factor)) for factor in recipe.copies)
    mirrored = squared(rgb, recipe.size)[..., ::-1].copy()
    return dict(zip(COPIES, (mirrored, small, large), strict=True))


class Pairs:
    """Each image, another one that shares a class with it, and its copies, with labels."""

    def __init__(self, data: CamData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe
        # Here, so that the processes that load images need not each read all labels.
        _ = data.images_by_class

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image1``, ``image2`` and, of the first, ``mirrored``, ``small`` and ``large``, as the
        network takes them; ``label1`` and ``label2`` float32[C]."""
        first = self.data.image_ids[index]
        second = partner(self.data, first, rng)
        recipe, rgb = self.recipe, self.data.read_image(first)
        found = copies(rgb, recipe) if recipe.self_pairs else {}
        for number, (image_id, picture) in enumerate(
            ((first, rgb), (second, self.data.read_image(second))), start=1
        ):
            picture = resize_bilinear(picture, recipe.size, recipe.size)
            found[f"image{number}"] = imagenet_rgb(colour_jitter(picture, rng, *recipe.jitter))
            found[f"label{number}"] = multi_hot(self.data, image_id)
        return found


def merged(maps: Sequence[Tensor], admitted: float) -> np.ndarray:
    """uint8[K, h, w] of maps of one size, float32[K, h, w] each, any scale.

    Every map, without what is negative, is brought to 0..255 class by class; those after the first
    are added where the sigmoid of their mean is above ``admitted``. The sum is divided by the
    number of all maps and rounded down.
    """
    total = torch.zeros_like(maps[0])
    for number, one in enumerate(maps):
        sure = one.mean((1, 2), keepdim=True).sigmoid() > admitted
        positive = F.relu(one)
        scaled = positive / (positive.amax((1, 2), keepdim=True) + EPSILON) * 255
        total += torch.where(sure | (number == 0), scaled, 0)
    return (total / len(maps)).to(torch.uint8).numpy()


class Method(CamMethod):
    card = manifest.MethodCitation(
        name="MCIS",
        paper="https://arxiv.org/abs/2007.01947",
        code="https://github.com/GuoleiSun/MCIS_wsss",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "vgg16-397923af.pth",
            "https://download.pytorch.org/models/vgg16-397923af.pth, torchvision's",
        )
    }
    recipe: Recipe

    def build(self) -> CoAttention:
        return CoAttention(self.num_classes, self.recipe.width, self.recipe.batch_norm)

    def load_initial(self, network: CoAttention, state: Mapping[str, Tensor], name: str) -> None:
        """torchvision's ImageNet VGG-16."""
        network.backbone.load_initial(state, "The initial VGG-16")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """torchvision's, which are the published ones."""
        return timm_imagenet()

    def phases(self, network: CoAttention, data: CamData) -> Iterator[Phase]:
        recipe = self.recipe
        pairs = Pairs(data, recipe)
        steps = recipe.steps or max(1, recipe.epochs * len(pairs) // recipe.batch_size)

        def begins(epoch: int) -> int:
            return steps * epoch // recipe.epochs

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            return self._losses(network, batches["pairs"], step >= begins(recipe.contrastive_from))

        def optimizer() -> torch.optim.Optimizer:
            groups = rate_groups(
                network,
                network.backbone.trunk,
                recipe.learning_rate,
                new_factor=recipe.new_factor,
                bias_factor=recipe.bias_factor,
            )
            return torch.optim.SGD(
                groups,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=recipe.nesterov,
            )

        yield Phase(
            name="co-attention",
            steps=steps,
            sources={"pairs": Source(pairs, recipe.batch_size)},
            optimizer=optimizer,
            schedule=lambda step: recipe.decay ** sum(step >= begins(e) for e in recipe.drops),
            loss=loss,
        )

    def _losses(self, network: CoAttention, batch: Batch, contrasting: bool) -> dict[str, Tensor]:
        """The terms of one step; those that do not apply are zero."""
        recipe, labels = self.recipe, (batch["label1"], batch["label2"])
        features = network(batch["image1"]), network(batch["image2"])
        found = pair_losses(network, features, labels)
        for name, label in zip(CONTRASTIVE, labels, strict=True):
            if not contrasting:
                found[name] = torch.zeros_like(found[name])
            elif recipe.contrastive == "unshared":
                # In the whole batch, whatever part of it this process has.
                unshared = distributed.all_sum((label - labels[0] * labels[1]).sum()) > 0
                found[name] = found[name] * unshared
        for name in COPIES if recipe.self_pairs else ():
            more = self_losses(network, features[0], network(batch[name]), labels[0])
            for term, value in more.items():
                found[term] = found[term] + value if term in found else value
        return found

    def activations(self, network: CoAttention, image: Image, data: CamData) -> np.ndarray:
        """uint8[K, H, W]: of the co-attention with copies of the image, and with images that share
        the class."""
        size = image.rgb.shape[:2]
        if not len(image.class_ids):
            return np.zeros((0, *size), np.uint8)
        device = network.gate.weight.device

        def feature(pictures: Sequence[np.ndarray]) -> Tensor:
            return network(torch.from_numpy(np.stack(pictures)).to(device))

        own = feature([squared(image.rgb, self.recipe.size)])
        maps = [
            *self._maps_with_copies(network, image, own, feature),
            self._maps_with_related(network, image, own, feature, data),
        ]
        return resize_maps_bicubic(merged(maps, self.recipe.admitted), *size)

    def _maps_with_copies(
        self, network: CoAttention, image: Image, own: Tensor, feature: Feature
    ) -> list[Tensor]:
        """float32[K, h, w] each: of the image beside its mirror image, and of the three copies."""
        mirrored, *others = (
            network.co_maps(own, feature([copy]))
            for copy in copies(image.rgb, self.recipe).values()
        )
        grid = own.shape[2:]
        found = [mirrored[0], mirrored[1].flip(3)]
        found += [resize(of_copy, grid, mode="bicubic") for _, of_copy in others]
        return [one[0, image.class_ids.tolist()].float().cpu() for one in found]

    def _maps_with_related(
        self, network: CoAttention, image: Image, own: Tensor, feature: Feature, data: CamData
    ) -> Tensor:
        """float32[K, h, w]: of each class, beside images that have it; the mean over these."""
        recipe, found = self.recipe, []
        for class_id in image.class_ids.tolist():
            use = (recipe.related_seed, "related", image.id, class_id)
            ids = drawn(data.images_by_class[class_id], recipe.related, generator(*use))
            pictures = [squared(data.read_image(image_id), recipe.size) for image_id in ids]
            of_image, _ = network.co_maps(own, feature(pictures))
            found.append(of_image[:, class_id].float().cpu().mean(0))
        return torch.stack(found)
