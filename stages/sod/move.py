"""MOVE: unsupervised movable object segmentation and detection.

Paper: Bielski, Favaro, NeurIPS 2022, arXiv 2210.07920. Code: adambielski/move-seg (no licence
found). DINO ViT-S/8 features; no masks of any kind are seen.

An object can be moved a little without the picture looking wrong. A segmenter proposes a mask; the
object is cut out, the hole filled in by a masked autoencoder (MAE), and the object put back a few
pixels away. A discriminator learns to tell such pictures from pictures in which nothing moved; the
segmenter learns to deceive it.

What the published code does: features are those of DINO's last block but one, behind a layer norm
that is trained anew; batch norm of the head learns its statistics in both turns; every epoch begins
with the discriminator's turn. ``copy_real`` and ``binary_inpainting`` are options of it. Of its
others, features of a pretrained MAE and a self-supervised classifier for the discriminator are not
here.

Where this file departs from the published code:

- The random projections of the discriminator are in checkpoints and weights; there a resumed
  training draws them anew, and is right only with the same seed.
- The encoding of an image is computed once where it is needed twice, pictures that nobody looks at
  are not made, and what cannot learn is computed without gradients; the numbers are the same.
- Maps have the size of the image, as the published evaluation makes them of the published files
  (bilinearly, by Pillow), and the solver's are cut to [0, 1] where there they wrap around.
- An epoch of a single batch has a turn for each, one epoch after the other.

The recipe ``shapes`` needs no pretrained weights: its DINO, MAE and classifier are small networks
of the same kinds. The MAE, without which no hole is filled, first learns to guess patches of the
images (``mae_training``); what its encoder learnt stands in for DINO's ``features``, since the
segmenter learns next to nothing on those of a network that nobody trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional as F

from stages.backbones.dino import DinoViT
from stages.backbones.imagenet import timm_model
from stages.backbones.mae import MaskedAutoencoder
from stages.backbones.state import Rules, load_strictly
from stages.ops.augment import random_resized_crop
from stages.ops.bilateral_solver import SolverSettings, binary_object, solve_bilaterally
from stages.ops.determinism import generator
from stages.ops.images import imagenet_rgb, resize_bicubic
from stages.ops.resizing import resize
from stages.runtime.method import Batch, Frozen, HasFrozen, Image, Initial, Phase, Source
from stages.sod import SodData, SodMethod
from stages.sod._move_composition import Composition, draw_shifts
from stages.sod._move_discriminator import Discriminator, augmented, classifier_features
from stages.sod._move_segmenter import Segmenter
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError

DISCRIMINATOR, SEGMENTER = 0, 1  # the optimisers, in the order of their turns
WARM_UP = 50  # steps of the MAE's training
FIRST_MASKS = 16  # that tell how the head's first logits are spread
POOL = 16  # pixels; the mask losses also look at means and maxima of such squares
STAND_IN_SEED = 0  # of helpers without pretrained weights, so that `random` means one network


@dataclass(frozen=True)
class Recipe:
    """The published training (defaults of train.py) and map-making (infer.py)."""

    initial_dino: str = "dino_deitsmall8_pretrain.pth"
    initial_mae: str = "mae_visualize_vit_large_ganloss.pth"
    initial_classifier: str = "timm"  # ImageNet's
    dino_width: int = 384
    dino_depth: int = 12
    dino_heads: int = 6
    skipped_blocks: int = 1  # of DINO, at its end
    features: Literal["dino", "mae"] = "dino"  # the second: of the MAE that is trained here
    head: tuple[int, ...] = (192, 128, 128, 128)  # all but the last double the resolution
    mae_patch: int = 16
    mae_width: int = 1024
    mae_depth: int = 24
    mae_heads: int = 16
    mae_decoder_width: int = 512
    mae_decoder_depth: int = 8
    mae_decoder_heads: int = 16
    mae_training: float = 0.0  # steps on the images beforehand, for every one of the others
    mae_hidden: float = 0.25  # share of the patches that it guesses in these
    mae_rate: float = 2e-3
    classifier: str = "tf_efficientnet_lite0"  # timm's name
    discriminator_width: int = 64
    discriminator_side: int = 224
    crop: int = 224
    crop_scale: tuple[float, float] = (0.9, 1.0)  # share of the image's area
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    shift: float = 0.125  # largest, as a share of the side
    copy_real: bool = False  # what is not inpainted from the image instead of its autoencoding
    binary_inpainting: bool = False  # patches are kept or not; then no gradient through the hole
    losses_on: Literal["shifted", "original"] = "shifted"  # mask
    first_logits: float = 0.0  # deviation of the first masks' logits, and how far they lie below 0;
    # at 0 they are as they come
    binary_weight: float = 12.5
    binary_warmup: int = 2500  # segmenter steps
    min_area: float = 0.05
    min_area_weight: float = 100.0
    max_area: float = 1.0
    max_area_weight: float = 0.0
    brightness: float = 0.5  # of the augmentation before the discriminator, as are the next two
    saturation: float = 1.0
    contrast: float = 0.5
    epochs: int = 1000
    steps: int = 0  # of both turns, instead of epochs, if not 0
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    discriminator_rate: float = 2e-4
    discriminator_betas: tuple[float, float] = (0.0, 0.99)
    discriminator_decay: float = 0.01  # torch's default
    test_side: int = 448  # the shorter one
    solver: Literal["none", "soft", "binary"] = "none"
    solver_spatial: float = 16
    solver_luma: float = 16
    solver_chroma: float = 8


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial_dino="none",
        initial_mae="none",
        initial_classifier="none",
        dino_width=48,
        dino_depth=3,
        dino_heads=3,
        head=(24, 16, 16, 16),
        mae_width=48,
        mae_depth=2,
        mae_heads=3,
        mae_decoder_width=48,
        mae_decoder_depth=2,
        mae_decoder_heads=3,
        features="mae",
        mae_patch=8,
        mae_training=3.0,
        classifier="test_efficientnet",
        discriminator_width=8,
        discriminator_side=128,
        crop=64,
        first_logits=1.5,
        binary_warmup=0,  # else all masks become one faint veil
        min_area=0.06,
        max_area=0.3,
        max_area_weight=6.0,  # without it backgrounds are moved as often as objects
        steps=300,
        batch_size=8,
        learning_rate=1e-3,
        discriminator_rate=1e-3,
        test_side=64,
    ),
}

PUBLISHED_DINO = "segmenter.feature_extractor.model."
PUBLISHED_NAMES: Rules = (
    (r"^segmenter\.feature_extractor\.norm\.", "norm."),
    (r"^segmenter\.segmenter_head\.model\.([0-2])\.1\.", r"head.blocks.\1.conv."),
    (r"^segmenter\.segmenter_head\.model\.([0-2])\.2\.", r"head.blocks.\1.norm."),
    (r"^segmenter\.segmenter_head\.model\.3\.0\.", "head.blocks.3.conv."),
    (r"^segmenter\.segmenter_head\.model\.3\.1\.", "head.blocks.3.norm."),
    (r"^segmenter\.segmenter_head\.model\.4\.", "head.score."),
)


class Move(HasFrozen):
    """Segmenter, discriminator, and the MAE if it is trained here.

    One that was trained before is there from ``load_initial`` on: maps need none.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        discriminator: Discriminator,
        trained_mae: MaskedAutoencoder | None = None,
        *,
        on_mae: bool = False,
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.discriminator = discriminator
        self.trained_mae = trained_mae
        self.on_mae = on_mae
        self.mae: Frozen[MaskedAutoencoder] | None = None

    def logits(self, image: Tensor) -> Tensor:
        """float[N, 1, H, W] of the masks of float[N, 3, H, W], sides multiples of 8."""
        if not self.on_mae:
            return self.segmenter(image)
        assert self.trained_mae is not None
        with torch.no_grad():
            found = self.trained_mae.features(image)
        return self.segmenter.head(self.segmenter.normed(found))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint: the segmenter, with or without DINO's frozen weights.

        Raises HubError if it does not fit exactly.
        """
        dino, rest = {}, {}
        for key, value in state.items():
            name = key.removeprefix("module.")
            if name.startswith(PUBLISHED_DINO):
                dino[name.removeprefix(PUBLISHED_DINO)] = value
            else:
                rest[name] = value
        load_strictly(self.segmenter, rest, "The MOVE checkpoint", PUBLISHED_NAMES)
        if dino:
            self.segmenter.dino.network.load_published(dino)


def at_three_scales(mask: Tensor) -> list[Tensor]:
    """The mask float[N, 1, H, W], and the means and maxima of its squares."""
    return [mask, F.avg_pool2d(mask, POOL), F.max_pool2d(mask, POOL)]


def binary_loss(mask: Tensor) -> Tensor:
    """How far a mask is from 0 and 1 (equation of the binarisation loss)."""
    return torch.minimum(mask, 1 - mask).mean()


def min_area_loss(mask: Tensor, area: float) -> Tensor:
    """How much smaller than ``area`` the objects are."""
    return F.relu(area - mask.mean((1, 2, 3))).mean()


def max_area_loss(mask: Tensor, area: float) -> Tensor:
    return F.relu(mask.mean((1, 2, 3)) - area).mean()


def mask_losses(mask: Tensor, recipe: Recipe) -> dict[str, list[Tensor]]:
    """Unweighted, of each kind at three scales."""
    scales = at_three_scales(mask)
    return {
        "binary": [binary_loss(scale) for scale in scales],
        "min area": [min_area_loss(scale, recipe.min_area) for scale in scales],
        "max area": [max_area_loss(scale, recipe.max_area) for scale in scales],
    }


def loss_weights(recipe: Recipe, step: int) -> dict[str, float]:
    """Those of ``mask_losses`` at a step of the segmenter's, counted from 0."""
    warm = min(1.0, step / recipe.binary_warmup) if recipe.binary_warmup else 1.0
    return {
        "binary": recipe.binary_weight * warm,
        "min area": recipe.min_area_weight,
        "max area": recipe.max_area_weight,
    }


def hinge(logits: Tensor, sign: int) -> Tensor:
    """The discriminator's loss: ``sign`` is 1 for real pictures, -1 for fakes."""
    return F.relu(1 - sign * logits.float()).mean()


class Crops:
    """Large random parts of images, mirrored at random."""

    def __init__(self, data: SodData, recipe: Recipe) -> None:
        self.data, self.recipe = data, recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, crop, crop]."""
        recipe = self.recipe
        rgb = self.data.read_image(self.data.image_ids[index])
        rgb = random_resized_crop(rgb, recipe.crop, recipe.crop_scale, recipe.crop_aspect, rng)
        return {"image": imagenet_rgb(rgb[:, ::-1] if rng.random() < recipe.flip else rgb)}


@contextmanager
def _same_stand_in() -> Iterator[None]:
    """Random weights drawn here are the same in every training."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(STAND_IN_SEED)
        yield


class Method(SodMethod):
    card = manifest.MethodCitation(
        name="MOVE",
        paper="https://arxiv.org/abs/2210.07920",
        code="https://github.com/adambielski/move-seg",
    )
    supervision = "unsupervised"
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "dino": Initial(
            "dino_deitsmall8_pretrain.pth",
            "ViT-S/8, backbone only, in the README of https://github.com/facebookresearch/dino",
            frozen=True,
        ),
        # Frozen too, but of use to the training alone: maps need only DINO beside the weights.
        "mae": Initial(
            "mae_visualize_vit_large_ganloss.pth",
            "the demo with GAN loss of https://github.com/facebookresearch/mae",
        ),
        "classifier": Initial("EfficientNet-lite0, trained on ImageNet", "timm has it"),
    }
    recipe: Recipe

    @classmethod
    def remark(cls, recipe: Recipe) -> str:
        published = RECIPES["published"]
        names = {"dino": "DINO ViT-S/8", "mae": "the MAE", "classifier": "EfficientNet-lite0"}
        changed = {
            name.partition("_")[0]
            for name, value in asdict(recipe).items()
            if value != getattr(published, name)
        }
        other = [name for part, name in names.items() if part in changed]
        return f"; with small networks of our own in place of {', '.join(other)}" if other else ""

    def build(self) -> Move:
        recipe = self.recipe
        fits = (recipe.mae_width, recipe.mae_patch) == (recipe.dino_width, 8)
        if recipe.features == "mae" and not (recipe.mae_training and fits):
            raise UsageError(
                "features=mae are those of an MAE that is trained here: mae_training above 0, "
                "mae_patch 8 and mae_width as dino_width."
            )
        with _same_stand_in():
            dino = Frozen(DinoViT(recipe.dino_width, recipe.dino_depth, recipe.dino_heads))
            features = Frozen(classifier_features(recipe.classifier))
        return Move(
            Segmenter(dino, recipe.skipped_blocks, recipe.head),
            Discriminator(features, recipe.discriminator_width, recipe.discriminator_side),
            self._mae() if recipe.mae_training else None,
            on_mae=recipe.features == "mae",
        )

    def load_initial(self, network: Move, state: Mapping[str, Tensor], name: str) -> None:
        if name == "dino":
            network.segmenter.dino.network.load_published(state)
        elif name == "mae":
            mae = network.trained_mae or self._mae()
            mae.load_published(state)
            network.mae = None if network.trained_mae else Frozen(mae)
        else:
            network.discriminator.load_classifier(state)

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        """DINO's own weights, and ImageNet's for the discriminator, as published."""
        if name == "mae":
            raise UsageError(
                "timm has no decoder for the MAE of MOVE. Name its file with --init mae=FILE."
            )
        model = "vit_small_patch8_224.dino" if name == "dino" else self.recipe.classifier
        weights: Mapping[str, Tensor] = timm_model(model).state_dict()
        return weights

    def phases(self, network: Move, data: SodData) -> Iterator[Phase]:
        recipe = self.recipe
        crops = Crops(data, recipe)
        batches = len(crops) // recipe.batch_size
        if not batches:
            raise UsageError(
                f"{data.name} has {len(crops)} images, and a batch is {recipe.batch_size}: choose "
                "a smaller --batch-size."
            )
        steps = recipe.steps or recipe.epochs * batches
        if network.trained_mae is not None:
            yield self._guessing(network.trained_mae, crops, steps)
        elif network.mae is None:
            with _same_stand_in():
                network.mae = Frozen(self._mae().to(network.segmenter.norm.weight.device))
        turns = tuple(n % 2 for n in range(max(2, batches)))

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            image = batches["crops"]["image"]
            rounds, rest = divmod(step, len(turns))
            if turns[rest] == DISCRIMINATOR:
                return self.discriminator_losses(network, image)
            before = rounds * turns.count(SEGMENTER) + turns[:rest].count(SEGMENTER)
            return self.segmenter_losses(network, image, before)

        yield Phase(
            name="adversarial",
            steps=steps,
            sources={"crops": Source(crops, recipe.batch_size, drop_last=True)},
            optimizer=lambda: self.optimizers(network),
            schedule=lambda step: 1.0,
            loss=loss,
            accumulate=recipe.accumulate,
            turns=turns,
            prepare=lambda: self._spread_first_masks(network, crops),
        )

    def _spread_first_masks(self, network: Move, crops: Crops) -> None:
        """Rescale the head's last layer, so that a sixth of the first masks is above one half."""
        spread = self.recipe.first_logits
        if not spread:
            return
        rng = generator("first masks")
        some = rng.integers(len(crops), size=FIRST_MASKS)
        images = np.stack([crops.sample(int(index), rng)["image"] for index in some])
        score = network.segmenter.head.score
        assert score.bias is not None
        with torch.no_grad():
            logits = network.logits(torch.from_numpy(images).to(score.weight.device))
            factor = spread / logits.std()
            score.weight *= factor
            score.bias.copy_((score.bias - logits.mean()) * factor - spread)

    def _guessing(self, mae: MaskedAutoencoder, crops: Crops, steps: int) -> Phase:
        """The MAE learns to fill holes, beside ``steps`` of the adversarial training."""
        recipe = self.recipe
        steps = math.ceil(recipe.mae_training * steps)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            image = batches["crops"]["image"]
            hidden = torch.rand(len(image), mae.patch_embed.num_patches) < recipe.mae_hidden
            return {"guessing": mae.guessing_loss(image, hidden.to(image.device))}

        return Phase(
            name="inpainting",
            steps=steps,
            sources={"crops": Source(crops, recipe.batch_size, drop_last=True)},
            optimizer=lambda: torch.optim.AdamW(mae.parameters(), recipe.mae_rate, fused=True),
            schedule=lambda step: min(1, (step + 1) / WARM_UP) * (1 - step / steps),
            loss=loss,
        )

    def optimizers(self, network: Move) -> list[torch.optim.Optimizer]:
        """The discriminator's and the segmenter's."""
        recipe = self.recipe
        return [
            torch.optim.AdamW(
                (p for p in part.parameters() if p.requires_grad),
                lr=rate,
                betas=betas,
                weight_decay=decay,
                fused=True,
            )
            for part, rate, betas, decay in (
                (
                    network.discriminator,
                    recipe.discriminator_rate,
                    recipe.discriminator_betas,
                    recipe.discriminator_decay,
                ),
                (network.segmenter, recipe.learning_rate, recipe.betas, recipe.weight_decay),
            )
        ]

    def discriminator_losses(self, network: Move, image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            made = self.compose(network, image)
            kinds = ((-1, made.composed), (-1, made.copied), (1, made.real), (1, made.unmoved))
        found = [hinge(self.judge(network, picture), sign) for sign, picture in kinds]
        return {"fake": (found[0] + found[1]) / 2, "real": (found[2] + found[3]) / 2}

    def segmenter_losses(self, network: Move, image: Tensor, step: int) -> dict[str, Tensor]:
        """``step`` counts those of the segmenter."""
        recipe = self.recipe
        made = self.compose(network, image)
        mask = made.shifted_mask if recipe.losses_on == "shifted" else made.mask
        weights = loss_weights(recipe, step)
        terms = {
            kind: weights[kind] * torch.stack(scales).sum()
            for kind, scales in mask_losses(mask, recipe).items()
        }
        return {"adversarial": -self.judge(network, made.composed).float().mean(), **terms}

    def compose(self, network: Move, image: Tensor) -> Composition:
        """The segmenter's masks, moved at random."""
        recipe = self.recipe
        mae = network.trained_mae
        if mae is None:
            assert network.mae is not None
            mae = network.mae.network
        return Composition(
            mae.requires_grad_(False),
            image,
            network.logits(image).float().sigmoid(),
            draw_shifts(len(image), recipe.shift * image.shape[2]),
            copy_real=recipe.copy_real,
            binary_inpainting=recipe.binary_inpainting,
        )

    def judge(self, network: Move, image: Tensor) -> Tensor:
        """The discriminator's logits."""
        recipe = self.recipe
        seen = augmented(image, recipe.brightness, recipe.saturation, recipe.contrast)
        logits: Tensor = network.discriminator(seen)
        return logits

    def saliency(self, network: Move, image: Image) -> np.ndarray:
        """uint8[H, W]: the mask times 255, cut off, at the image's size; the solver's if asked."""
        recipe = self.recipe
        height, width = image.rgb.shape[:2]
        levels = self.levels(network, image.rgb)
        if recipe.solver == "none":
            resized = PilImage.fromarray(levels).resize(
                (width, height), PilImage.Resampling.BILINEAR
            )
            return np.asarray(resized)
        shares = torch.from_numpy(levels)[None, None].float() / 255
        settings = SolverSettings(recipe.solver_spatial, recipe.solver_luma, recipe.solver_chroma)
        solved = solve_bilaterally(
            image.rgb, resize(shares, (height, width))[0, 0].numpy(), settings
        )
        if recipe.solver == "binary":
            solved = binary_object(solved)
        return (np.clip(solved, 0, 1) * 255).astype(np.uint8)

    def levels(self, network: Move, rgb: np.ndarray) -> np.ndarray:
        """uint8[h, w]: the published map, whose shorter side has ``test_side`` pixels."""
        pixels = prepared(rgb, self.recipe.test_side)
        height, width = pixels.shape[1:]
        patch: int = network.segmenter.dino.network.patch
        pixels = np.pad(pixels, ((0, 0), (0, -height % patch), (0, -width % patch)), "reflect")
        device = network.segmenter.norm.weight.device
        mask = network.logits(torch.from_numpy(pixels)[None].to(device))[0, 0].sigmoid()
        return (mask[:height, :width] * 255).to(torch.uint8).cpu().numpy()

    def _mae(self) -> MaskedAutoencoder:
        recipe = self.recipe
        return MaskedAutoencoder(
            side=recipe.crop,
            patch=recipe.mae_patch,
            width=recipe.mae_width,
            depth=recipe.mae_depth,
            heads=recipe.mae_heads,
            decoder_width=recipe.mae_decoder_width,
            decoder_depth=recipe.mae_decoder_depth,
            decoder_heads=recipe.mae_decoder_heads,
        )


def prepared(rgb: np.ndarray, side: int) -> np.ndarray:
    """float32[3, h, w] of uint8[H, W, 3], resized so that the shorter side has ``side`` pixels."""
    shorter = min(rgb.shape[:2])
    height, width = (side * length // shorter for length in rgb.shape[:2])
    return imagenet_rgb(resize_bicubic(rgb, height, width))
