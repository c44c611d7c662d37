"""EDAM: embedded discriminative attention mechanism for weakly supervised semantic segmentation.

Paper: Wu et al., CVPR 2021 (its text was not at hand: what is said of it is from the authors' code
and answers). Code: allenwu97/EDAM (no licence found).

A layer on ResNet-38 gives each position a mask for each class and one for the background, whose
squares sum to 1. The features under a class's mask are the tokens of that class, of both images of
a pair in one sequence; each class has a transformer block of its own, and a classifier that looks
at the mean token of each image. Only image-level labels are learnt. The masks are the activation
maps; the transformer is there for the training alone.

What the published code does, and is kept: features without a last ReLU, and the absolute value of
the masks: the sign of a class's response is arbitrary. The mask of the background is used by the
normalisation alone. Saliency comes in when labels are made, not here.

Where this file departs from it:

- The list of pairs of the published training (``EDAM_train.txt``) cannot be had. Here every image
  in turn is a pair's first; the second has one of its classes, each as likely, and is drawn anew
  each time: ``partners`` is ``others`` for another image than the first (the first if no other has
  the class), ``all`` for any. 25 epochs of 1,322 steps are those of the code; an image is seen 25
  times, about half of them as the second.
- All classes are computed in the order of their numbers. There the present ones come first, which
  permutes the scores and changes nothing.
- ``accumulate``: one pair at a time, as each of four GPUs there; several processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.backbones.resnet38 import PUBLISHED_NAMES as BACKBONE_NAMES
from stages.backbones.resnet38 import ResNet38
from stages.backbones.state import Rules, load_strictly
from stages.cam import CamData
from stages.cam._edam_attention import Block, Embedding
from stages.cam._pairs import partner
from stages.cam._resnet38 import ResNet38Method, classification_loss, prepare_backbone
from stages.cam._views import Views, multi_hot
from stages.ops.images import multi_scale_maps
from stages.runtime.method import Batch, Image, Phase, Source
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import HubError, UsageError

STRIDE = 8
IMAGES = 2  # of a pair
TABLE = "embedding.position.pe"  # of positions, in the authors' checkpoints
TABLE_DIFFERENCE = 1e-3  # at most, of numbers up to 1: sines of large angles in float32


@dataclass(frozen=True)
class Recipe:
    """The published training on VOC (``train_EDAM_cls.py`` with the README's options)."""

    initial: str = "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"  # ResNet-38, for the backbone
    freeze_early: bool = True  # the first convolution and stage 2
    frozen_norm: bool = True  # batch norm keeps its statistics, scale and shift
    width: int = 64  # channels of the backbone's first convolution; all others follow
    blocks: tuple[int, ...] = (3, 3, 6, 3)
    backbone_dropout: tuple[float, float] = (0.3, 0.5)  # stages 6 and 7
    hidden: int = 128  # channels of a token
    heads: int = 2
    widening: int = 4  # of the two layers after the attention
    depth: int = 1  # blocks of each class
    dropout: float = 0.1  # of the embedding and the transformers
    image_rows: int = 5  # of the table that tells the images apart; two are used
    recompute: bool = False  # the transformers' values, for the gradient: less memory, more time
    partners: Literal["others", "all"] = "others"
    steps: int = 33_050
    batch_size: int = 4  # pairs
    accumulate: int = 4
    learning_rate: float = 0.001  # the README's; the program's default is 0.01
    new_factor: float = 10.0  # of the masks, the projection and the classifiers
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: int = 2_000  # steps
    warm_up_from: float = 0.1
    power: float = 0.9
    long_side: tuple[int, int] = (256, 512)
    crop: int = 368
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.3, 0.3, 0.3, 0.1)
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)

    def __post_init__(self) -> None:
        if self.hidden % 2 or self.hidden % self.heads:
            raise UsageError(
                f"hidden={self.hidden}, heads={self.heads}: the channels of a token are even and "
                "shared evenly among the heads."
            )
        if self.image_rows < IMAGES:
            raise UsageError(f"image_rows={self.image_rows}: {IMAGES} or more.")

    @property
    def grid(self) -> int:
        """Positions along a side of a crop."""
        return -(-self.crop // STRIDE)


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        freeze_early=False,
        frozen_norm=False,
        width=8,
        blocks=(1, 1, 1, 1),
        backbone_dropout=(0.0, 0.0),
        hidden=32,
        dropout=0.0,
        steps=250,
        accumulate=1,
        learning_rate=0.02,
        new_factor=1.0,
        warm_up=25,
        long_side=(96, 144),
        crop=96,
        scales=(1.0, 0.5, 1.5),
    ),
}

_NORMS = {"input": "norm1", "output": "norm2"}
PUBLISHED_NAMES: Rules = (
    *BACKBONE_NAMES,
    (r"^(stem|stage\d|norm)\.", r"backbone.\1."),
    (r"^mask_layer\.", "mask."),
    (r"^d_d\.", "project."),
    (r"^fc_list\.", "classifiers."),
    (r"^embedding\.segment\.weight$", "embedding.image"),
    (r"^trans_list\.(\d+)\.(\d+)\.", r"transformers.\1.\2."),
    (r"\.attention\.linear_layers\.", ".attention.linear."),
    (r"\.attention\.output_linear\.", ".attention.output."),
    (r"\.feed_forward\.w_1\.", ".wide."),
    (r"\.feed_forward\.w_2\.", ".narrow."),
    (r"\.(input|output)_sublayer\.norm\.", lambda at: f".{_NORMS[at[1]]}."),
    (r"\.a_2$", ".gain"),
    (r"\.b_2$", ".shift"),
)


class Edam(nn.Module):
    """Pairs of images float[N, 2, 3, H, W] (RGB, ImageNet mean and deviation; H and W those of the
    recipe's crop) to logits float[N, 2, classes]."""

    def __init__(self, classes: int, recipe: Recipe) -> None:
        super().__init__()
        width, channels = recipe.width, recipe.hidden
        self.recompute = recipe.recompute
        self.backbone = ResNet38(width, recipe.blocks, recipe.backbone_dropout, final_relu=False)
        features = self.backbone.channels
        self.mask = nn.Conv2d(features, classes + 1, 3, padding=1, bias=False)
        self.project = nn.Conv2d(features, channels, 1, bias=False)
        self.embedding = Embedding(recipe.grid, channels, IMAGES, recipe.image_rows, recipe.dropout)
        inner = channels * recipe.widening
        self.transformers = nn.ModuleList(
            nn.Sequential(
                *(Block(channels, recipe.heads, inner, recipe.dropout) for _ in range(recipe.depth))
            )
            for _ in range(classes)
        )
        self.classifiers = nn.ModuleList(
            nn.Conv2d(channels, 1, 1, bias=False) for _ in range(classes)
        )
        for layer in (self.mask, self.project, *self.classifiers):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        features = self.backbone(pairs.flatten(0, 1)).conv6
        masks, projected = self.masks_of(features), self.project(features)
        scores = [
            self._score(number, (projected * masks[:, number, None]).unflatten(0, (-1, IMAGES)))
            for number in range(len(self.classifiers))
        ]
        return torch.stack(scores, 2)

    def _score(self, number: int, features: Tensor) -> Tensor:
        """Scores float[N, 2] of one class for float[N, 2, channels, h, w] under its mask."""
        sequence = self.embedding(features.flatten(3).transpose(2, 3))
        transformer: Callable[[Tensor], Tensor] = self.transformers[number]
        if self.recompute and torch.is_grad_enabled():
            found = checkpoint(transformer, sequence, use_reentrant=False)
        else:
            found = transformer(sequence)
        pooled = found.unflatten(1, (IMAGES, -1)).mean(2)
        return self.classifiers[number](pooled.flatten(0, 1)[..., None, None]).view(-1, IMAGES)

    def maps(self, image: Tensor) -> Tensor:
        """Masks float[N, classes + 1, ceil(H/8), ceil(W/8)], 0 to 1, of images of any size."""
        return self.masks_of(self.backbone(image).conv6)

    def masks_of(self, features: Tensor) -> Tensor:
        """``maps`` of the backbone's features."""
        return F.normalize(self.mask(features), dim=1).abs()

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint, with or without the table of positions, which is a constant.

        Raises HubError if it does not fit exactly.
        """
        source = "The EDAM checkpoint"
        state = {key.removeprefix("module."): value for key, value in state.items()}
        table, own = state.pop(TABLE, None), self.embedding.position
        if table is not None:
            if table.shape != own.shape:
                raise HubError(
                    f"{source} is for another size: its positions {TABLE} are "
                    f"{tuple(table.shape)}, those of this recipe's crop {tuple(own.shape)}."
                )
            if (table.to(own) - own).abs().max() > TABLE_DIFFERENCE:
                raise HubError(f"{source} has other positions ({TABLE}) than sines and cosines.")
        load_strictly(self, state, source, PUBLISHED_NAMES)


class Pairs:
    """Random views of each image and of another one that shares a class with it."""

    def __init__(self, data: CamData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe
        self.views = Views(data, recipe)
        # Here, so that the processes that load images need not each read all labels.
        _ = data.images_by_class

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``images`` float32[2, 3, crop, crop] as the network takes them, ``label``
        float32[2, C]."""
        first = self.data.image_ids[index]
        pair = first, partner(self.data, first, rng, itself=self.recipe.partners == "all")
        return {
            "images": np.stack([self.views.view(image_id, rng)["image"] for image_id in pair]),
            "label": np.stack([multi_hot(self.data, image_id) for image_id in pair]),
        }


class Method(ResNet38Method):
    card = manifest.MethodCitation(
        name="EDAM",
        paper="https://openaccess.thecvf.com/content/CVPR2021/html/"
        "Wu_Embedded_Discriminative_Attention_Mechanism_for_Weakly_Supervised_Semantic_"
        "Segmentation_CVPR_2021_paper.html",
        code="https://github.com/allenwu97/EDAM",
    )
    recipes = RECIPES
    recipe: Recipe

    def build(self) -> Edam:
        recipe = self.recipe
        network = Edam(self.num_classes, recipe)
        prepare_backbone(network, frozen_norm=recipe.frozen_norm, freeze_early=recipe.freeze_early)
        return network

    def phases(self, network: Edam, data: CamData) -> Iterator[Phase]:
        recipe = self.recipe

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            pairs = batches["pairs"]
            return {"classification": classification_loss(network(pairs["images"]), pairs["label"])}

        yield Phase(
            name="classifier",
            steps=recipe.steps,
            sources={"pairs": Source(Pairs(data, recipe), recipe.batch_size, drop_last=True)},
            optimizer=lambda: self._optimizer(network),
            schedule=self._rate,
            loss=loss,
            accumulate=recipe.accumulate,
        )

    def _optimizer(self, network: Edam) -> torch.optim.Optimizer:
        recipe = self.recipe
        modules = (network.mask, network.project, network.classifiers)
        new = [parameter for module in modules for parameter in module.parameters()]
        known = {id(parameter) for parameter in new}
        others = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
        return torch.optim.SGD(
            [
                {"params": others, "lr": recipe.learning_rate},
                {"params": new, "lr": recipe.learning_rate * recipe.new_factor},
            ],
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    def _rate(self, step: int) -> float:
        """Up to 1 along a line, then down to 0."""
        recipe = self.recipe
        if step < recipe.warm_up:
            return recipe.warm_up_from + (1 - recipe.warm_up_from) * step / recipe.warm_up
        done = (step - recipe.warm_up) / (recipe.steps - recipe.warm_up)
        return (1 - done) ** recipe.power

    def activations(self, network: Edam, image: Image, data: CamData) -> np.ndarray:
        """uint8[K, H, W]: masks, summed over scales and mirror images, divided by the maximum."""
        device = network.mask.weight.device
        return multi_scale_maps(
            lambda pair: network.maps(pair.to(device)),
            image.rgb,
            image.class_ids,
            self.recipe.scales,
            epsilon=0.0,
        )
