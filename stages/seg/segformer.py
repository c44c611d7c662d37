"""SegFormer on MiT-B5, in MMSegmentation's form and in its authors'.

Paper: Xie et al., NeurIPS 2021, arXiv 2105.15203. Code: MMSegmentation 1.2.2 (Apache-2.0), its
config ``segformer_mit-b5_8xb2-160k_ade20k-512x512``; the authors' is NVlabs/SegFormer (for
research).

The two have different heads, by name (``head``): MMSegmentation's (``mmseg``) has batch norm and a
ReLU after each stage's 1x1 convolution, and 256 channels; the authors' (``authors``), which is that
of the paper, of NVlabs's checkpoints and of ``nvidia/segformer-*`` on the Hub, has a linear layer
with a bias there, and 768 channels for B3 to B5 (``published-authors``).

Neither the paper nor MMSegmentation trains on VOC. WSSS-BED (arXiv 2404.00918) trains SegFormer-B5
on its labels and gives no schedule; its release has no code for it. What is taken here for every
target is ADE20K's recipe as it stands, which has 160,000 iterations of 16 images (``published``);
for COCO the paper trains 80,000 iterations on COCO-Stuff's 118,287 images, otherwise alike
(``coco-80k``).

No weight decay goes by names, as there: parameters that have "norm" in MMSegmentation's names. The
last layer norm of a stage and the batch norm of the head have not, and biases are decayed too. The
authors' own names have it in the last layer norm of a stage; here all heads go by MMSegmentation's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from stages.backbones.mit import SIZES, MiT, published_names
from stages.backbones.state import Rules, load_strictly
from stages.ops.resizing import resize
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.seg import SegData, SegMethod
from stages.seg._layers import Classifier, ConvNormReLU, probed_device
from stages.seg._mmengine import Factors, parameter_groups, poly, warm_up
from stages.seg._mmseg import Crops, MMSegRecipe, predict, weighted_losses
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean

HeadName = Literal["mmseg", "authors"]


@dataclass(frozen=True)
class Recipe(MMSegRecipe):
    """The published training on ADE20K: the config and ``models/segformer_mit-b0.py``.

    Augmentation and test are described in ``MMSegRecipe``. Raises UsageError for a backbone that
    there is not.
    """

    initial: str = "mit_b5_20220624-658746d9.pth"  # for the backbone
    padding: Literal["black", "mean"] = "mean"  # no `Pad`: batches are padded when normalised
    backbone: str = "mit-b5"
    drop_path: float = 0.1  # of the last block
    head: HeadName = "mmseg"
    channels: int = 256  # of the head
    dropout: float = 0.1  # of whole channels, before the classifier
    steps: int = 160_000
    learning_rate: float = 6e-5
    head_factor: float = 10.0  # of the head's rate
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ("norm",)  # in names; "pos_block" of the config is in none
    warm_up: int = 1_500  # steps
    warm_up_factor: float = 1e-6  # on the rate of the first step
    power: float = 1.0  # of the decay to 0 after the warm-up

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in SIZES:
            raise UsageError(
                f"backbone={self.backbone}: there is no such MiT."
                f"{did_you_mean(self.backbone, SIZES)} Choose one of {', '.join(SIZES)}."
            )


RECIPES = {
    "published": Recipe(),
    "published-authors": Recipe(initial="mit_b5.pth", head="authors", channels=768),
    "coco-80k": Recipe(steps=80_000),
    "shapes": Recipe(
        initial="none",
        backbone="shapes",
        drop_path=0.0,
        channels=48,
        steps=800,
        warm_up=40,
        batch_size=8,
        scale=(224, 112),
        ratio=(0.75, 1.5),
        crop=96,
        test_scale=(224, 112),
        learning_rate=5e-3,
        head_factor=1.0,
    ),
}

# The head in NVIDIA's names: those of the authors' repository, then those of transformers' files.
_NVIDIA_HEAD: Rules = (
    (r"^decode_head\.linear_c(\d)\.proj\.", lambda at: f"decode_head.convs.{int(at[1]) - 1}."),
    (r"^decode_head\.linear_fuse\.(conv|bn)\.", r"decode_head.fusion_conv.\1."),
    (r"^decode_head\.linear_pred\.", "decode_head.conv_seg."),
    (r"^decode_head\.linear_c\.(\d)\.proj\.", r"decode_head.convs.\1."),
    (r"^decode_head\.linear_fuse\.", "decode_head.fusion_conv.conv."),
    (r"^decode_head\.batch_norm\.", "decode_head.fusion_conv.bn."),
    (r"^decode_head\.classifier\.", "decode_head.conv_seg."),
)


class Head(Classifier):
    """All four maps at one width and at the size of the first, fused by a 1x1 convolution."""

    def __init__(self, inputs: tuple[int, ...], classes: int, recipe: Recipe) -> None:
        width = recipe.channels
        super().__init__(width, classes, recipe.dropout)
        self.coarse_first = recipe.head == "authors"
        self.convs = nn.ModuleList(
            ConvNormReLU(n, width) if recipe.head == "mmseg" else nn.Conv2d(n, width, 1)
            for n in inputs
        )
        self.fusion_conv = ConvNormReLU(len(inputs) * width, width)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        found = [resize(conv(x), size) for conv, x in zip(self.convs, maps, strict=True)]
        return self.classify(
            self.fusion_conv(torch.cat(found[::-1] if self.coarse_first else found, 1))
        )


class SegFormer(nn.Module):
    """float[N, 3, H, W] (RGB, ImageNet mean and deviation) to logits at stride 4, background
    first."""

    def __init__(self, classes: int, recipe: Recipe) -> None:
        super().__init__()
        self.head = recipe.head
        self.backbone = MiT(SIZES[recipe.backbone], recipe.drop_path)
        self.decode_head = Head(self.backbone.channels, classes, recipe)

    def forward(self, image: Tensor) -> Tensor:
        return self.decode_head(self.backbone(image))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """MMSegmentation's checkpoint, the authors' or transformers' file of it.

        Raises HubError if it does not fit exactly, also for that of the other head.
        """
        theirs = published_names(_head_names(state))
        found = next((head for head, name in _FIRST.items() if name in theirs), self.head)
        if found != self.head:
            raise HubError(
                f"The head of this SegFormer checkpoint is that of {_WHOSE[found]}, the recipe's "
                f"that of {_WHOSE[self.head]}. Add --set head={found} --set "
                f"channels={len(theirs[_FIRST[found]])}."
            )
        load_strictly(self, theirs, "The SegFormer checkpoint")


_WHOSE: Mapping[HeadName, str] = {"mmseg": "MMSegmentation", "authors": "its authors"}
_FIRST: Mapping[HeadName, str] = {
    "mmseg": "decode_head.convs.0.conv.weight",
    "authors": "decode_head.convs.0.weight",
}


def _head_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint whose head has the names of this file, its linear layers as 1x1 convolutions.

    The authors' files also hold a ``conv_seg`` of their framework that nothing uses.
    """
    unused = "decode_head.conv_seg."
    names = [key.removeprefix("module.") for key in state]
    two = any(name.startswith("decode_head.linear_pred.") for name in names)
    found = {}
    for name, value in zip(names, state.values(), strict=True):
        if two and name.startswith(unused):
            continue
        for pattern, replacement in _NVIDIA_HEAD:
            name = re.sub(pattern, replacement, name)
        if name.startswith("decode_head.convs.") and value.dim() == 2:
            value = value[:, :, None, None]
        found[name] = value
    return found


class Method(SegMethod):
    card = manifest.MethodCitation(
        name="SegFormer",
        paper="https://arxiv.org/abs/2105.15203",
        code="https://github.com/open-mmlab/mmsegmentation",
        licence="Apache-2.0",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "mit_b5_20220624-658746d9.pth",
            "https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/"
            "mit_b5_20220624-658746d9.pth; the same weights as NVIDIA distributes them, mit_b5.pth "
            "of https://github.com/NVlabs/SegFormer or the file of "
            "https://huggingface.co/nvidia/mit-b5, do as well",
        )
    }
    recipe: Recipe

    def build(self) -> SegFormer:
        return SegFormer(self.num_classes + 1, self.recipe)

    def load_initial(self, network: SegFormer, state: Mapping[str, Tensor], name: str) -> None:
        network.backbone.load_initial(state, "The initial MiT")

    def phases(self, network: SegFormer, data: SegData) -> Iterator[Phase]:
        recipe = self.recipe

        def optimizer() -> torch.optim.Optimizer:
            factors = {name: Factors(decay=0.0) for name in recipe.no_decay}
            factors["head"] = Factors(rate=recipe.head_factor)
            groups = parameter_groups(network, recipe.learning_rate, recipe.weight_decay, factors)
            # The fused form is rounded alike on every processor.
            return torch.optim.AdamW(
                groups, recipe.learning_rate, recipe.betas, fused=True, weight_decay=0.0
            )

        def schedule(step: int) -> float:
            begin = recipe.warm_up
            if step < begin:
                return warm_up(step, steps=begin, start=recipe.warm_up_factor)
            return poly(step, begin=begin, end=recipe.steps, power=recipe.power)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            crops = batches["crops"]
            return weighted_losses({"decode": network(crops["image"])}, {}, crops["label"], recipe)

        yield Phase(
            name="segmentation",
            steps=recipe.steps,
            sources={"crops": Source(Crops(data, recipe), recipe.batch_size)},
            optimizer=optimizer,
            schedule=schedule,
            loss=loss,
            accumulate=recipe.accumulate,
        )

    def logits(self, network: SegFormer, image: Image) -> Tensor:
        """float32[C + 1, H, W] at the image's size, by the recipe's test."""
        return predict(network, image.rgb, self.recipe, probed_device(network))
