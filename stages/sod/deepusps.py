"""DeepUSPS: deep robust unsupervised saliency prediction via self-supervision.

Paper: Nguyen, Dax, Mummadi, Ngo, Nguyen, Lou, Brox, NeurIPS 2019, arXiv 1909.13055. Code: the
authors' archive, of which sally20921/DeepUSPS is a copy (no licence found).

Two stages. First the maps of each hand-crafted method are refined on their own, in rounds: a
network learns them, its predictions for the training images pass a CRF and enter a moving average
per image, and the averages of the last epoch are the labels of the next round. Then one network
learns the refined maps of all methods together. No masks are used; the network starts from weights
for Cityscapes, which are made with labels of ImageNet and Cityscapes.

The hand-crafted maps MC, HS, DSR and RBD are given with ``--maps NAME=MAPS``. MC and RBD are made
here if they are not (``_mc.py``, ``_rbd.py``); ``--set methods=mc,rbd`` leaves the other two out.

What the published code does, and is kept: no augmentation; every round starts again from the
initial weights; the average begins at zero, so that it cannot exceed 1 - 0.7^25 after 25 epochs;
the predictions are those made in training, before each step, with the batch's own statistics; the
last images of an epoch that fill no batch are left out of it.

Where the published code is at odds with itself or the paper, the code's doing is the default:

- Its readme speaks of batches of 20 and 100 accumulated images; they never accumulate there, by a
  minimum in place of a maximum. Here a step takes ``batch_size`` images, in ``accumulate`` passes.
- The third round's rate is 5e-6, not double that of the second. The CRF on the average is off.
- The mean and deviation of the input are in a file that was not published; those of the backbone's
  own code for Cityscapes are taken (``mean``, ``std``).

Where this file departs from it:

- All images of ``--data`` are learnt; there 2,500 of MSRA-B's 5,000, by a list in the archive.
- Maps have the size of the image, by Pillow's bilinear filter; there they stay at 432 x 432.
- The CRF sees the image by the nearest pixel, as Pillow 5.4 did there, whatever Pillow is here.
- An image that an epoch leaves out keeps its average; there a prediction of zero enters it.
- A training cut short (``--steps``) shares its steps among the rounds; an image that has no average
  yet keeps its label of the round before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor, nn

from stages.backbones.drn import STRIDE, DrnD
from stages.backbones.state import Rules, load_strictly
from stages.ops.densecrf import PRESETS, densecrf
from stages.ops.images import resize_bicubic, resize_nearest
from stages.runtime.artifacts import open_scratch_maps, write_scratch_maps
from stages.runtime.memory import Memory
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.sod import SodData, SodMethod
from stages.sod._mc import mc_saliency
from stages.sod._rbd import rbd_saliency
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.registry.open_artifact import Maps
from wsssbed_hub.utils.errors import UsageError

HAND_CRAFTED = ("mc", "hs", "dsr", "rbd")
MADE_HERE = {"mc": mc_saliency, "rbd": rbd_saliency}
Labels = tuple[str, int]  # a hand-crafted method, and the rounds that its maps have been through
Loss = Callable[[dict[str, Batch], int], dict[str, Tensor]]
SALIENT = 0  # the channel
EPSILON = 1e-5  # in every denominator of the loss


@dataclass(frozen=True)
class Recipe:
    """The published training (DeepUSPS.py, Par_CRF.py, utils.py)."""

    initial: str = "drn-d-105_ms_cityscapes.pth"
    width: int = 16  # channels of the first level; all others follow
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    size: int = 432  # pixels; images become squares
    mean: tuple[float, ...] = (0.290101, 0.328081, 0.286964)  # R, G, B of Cityscapes; see above
    std: tuple[float, ...] = (0.182954, 0.186566, 0.184475)
    methods: tuple[str, ...] = HAND_CRAFTED  # whose maps are learnt
    threshold_mc: float = 0.31  # of the first round, in 0..1
    threshold_hs: float = 0.36
    threshold_dsr: float = 0.23
    threshold_rbd: float = 0.25
    refined_threshold: float = 0.5  # of what came out of a round
    round_rates: tuple[float, ...] = (1e-6, 2e-6, 5e-6)  # one for each round
    round_epochs: int = 25
    round_beta2: float = 1.0  # beta squared of the F-measure
    average_keep: float = 0.7  # what of the average stays when a prediction enters it
    crf: str = "deepusps"  # the CRF's preset, in the rounds and for the maps; none: without
    fusion_rate: float = 1e-4
    fusion_epochs: int = 200
    fusion_beta2: float = 4.0
    decay_power: float = 0.9  # the rate's factor is (1 - epoch / epochs) to this power
    batch_size: int = 10  # the readme advises 10 or 20
    accumulate: int = 1
    steps: int = 0  # in all, instead of the epochs, if not 0; each round has its share


RECIPES = {
    "published": Recipe(),
    "shapes": Recipe(
        initial="none",
        width=4,
        blocks=(1, 1, 1, 1),
        size=64,
        methods=("mc", "rbd"),
        round_rates=(1e-3, 1e-3),
        round_epochs=5,
        fusion_rate=1e-3,
        fusion_epochs=10,
        batch_size=8,
    ),
}

PUBLISHED_NAMES: Rules = ((r"^base\.", "backbone.levels."),)
BACKBONE_NAMES: Rules = ((r"^(?:base\.|layer)(\d)\.", r"levels.\1."),)  # fyu/drn's two networks


class DeepUsps(nn.Module):
    """float[N, 3, H, W], RGB, normalised, to logits float[N, 2, H, W]; channel 0 is salient.

    8 divides H and W.
    """

    def __init__(self, width: int = 16, blocks: Sequence[int] = (3, 4, 23, 3)) -> None:
        super().__init__()
        self.backbone = DrnD(width, blocks)
        self.seg = nn.Conv2d(self.backbone.channels, 2, 1)
        nn.init.normal_(self.seg.weight, std=1.0)
        nn.init.zeros_(self.seg.bias)  # type: ignore[arg-type]
        self.up = nn.ConvTranspose2d(2, 2, 2 * STRIDE, STRIDE, STRIDE // 2, groups=2, bias=False)
        self.up.weight.requires_grad_(False).copy_(_bilinear(2 * STRIDE))

    def forward(self, image: Tensor) -> Tensor:
        return self.up(self.seg(self.backbone(image)))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """The authors' checkpoint. Raises HubError if it does not fit exactly."""
        load_strictly(self, state, "The DeepUSPS checkpoint", PUBLISHED_NAMES)


def _bilinear(side: int) -> Tensor:
    """float[side, side]: the kernel with which a transposed convolution interpolates."""
    line = 1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2)
    return line[:, None] * line


def soft_threshold(saliency: Tensor, label: Tensor, threshold: float) -> Tensor:
    """The prediction, forgiven where it is on the right side of a label of the same shape.

    Where ``label`` is above the threshold and the prediction above it, that becomes 1; where it is
    below and the prediction below it, 0. No gradient flows there.
    """
    sure = (label > threshold) & (saliency > label)
    not_there = (label < threshold) & (saliency < label)
    return saliency.masked_fill(sure, 1.0).masked_fill(not_there, 0.0)


def f_loss(saliency: Tensor, target: Tensor, beta2: float) -> Tensor:
    """Mean over the images of 1 - F, of soft precision and recall: float[N, H, W], in 0..1."""
    hit = (saliency * target).sum((1, 2))
    precision = hit / (saliency.sum((1, 2)) + EPSILON)
    recall = hit / (target.sum((1, 2)) + EPSILON)
    f = (1 + beta2) * precision * recall / (beta2 * precision + recall + EPSILON)
    return (1 - f).mean()


def label_loss(
    saliency: Tensor, labels: Tensor, thresholds: Sequence[float], beta2: float
) -> Tensor:
    """Mean over K labels of the F loss: float[N, H, W] and float[N, K, H, W], all in 0..1."""
    terms = [
        f_loss(soft_threshold(saliency, label, threshold), (label > threshold).float(), beta2)
        for label, threshold in zip(labels.unbind(1), thresholds, strict=True)
    ]
    return torch.stack(terms).mean()


def moving_average(old: np.ndarray | None, new: np.ndarray, keep: float) -> np.ndarray:
    """``keep`` of ``old`` (zero at first) and the rest of ``new``, float[H, W] in 0..1."""
    before = 0.0 if old is None else keep * old.astype(np.float32)
    return before + (1 - keep) * new


class Pseudolabelled:
    """Images with one label of each method, as squares."""

    def __init__(self, data: SodData, method: Method, labels: Sequence[Maps]) -> None:
        self.data = data
        self.method = method
        self.labels = labels

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, S, S] as the network takes it, ``labels`` float32[K, S, S], 0..1.

        Raises HubError if the image or a map cannot be read.
        """
        image_id, size = self.data.image_ids[index], self.method.recipe.size
        planes = [np.asarray(maps.read(image_id)) for maps in self.labels]
        labels = np.stack([resize_nearest(plane, size, size) for plane in planes])
        return {
            "image": self.method.normalised(self.data.read_image(image_id)),
            "labels": labels.astype(np.float32) / np.float32(255),
        }


class Method(SodMethod):
    card = manifest.MethodCitation(
        name="DeepUSPS",
        paper="https://arxiv.org/abs/1909.13055",
        code="https://github.com/sally20921/DeepUSPS",
    )
    recipes = RECIPES
    supervision = "unsupervised"
    takes_maps: ClassVar[Mapping[str, bool]] = {
        name: name not in MADE_HERE for name in HAND_CRAFTED
    }
    without_maps = "--set methods=mc,rbd does with those that are made here."
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "drn-d-105_ms_cityscapes.pth",
            "the links in the README of https://github.com/fyu/drn",
        )
    }
    recipe: Recipe

    def build(self) -> DeepUsps:
        recipe = self.recipe
        if recipe.size < STRIDE or recipe.size % STRIDE:
            raise UsageError(f"size={recipe.size}: choose a multiple of {STRIDE} pixels.")
        if recipe.crf != "none" and recipe.crf not in PRESETS:
            raise UsageError(f"crf={recipe.crf}: choose none or one of {', '.join(PRESETS)}.")
        return DeepUsps(recipe.width, recipe.blocks)

    def load_initial(self, network: DeepUsps, state: Mapping[str, Tensor], name: str) -> None:
        """DRN-D for Cityscapes or for ImageNet, under fyu/drn's names, without its last layers."""
        heads = ("seg.", "up.", "fc.")
        kept = {k: v for k, v in state.items() if not k.removeprefix("module.").startswith(heads)}
        load_strictly(network.backbone, kept, "The initial DRN", BACKBONE_NAMES)

    def normalised(self, rgb: np.ndarray) -> np.ndarray:
        """uint8[H, W, 3] RGB to the network's input float32[3, S, S]: bicubic, the aspect lost."""
        square = resize_bicubic(rgb, self.recipe.size, self.recipe.size)
        mean, std = (np.array(v, np.float32) for v in (self.recipe.mean, self.recipe.std))
        scaled: np.ndarray = (square.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def refined(self, probability: Tensor, rgb: np.ndarray) -> Tensor:
        """Saliency float[S, S] of float[2, S, S], after the CRF with the image uint8[H, W, 3]."""
        if self.recipe.crf != "none":
            size = self.recipe.size
            square = resize_nearest(rgb, size, size)
            probability = densecrf(probability, square, PRESETS[self.recipe.crf])
        return probability[SALIENT]

    def phases(self, network: DeepUsps, data: SodData) -> Iterator[Phase]:
        yield from SelfSupervision(self, network, data).phases()

    def square_saliency(self, network: DeepUsps, rgb: np.ndarray) -> np.ndarray:
        """The published map uint8[S, S]: one pass, softmax, CRF, times 255, rounded down."""
        pixels = torch.from_numpy(self.normalised(rgb))[None].to(network.seg.weight.device)
        probability = network(pixels)[0].float().softmax(0)
        saliency: np.ndarray = (self.refined(probability, rgb) * 255).cpu().numpy()
        return saliency.astype(np.uint8)

    def saliency(self, network: DeepUsps, image: Image) -> np.ndarray:
        """uint8[H, W]: ``square_saliency`` at the size of the image."""
        height, width = image.rgb.shape[:2]
        square = PilImage.fromarray(self.square_saliency(network, image.rgb))
        if square.size == (width, height):
            return np.asarray(square)
        return np.asarray(square.resize((width, height), PilImage.Resampling.BILINEAR))

    @classmethod
    def maps_of(cls, recipe: Recipe) -> Mapping[str, bool]:
        unknown = [name for name in recipe.methods if name not in HAND_CRAFTED]
        if unknown or not recipe.methods or len({*recipe.methods}) < len(recipe.methods):
            raise UsageError(
                f"methods={','.join(recipe.methods)}: choose some of {', '.join(HAND_CRAFTED)}, "
                "each once."
            )
        return {name: cls.takes_maps[name] for name in recipe.methods}

    @classmethod
    def remark(cls, recipe: Recipe) -> str:
        published = RECIPES["published"]
        if (recipe.width, recipe.blocks) == (published.width, published.blocks):
            return ""
        blocks = ", ".join(map(str, recipe.blocks))
        return f"; a DRN of {recipe.width} channels and {blocks} blocks in place of DRN-D-105"


class SelfSupervision:
    """The rounds of each hand-crafted method, and the fusion.

    Raises UsageError for rounds so short that no average could pass the threshold.
    """

    def __init__(self, method: Method, network: DeepUsps, data: SodData) -> None:
        self.method, self.network, self.data = method, network, data
        self.recipe = method.recipe
        self.initial = {key: value.clone() for key, value in network.state_dict().items()}
        self.average = Memory(self._take)
        self.each = max(1, len(data.image_ids) // self.recipe.batch_size)  # steps of an epoch
        self.round_steps, self.fusion_steps = self._steps()

    def phases(self) -> Iterator[Phase]:
        """``mc, round 1 of 3`` and so on, then the fusion."""
        recipe, rounds = self.recipe, len(self.recipe.round_rates)
        every = [(name, number) for name in recipe.methods for number in range(rounds)]
        made: Labels | None = None
        for name, number in every:
            yield self._phase(
                f"{name}, round {number + 1} of {rounds}",
                self.round_steps,
                recipe.round_rates[number],
                [(name, number)],
                recipe.round_beta2,
                made,
                {"average": self.average},
            )
            made = (name, number + 1)
        refined = [(name, rounds) for name in recipe.methods]
        yield self._phase(
            "fusion",
            self.fusion_steps,
            recipe.fusion_rate,
            refined,
            recipe.fusion_beta2,
            made,
            {},
        )

    def _phase(
        self,
        name: str,
        steps: int,
        rate: float,
        labels: Sequence[Labels],
        beta2: float,
        made: Labels | None,
        memories: Mapping[str, Memory],
    ) -> Phase:
        """Training from the initial weights; ``made`` are the labels that the averages become."""
        recipe = self.recipe
        epochs = max(1.0, steps / self.each)

        def sources() -> dict[str, Source]:
            samples = Pseudolabelled(self.data, self.method, [self._maps(one) for one in labels])
            return {"images": Source(samples, recipe.batch_size, drop_last=True)}

        def prepare() -> None:
            if made is not None:
                self._keep(made)
            self.average.clear()
            for one in labels:
                self._make(one)
            self.network.load_state_dict(self.initial)

        return Phase(
            name=name,
            steps=steps,
            sources=sources,
            optimizer=lambda: torch.optim.Adam(
                (p for p in self.network.parameters() if p.requires_grad), lr=rate, fused=True
            ),
            schedule=lambda step: (1 - step // self.each / epochs) ** recipe.decay_power,
            loss=self._loss(labels, beta2, remember=bool(memories)),
            accumulate=recipe.accumulate,
            memories=memories,
            prepare=prepare,
        )

    def _steps(self) -> tuple[int, int]:
        """Of a round and of the fusion."""
        recipe = self.recipe
        rounds = len(recipe.methods) * len(recipe.round_rates)
        steps, fusion = self.each * recipe.round_epochs, self.each * recipe.fusion_epochs
        if recipe.steps:
            epochs = rounds * recipe.round_epochs + recipe.fusion_epochs
            steps = recipe.steps * recipe.round_epochs // epochs
            fusion = recipe.steps - rounds * steps
        whole = steps // self.each
        highest = 1 - recipe.average_keep**whole
        if rounds and whole and highest <= recipe.refined_threshold:
            raise UsageError(
                f"After {whole} epochs of a round an average is {highest:.2f} at most, which does "
                f"not pass the threshold {recipe.refined_threshold} (refined_threshold). Choose "
                "more steps or round_epochs, or a smaller average_keep."
            )
        return steps, fusion

    def _threshold(self, name: str, number: int) -> float:
        recipe = self.recipe
        first: float = getattr(recipe, f"threshold_{name}")
        return recipe.refined_threshold if number else first

    def _loss(self, labels: Sequence[Labels], beta2: float, *, remember: bool) -> Loss:
        thresholds = [self._threshold(*one) for one in labels]

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            batch = batches["images"]
            logits = self.network(batch["image"]).float()
            if remember:
                # The softmax of two classes hangs on this alone, which half precision holds well.
                rows = (logits[:, 0] - logits[:, 1]).detach().half().cpu().numpy()
                for index, row in zip(batch["index"].tolist(), rows, strict=True):
                    self.average.put(self.data.image_ids[index], row)
            saliency = logits.softmax(1)[:, SALIENT]
            return {"f": label_loss(saliency, batch["labels"], thresholds, beta2)}

        return loss

    def _take(self, image_id: str, old: np.ndarray | None, new: np.ndarray) -> np.ndarray:
        """The average float16[S, S] when the prediction ``new``, a difference of logits, enters."""
        device = self.network.seg.weight.device
        salient = torch.from_numpy(new).to(device).float().sigmoid()
        both = torch.stack([salient, 1 - salient])
        saliency = self.method.refined(both, self.data.read_image(image_id)).cpu().numpy()
        return moving_average(old, saliency, self.recipe.average_keep).astype(np.float16)

    def _maps(self, labels: Labels) -> Maps:
        name, number = labels
        if number == 0 and name in self.data.maps:
            return self.data.maps[name]
        return open_scratch_maps(self._folder(labels), "sal")

    def _folder(self, labels: Labels) -> Path:
        return self.method.scratch / "{}-{}".format(*labels)

    def _make(self, labels: Labels) -> None:
        """The hand-crafted maps, if they are what is asked for and were not given."""
        name, number = labels
        if number == 0 and name not in self.data.maps:
            produce = MADE_HERE[name]
            self._write(labels, lambda image_id: produce(self.data.read_image(image_id)))

    def _keep(self, made: Labels) -> None:
        """The averages become labels, in 256 levels, rounded down."""
        name, number = made
        before, size = self._maps((name, number - 1)), self.recipe.size

        def label(image_id: str) -> np.ndarray:
            average = self.average.get(image_id)
            if average is None:
                return resize_nearest(np.asarray(before.read(image_id)), size, size)
            return (average.astype(np.float32) * 255).astype(np.uint8)

        self._write(made, label)

    def _write(self, labels: Labels, produce: Callable[[str], np.ndarray]) -> None:
        folder = self._folder(labels)
        write_scratch_maps(folder, "sal", self.data.image_ids, self.network, produce)
