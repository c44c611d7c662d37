"""VST: Visual Saliency Transformer, for RGB images.

Paper: Liu, Zhang, Wan, Shao, Han, ICCV 2021, arXiv 2104.12099. Code: nnizhang/VST, folder RGB_VST,
without a licence file. Backbone T2T-ViT_t-14.

What the published code does and the paper does not tell, or only in passing: a performer block
after each fusion of encoder and decoder tokens; transformer layers with one head at 1/8 and 1/4;
position table and random features of the performers are kept in the checkpoint and not trained;
images are squeezed to a square; a map is cut to 8 bits before it is resized to the image's size.

Where this file departs from the published code:

- Contours are computed from the masks. The authors offer theirs for download, made by EGNet's
  script: where a mask (above 128) differs between the two neighbours of a pixel, in a row or a
  column. ``contours`` is written after that rule; the files themselves were not compared. As there
  they are drawn at the mask's own size, before it is resized.
- The images come in a new order in every epoch, and none is left out. There the sampler's epoch is
  never set, so that all epochs have one order and the last four images of it are never seen.
- The ImageNet classifier, which the checkpoints carry and nothing uses, is no part of the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.backbones import t2t_vit
from stages.backbones.state import Rules, load_strictly
from stages.backbones.t2t_vit import Block, Performer, T2TViT, normed_mlp
from stages.ops.augment import random_crop
from stages.ops.images import imagenet_rgb, resize_bilinear, resize_nearest
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.sod import SodData, SodMethod
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

TASKS = ("saliency", "contour")
STRIDES = (16, 8, 4, 1)  # of the maps, in the order in which they are made
Tokens = dict[str, Tensor]  # by task


@dataclass(frozen=True)
class Recipe:
    """The published training.

    The first five are of train_test_eval.py and dataset.py, the network of Models/, the rest of
    train_test_eval.py and Training.py. Raises UsageError for sizes that cannot be.
    """

    initial: str = "80.7_T2T_ViT_t_14.pth.tar"  # for the backbone, its moving average
    size: int = 224  # pixels a side that the network takes
    scaled: int = 256  # pixels a side of the square that training crops come from
    flip: float = 0.5
    batch_size: int = 11
    width: int = 384
    heads: int = 6  # at 1/16; there is one at 1/8 and 1/4
    ratio: int = 3  # inner width of an MLP over its outer width
    depth: int = 14  # blocks of the backbone
    convertor_depth: int = 4
    decoder_depths: tuple[int, int, int] = (4, 2, 2)  # at 1/16, 1/8 and 1/4
    token_width: int = 64  # of the tokens at 1/8 and 1/4
    features: int = 32  # random ones, of a performer
    dropout: float = 0.1  # in the performers
    loss_weights: tuple[float, float, float, float] = (0.5, 0.5, 0.8, 1.0)  # from 1/16 to 1/1
    steps: int = 60_000
    drops: tuple[float, ...] = (0.5, 0.75)  # shares of the steps after which the rate drops
    decay: float = 0.1
    learning_rate: float = 1e-4
    backbone_rate: float = 0.1  # times the learning rate
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.size % 16 or self.scaled < self.size:
            raise UsageError(
                f"size={self.size}, scaled={self.scaled}: the size is a multiple of 16, and crops "
                "of it come from images scaled to at least as much."
            )
        if self.width % self.heads:
            raise UsageError(f"width={self.width} is no multiple of heads={self.heads}.")


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        size=96,
        scaled=108,
        width=48,
        heads=3,
        ratio=2,
        depth=2,
        convertor_depth=1,
        decoder_depths=(1, 1, 1),
        token_width=16,
        features=8,
        steps=480,
        drops=(0.75, 0.92),  # so short a training has no time to learn slowly
        learning_rate=2e-3,
        backbone_rate=1.0,
        batch_size=8,
    ),
}


def _task(contour: str | None) -> str:
    return "contour" if contour else "saliency"


def _in_normed_mlp(module: str, norm_or_mlp: str, layer: str | None) -> str:
    place = "0" if norm_or_mlp == "norm" else {"0": "1", "2": "3"}[str(layer)]
    return f"{module}.{place}."


def _prediction(at: re.Match[str]) -> str:
    level = STRIDES.index(int(at[1]))
    return f"{'' if level == 3 else f'levels.{level}.'}predict.{_task(at[2])}."


_MLP = r"\.(norm|mlp)\.(?:([02])\.)?"  # a layer norm, or one of the two layers after it
PUBLISHED_NAMES: Rules = (
    (r"^rgb_backbone\.", "backbone."),
    (r"^transformer\.encoderlayer\.(rgb_)?", "convertor."),
    (r"^token_trans\.(saliency|contour)_token$", r"tokens.\1"),
    (r"^token_trans\.mlp_s\.", "levels.0.mlp."),
    (r"^token_trans\.", "levels.0."),
    (r"^decoder\.token_pre_1_8\.", "levels.1."),
    (r"^decoder\.token_pre_1_4\.", "levels.2."),
    (rf"^(levels\.\d){_MLP}", lambda at: _in_normed_mlp(f"{at[1]}.expand", at[2], at[3])),
    (r"^decoder\.(norm|mlp)(_c)?\.", r"levels.0.\g<1>2\2."),  # as the other levels call them
    (r"^(levels\.\d)\.(norm|mlp)2(_c)?\.", lambda at: f"{at[1]}.reduce.{_task(at[3])}.{at[2]}."),
    (rf"(\.reduce\.\w+){_MLP}", lambda at: _in_normed_mlp(at[1], at[2], at[3])),
    (r"\.(saliency|contour)_token_pre\.", r".attention.\1."),
    (r"\.encoderlayer\.", ".encoder."),
    (r"^decoder\.pre_1_(\d+)(_c)?\.", _prediction),
    (r"^decoder\.decoder3(_c)?\.", lambda at: f"reverse_t2t.{_task(at[1])}."),
    (r"^decoder\.decoder([12])\.", lambda at: f"fusions.{int(at[1]) - 1}."),
    (rf"^(fusions\.\d){_MLP}", lambda at: _in_normed_mlp(f"{at[1]}.reduce", at[2], at[3])),
    (r"^(fusions\.\d)\.project\.", r"\1.reverse_t2t.project."),
    (r"\.concatFuse\.", ".fuse."),
    (r"\.att\.w$", ".performer.directions"),
    (rf"\.att{_MLP}", lambda at: _in_normed_mlp(".performer.mlp", at[1], at[2])),
    (r"\.att\.", ".performer."),
    *t2t_vit.PUBLISHED_NAMES,
)


class Encoder(nn.Module):
    """Transformer blocks and a layer norm."""

    def __init__(self, width: int, depth: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ReverseT2T(nn.Module):
    """Each token becomes a window; where windows overlap they are added (section 3.3)."""

    def __init__(self, width: int, window: tuple[int, int, int]) -> None:
        super().__init__()
        self.side, self.stride, self.padding = window
        self.project = nn.Linear(width, width * self.side**2)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of a square to those of one ``stride`` times as wide."""
        size = self.stride * round(x.shape[1] ** 0.5)
        windows = self.project(x).transpose(1, 2)
        plane = F.fold(windows, (size, size), self.side, padding=self.padding, stride=self.stride)
        return plane.flatten(2).transpose(1, 2)


class Fusion(nn.Module):
    """Tokens of the level below, at twice the resolution, with those of the encoder."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.token_width
        self.reduce = normed_mlp(recipe.width, width, width)
        self.reverse_t2t = ReverseT2T(width, (3, 2, 1))
        self.fuse = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        self.performer = Performer(width, recipe.features, recipe.dropout)

    def forward(self, below: Tensor, encoder: Tensor) -> Tensor:
        decoder = self.reverse_t2t(self.reduce(below))
        return self.performer(self.fuse(torch.cat([decoder, encoder], 2)))


class PatchTaskAttention(nn.Module):
    """Attention of the patches to a task token, each as much as a sigmoid says (section 3.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, patches: Tensor, token: Tensor) -> Tensor:
        x, token = self.norm(patches), self.norm(token)
        key = self.k(token) * token.shape[-1] ** -0.5
        gate = (self.q(x) @ key.transpose(1, 2)).sigmoid()
        return patches + self.proj(gate @ self.v(token))


class Level(nn.Module):
    """One resolution of the decoder: shared patches and both task tokens, then a map per task."""

    def __init__(self, recipe: Recipe, inputs: int, hidden: int, depth: int, heads: int) -> None:
        super().__init__()
        width, outputs = recipe.width, recipe.token_width
        self.expand = normed_mlp(inputs, width, width)
        self.encoder = Encoder(width, depth, heads, recipe.ratio)
        self.attention = nn.ModuleDict({task: PatchTaskAttention(width) for task in TASKS})
        self.reduce = nn.ModuleDict({task: normed_mlp(width, hidden, outputs) for task in TASKS})
        self.predict = nn.ModuleDict({task: nn.Linear(outputs, 1) for task in TASKS})

    def forward(self, patches: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens, Tokens, Tokens]:
        """Patches and task tokens for the next level; the patches of each task, and its logits."""
        saliency, contour = (tokens[task].expand(len(patches), -1, -1) for task in TASKS)
        x = self.encoder(torch.cat([saliency, self.expand(patches), contour], 1))
        patches, tokens = x[:, 1:-1], {"saliency": x[:, :1], "contour": x[:, -1:]}
        of_tasks = {
            task: self.reduce[task](self.attention[task](patches, tokens[task])) for task in TASKS
        }
        logits = {task: _plane(self.predict[task](of_tasks[task])) for task in TASKS}
        return patches, tokens, of_tasks, logits


def _plane(values: Tensor) -> Tensor:
    """float[N, S * S, 1] to float[N, 1, S, S]."""
    side = round(values.shape[1] ** 0.5)
    return values.transpose(1, 2).unflatten(2, (side, side))


class VST(nn.Module):
    """float[N, 3, S, S], S the recipe's size, to logits of each task: float[N, 1, s, s] at
    1/16, 1/8, 1/4 and 1/1 of S, in this order."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width, narrow, heads = recipe.width, recipe.token_width, recipe.heads
        self.backbone = T2TViT(recipe.size, width, recipe.depth, heads, recipe.ratio, narrow)
        self.convertor = Encoder(width, recipe.convertor_depth, heads, recipe.ratio)
        self.tokens = nn.ParameterDict({task: torch.zeros(1, 1, width) for task in TASKS})
        coarsest, *finer = recipe.decoder_depths
        self.levels = nn.ModuleList(
            [
                Level(recipe, width, width, coarsest, heads),
                *(Level(recipe, narrow, narrow, depth, 1) for depth in finer),
            ]
        )
        self.fusions = nn.ModuleList(Fusion(recipe) for _ in finer)
        self.reverse_t2t = nn.ModuleDict({task: ReverseT2T(narrow, (7, 4, 2)) for task in TASKS})
        self.predict = nn.ModuleDict({task: nn.Linear(narrow, 1) for task in TASKS})
        self._draw()

    def forward(self, image: Tensor) -> dict[str, list[Tensor]]:
        patches, *encoder = self.backbone(image)
        patches, tokens = self.convertor(patches), dict(self.tokens.items())
        maps = []
        for number, level in enumerate(self.levels):
            if number:
                patches = self.fusions[number - 1](patches, encoder[number - 1])
            patches, tokens, of_tasks, logits = level(patches, tokens)
            maps.append(logits)
        finest = {task: self.reverse_t2t[task](of_tasks[task]) for task in TASKS}
        maps.append({task: _plane(self.predict[task](finest[task])) for task in TASKS})
        return {task: [logits[task] for logits in maps] for task in TASKS}

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint, with its position table and random features.

        Raises HubError if it does not fit exactly.
        """
        state = t2t_vit.without_head(state, "rgb_backbone.")
        load_strictly(self, state, "The VST checkpoint", PUBLISHED_NAMES)

    def _draw(self) -> None:
        """New linear layers as the published code draws them."""
        first: Any = self.levels[0]
        for encoder in (self.convertor, first.encoder):
            t2t_vit.draw_linear(encoder)
        decoder = [first.reduce, first.predict, *list(self.levels)[1:]]
        for part in (*decoder, self.fusions, self.reverse_t2t, self.predict):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)


def contours(mask: np.ndarray) -> np.ndarray:
    """uint8[H, W], 255 where the mask uint8[H, W] (above 128) has a gradient, else 0.

    The gradient is that of central differences, of one-sided ones at the borders (EGNet,
    arXiv 1908.08297, its script sal2edge).
    """
    inside = mask > 128
    found = np.zeros_like(inside)
    for axis, length in enumerate(mask.shape):
        places = np.arange(length)
        before, after = np.maximum(places - 1, 0), np.minimum(places + 1, length - 1)
        found |= inside.take(before, axis) != inside.take(after, axis)
    return np.where(found, 255, 0).astype(np.uint8)


def level_losses(logits: Sequence[Tensor], target: Tensor) -> list[Tensor]:
    """Mean cross entropy of the maps of one task, from 1/16 to 1/1 (section 3.4).

    ``target`` is float[N, 1, S, S] in [0, 1]; of a cell the pixel under its centre counts.
    """
    losses = []
    for stride, found in zip(STRIDES, logits, strict=True):
        cells = target[..., stride // 2 :: stride, stride // 2 :: stride]
        losses.append(F.binary_cross_entropy_with_logits(found.float(), cells))
    return losses


class Crops:
    """Images squeezed to a square, with mask and contours, cropped and mirrored at random."""

    def __init__(self, data: SodData, recipe: Recipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, S, S] normalised, ``saliency`` and ``contour`` float32[1, S, S].

        Raises HubError if image or mask cannot be read, or if they differ in size.
        """
        image_id, side = self.data.image_ids[index], self.recipe.scaled
        rgb, mask = self.data.read_image(image_id), self.data.read_mask(image_id)
        targets = [resize_nearest(plane, side, side) for plane in (mask, contours(mask))]
        planes = np.stack([*resize_bilinear(rgb, side, side).transpose(2, 0, 1), *targets])
        planes = random_crop(planes, self.recipe.size, rng)
        if rng.random() < self.recipe.flip:
            planes = planes[:, :, ::-1]
        saliency, contour = planes[3:, None].astype(np.float32) / np.float32(255)
        image = imagenet_rgb(planes[:3].transpose(1, 2, 0))
        return {"image": image, "saliency": saliency, "contour": contour}


class Method(SodMethod):
    card = manifest.MethodCitation(
        name="VST",
        paper="https://arxiv.org/abs/2104.12099",
        code="https://github.com/nnizhang/VST",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "80.7_T2T_ViT_t_14.pth.tar",
            "the releases of https://github.com/yitu-opensource/T2T-ViT",
        )
    }
    recipe: Recipe

    def build(self) -> VST:
        return VST(self.recipe)

    def load_initial(self, network: VST, state: Mapping[str, Tensor], name: str) -> None:
        network.backbone.load_initial(state, "The initial T2T-ViT")

    def phases(self, network: VST, data: SodData) -> Iterator[Phase]:
        recipe = self.recipe
        drops = [round(share * recipe.steps) for share in recipe.drops]

        def optimizer() -> torch.optim.Optimizer:
            backbone = list(network.backbone.parameters())
            theirs = {id(parameter) for parameter in backbone}
            others = [p for p in network.parameters() if id(p) not in theirs]
            groups: list[dict[str, Any]] = [
                {"params": others},
                {"params": backbone, "lr": recipe.learning_rate * recipe.backbone_rate},
            ]
            # The fused form is rounded alike on every processor.
            return torch.optim.Adam(groups, lr=recipe.learning_rate, fused=True)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            batch = batches["crops"]
            terms = {}
            for task, logits in network(batch["image"]).items():
                levels = level_losses(logits, batch[task])
                weighted = zip(recipe.loss_weights, levels, strict=True)
                terms[task] = torch.stack([weight * term for weight, term in weighted]).sum()
            return terms

        yield Phase(
            name="training",
            steps=recipe.steps,
            sources={"crops": Source(Crops(data, recipe), recipe.batch_size)},
            optimizer=optimizer,
            schedule=lambda step: recipe.decay ** sum(step >= drop for drop in drops),
            loss=loss,
            accumulate=recipe.accumulate,
        )

    def saliency(self, network: VST, image: Image) -> np.ndarray:
        """uint8[H, W]: the sigmoid times 255, cut off, then resized to the image's size."""
        height, width = image.rgb.shape[:2]
        size = self.recipe.size
        pixels = torch.from_numpy(imagenet_rgb(resize_bilinear(image.rgb, size, size)))
        logits = network(pixels[None].to(network.tokens["saliency"].device))["saliency"][-1]
        levels = (logits[0, 0].sigmoid() * 255).byte().cpu().numpy()
        return resize_bilinear(levels, height, width)
