"""K-Net with three kernel updates, on UPerNet and Swin Transformer.

Paper: Zhang, Pang, Chen, Loy, NeurIPS 2021, arXiv 2106.14855. Code: ZwwWayne/K-Net (Apache-2.0) and
MMSegmentation 1.2.2 (Apache-2.0), whose network and recipe for ADE20K are the default here. Neither
has a recipe for VOC; WSSS-BED (arXiv 2404.00918) trained K-Net on Swin-L and published neither
settings nor code.

What the published code does and the paper does not tell, or tells otherwise:

- For semantic segmentation the masks that gather a kernel's feature are a softmax over the classes,
  and the feature is the sum over the pixels, not divided by the area of the mask.
- The first kernels are the weights of UPerNet's classifier, without its bias, alike for all images.
- Each update starts from the same feature, by a 1x1 convolution of its own.
- The mean of a loss runs over all pixels, those with the label 255 too.

Where MMSegmentation departs from the authors: 512 channels instead of their 256 (``width``), while
the kernel updator still takes 256 (``updator_width``). Each kernel is cut in two halves, which the
updator takes for kernels of their own. The recipe ``authors`` has their width and schedule.

MMSegmentation's configuration says that the rate drops after 60,000 and 72,000 iterations; they are
counted from the end of the warm-up, so that it really drops after 61,000 and 73,000. Its
initialiser of the update heads is never called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stages.backbones import swin
from stages.backbones.state import Rules, load_strictly
from stages.backbones.swin import Swin
from stages.backbones.t2t_vit import attend
from stages.runtime.method import Batch, Image, Initial, Phase, Source
from stages.seg import SegData, SegMethod
from stages.seg._layers import FCNHead, probed_device
from stages.seg._mmengine import Factors, multi_step, parameter_groups, warm_up
from stages.seg._mmseg import Crops, MMSegRecipe, predict, weighted_losses
from stages.seg._upernet import UPerNet
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.utils.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Recipe(MMSegRecipe):
    """``knet-s3_swin-l_upernet_8xb2-adamw-80k_ade20k-512x512`` of MMSegmentation.

    Raises UsageError for a backbone that there is not, and for widths and batches that cannot be.
    """

    initial: str = "swin_large_patch4_window7_224_22k.pth"  # for the backbone
    padding: Literal["black", "mean"] = "mean"  # the configuration has no `Pad`
    backbone: str = "swin-l"  # or swin-t, which has the same settings; swin-s, swin-b
    drop_path: float = 0.3  # of the last block of the backbone
    deviation: float = 0.02  # of its linear layers, before they are trained
    width: int = 512  # channels of UPerNet and of a kernel
    updator_width: int = 256  # channels that the kernel updator takes at a time
    update_stages: int = 3
    heads: int = 8  # of the attention among the kernels
    hidden: int = 2048  # inner width of the MLP after it
    auxiliary_width: int = 256
    dropout: float = 0.1  # of whole channels, before both classifiers
    auxiliary_weight: float = 0.4
    steps: int = 80_000
    learning_rate: float = 6e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4  # not on norms and position biases: see UNDECAYED
    warmup: int = 1_000  # steps; the last has the full rate
    warmup_start: float = 0.001
    milestones: tuple[int, ...] = (61_000, 73_000)  # in the file 60,000 and 72,000; see above
    gamma: float = 0.1  # the rate's factor at each of them
    clip_norm: float = 1.0  # of the gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in swin.SIZES:
            known = ", ".join(swin.SIZES)
            hint = did_you_mean(self.backbone, swin.SIZES)
            raise UsageError(f"backbone={self.backbone}: it is one of {known}.{hint}")
        if self.batch_size < 2 * self.accumulate:
            raise UsageError(
                f"batch_size={self.batch_size}, accumulate={self.accumulate}: a pass needs two "
                "images at least, since UPerNet normalises the means of whole images over them."
            )
        for name in ("updator_width", "heads"):
            if self.width % getattr(self, name):
                raise UsageError(
                    f"width={self.width} is no multiple of {name}={getattr(self, name)}."
                )


_LARGE: dict[str, Any] = {
    "crop": 640,
    "scale": (2048, 640),
    "test_scale": (2048, 640),
    "drop_path": 0.4,
}
RECIPES = {
    "published": Recipe(),
    "published-640": Recipe(**_LARGE),  # …-adamw-80k_ade20k-640x640
    "authors": Recipe(
        width=256,
        warmup=1_001,  # the MMCV of then reaches the full rate a step later
        milestones=(60_000, 72_000),  # and counts from the first step
    ),
    "shapes": Recipe(
        initial="none",
        batch_size=8,
        scale=(224, 112),
        ratio=(0.75, 1.5),
        crop=84,
        test_scale=(224, 112),
        backbone="shapes",
        drop_path=0.0,
        deviation=0.1,
        width=32,
        updator_width=16,
        heads=4,
        hidden=64,
        auxiliary_width=32,
        dropout=0.0,
        steps=450,
        learning_rate=2e-3,
        warmup=20,
        milestones=(360,),
    ),
}
RECIPES["authors-640"] = replace(RECIPES["authors"], **_LARGE)

UNDECAYED = ("norm", "relative_position_bias_table")
"""Parameters without weight decay have one of these in their name. The batch norms (``bn``) and the
layer norm ``mask.1`` are no norms by name, in the published code either: they and all biases of
other layers are decayed."""

_UPDATE = r"^decode_head\.kernel_update_head\.(\d)\."
PUBLISHED_NAMES: Rules = (
    (r"^decode_head\.kernel_generate_head\.psp_modules\.(\d)\.1\.", r"upernet.psp_modules.\1."),
    (r"^decode_head\.kernel_generate_head\.", "upernet."),
    (_UPDATE + r"attention\.attn\.in_proj_", r"updates.\1.attention.qkv."),
    (_UPDATE + r"attention\.attn\.out_proj\.", r"updates.\1.attention.proj."),
    (_UPDATE + r"kernel_update_conv\.", r"updates.\1.updator."),
    (_UPDATE + r"feat_transform\.conv\.", r"updates.\1.transform."),
    (_UPDATE + r"mask_fcs\.", r"updates.\1.mask."),
    (_UPDATE + r"fc_mask\.", r"updates.\1.mask.3."),
    (_UPDATE, r"updates.\1."),
    *swin.PUBLISHED_NAMES,
)


class Updator(nn.Module):
    """A kernel float[..., C] with the feature that its mask gathered, mixed by two gates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dynamic_layer = nn.Linear(width, 2 * width)
        self.input_layer = nn.Linear(width, 2 * width)
        self.input_gate = nn.Linear(width, width)
        self.input_norm_in = nn.LayerNorm(width)
        self.update_gate = nn.Linear(width, width)
        self.norm_in = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.input_norm_out = nn.LayerNorm(width)
        self.fc_layer = nn.Linear(width, width)
        self.fc_norm = nn.LayerNorm(width)

    def forward(self, gathered: Tensor, kernels: Tensor) -> Tensor:
        feature_in, feature_out = self.dynamic_layer(gathered).chunk(2, -1)
        kernel_in, kernel_out = self.input_layer(kernels).chunk(2, -1)
        gate = feature_in * kernel_in
        of_feature = self.norm_in(self.update_gate(gate)).sigmoid()
        of_kernel = self.input_norm_in(self.input_gate(gate)).sigmoid()
        mixed = of_feature * self.norm_out(feature_out)
        mixed = mixed + of_kernel * self.input_norm_out(kernel_out)
        return self.fc_norm(self.fc_layer(mixed)).relu()


class SelfAttention(nn.Module):
    """Of float[N, K, C] among the K, with a skip around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind()
        found = attend(query, key, value, key.shape[-1] ** -0.5)
        return x + self.proj(found.transpose(1, 2).flatten(2))


class Update(nn.Module):
    """One round: masks gather features, these update the kernels, which give new masks."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width, self.updator_width = recipe.width, recipe.updator_width
        self.transform = nn.Conv2d(width, width, 1)
        nn.init.kaiming_normal_(self.transform.weight, mode="fan_out", nonlinearity="relu")
        self.updator = Updator(recipe.updator_width)
        self.attention = SelfAttention(width, recipe.heads)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, recipe.hidden), nn.ReLU(), nn.Linear(recipe.hidden, width)
        )
        self.ffn_norm = nn.LayerNorm(width)
        self.mask = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width),
        )

    def forward(self, feature: Tensor, kernels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """New logits float[N, K, h, w] and kernels float[N, K, C] of float[N, C, h, w]."""
        feature = self.transform(feature)
        pixels = feature.flatten(2)
        wide = torch.promote_types(pixels.dtype, torch.float32)  # a sum over all pixels is large
        with torch.autocast(feature.device.type, enabled=False):
            masks = logits.to(wide).softmax(1).flatten(2)
            gathered = masks @ pixels.to(wide).transpose(1, 2)
        parts = (-1, self.updator_width)
        x = self.updator(gathered.unflatten(2, parts), kernels.unflatten(2, parts)).flatten(2)
        x = self.attention_norm(self.attention(x))
        x = self.ffn_norm(x + self.mlp(x))
        return (self.mask(x) @ pixels).unflatten(2, feature.shape[2:]), x


class Logits(NamedTuple):
    """What is learnt from; each float[N, C, h, w], background first."""

    stages: list[Tensor]
    """At 1/4: of UPerNet's classifier, then after each update; the last is the prediction."""
    auxiliary: Tensor
    """At 1/16, of the third map of the backbone."""


class KNet(nn.Module):
    """float[N, 3, H, W] (ImageNet's mean and deviation) to logits at 1/4 of it, rounded up."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        super().__init__()
        size = swin.SIZES[recipe.backbone]
        self.backbone = Swin(size, recipe.drop_path, deviation=recipe.deviation)
        channels = self.backbone.channels
        self.upernet = UPerNet(channels, recipe.width, classes, recipe.dropout)
        self.updates = nn.ModuleList(Update(recipe) for _ in range(recipe.update_stages))
        self.auxiliary_head = FCNHead(channels[2], recipe.auxiliary_width, classes, recipe.dropout)

    def forward(self, image: Tensor) -> Tensor:
        return self._stages(self.backbone(image))[-1]

    def all_logits(self, image: Tensor) -> Logits:
        maps = self.backbone(image)
        return Logits(self._stages(maps), self.auxiliary_head(maps[2]))

    def _stages(self, maps: list[Tensor]) -> list[Tensor]:
        feature = self.upernet(maps)
        found = [self.upernet.classify(feature)]
        kernels = self.upernet.conv_seg.weight.flatten(1).expand(len(feature), -1, -1)
        for update in self.updates:
            logits, kernels = update(feature, kernels, found[-1])
            found.append(logits)
        return found

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """A checkpoint of MMSegmentation or the authors. Raises HubError if it does not fit."""
        state = swin.without_computed(state)
        load_strictly(self, state, "The K-Net checkpoint", PUBLISHED_NAMES)


class Method(SegMethod):
    card = manifest.MethodCitation(
        name="K-Net",
        paper="https://arxiv.org/abs/2106.14855",
        code="https://github.com/ZwwWayne/K-Net",
        licence="Apache-2.0",
    )
    recipes = RECIPES
    initial: ClassVar[Mapping[str, Initial]] = {
        "backbone": Initial(
            "swin_large_patch4_window7_224_22k.pth, with backbone=swin-t "
            "swin_tiny_patch4_window7_224.pth",
            "the releases of https://github.com/SwinTransformer/storage; MMSegmentation's "
            "conversions of them will do as well",
        )
    }
    recipe: Recipe

    def build(self) -> KNet:
        return KNet(self.recipe, self.num_classes + 1)

    def load_initial(self, network: KNet, state: Mapping[str, Tensor], name: str) -> None:
        """The backbone, as Microsoft, timm or MMSegmentation have it."""
        network.backbone.load_initial(state, "The initial Swin Transformer")

    def timm_weights(self, name: str) -> Mapping[str, Tensor]:
        size = swin.SIZES[self.recipe.backbone]
        if size.timm is None:
            raise UsageError(
                f"timm has no weights for backbone={self.recipe.backbone}. Leave --init out, or "
                "choose another backbone with --set."
            )
        return swin.timm_imagenet(size)

    def phases(self, network: KNet, data: SegData) -> Iterator[Phase]:
        recipe = self.recipe

        def optimizer() -> torch.optim.Optimizer:
            undecayed = {name: Factors(decay=0.0) for name in UNDECAYED}
            groups = parameter_groups(network, recipe.learning_rate, recipe.weight_decay, undecayed)
            # The fused form is rounded alike on every processor.
            return torch.optim.AdamW(groups, betas=recipe.betas, fused=True)

        def schedule(step: int) -> float:
            start = warm_up(step, steps=recipe.warmup, start=recipe.warmup_start)
            return start * multi_step(step, milestones=recipe.milestones, gamma=recipe.gamma)

        def loss(batches: dict[str, Batch], step: int) -> dict[str, Tensor]:
            crops = batches["crops"]
            found = network.all_logits(crops["image"])
            heads = {f"stage{number}": logits for number, logits in enumerate(found.stages)}
            heads["auxiliary"] = found.auxiliary
            weights = {"auxiliary": recipe.auxiliary_weight}
            return weighted_losses(heads, weights, crops["label"], recipe)

        yield Phase(
            name="segmentation",
            steps=recipe.steps,
            sources={"crops": Source(Crops(data, recipe), recipe.batch_size)},
            optimizer=optimizer,
            schedule=schedule,
            loss=loss,
            accumulate=recipe.accumulate,
            clip_norm=recipe.clip_norm,
        )

    def logits(self, network: KNet, image: Image) -> Tensor:
        """float32[C + 1, H, W]: those of the last update, by the recipe's test."""
        return predict(network, image.rgb, self.recipe, probed_device(network))
