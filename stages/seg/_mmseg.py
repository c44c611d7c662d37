"""Training samples, loss and inference that the recipes of MMSegmentation 1.2.2 share.

Every number is a field of ``MMSegRecipe``; what its configurations say of it stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stages.ops.images import imagenet_rgb
from stages.ops.opencv import distorted, resize_bilinear, resize_nearest, size_times, size_within
from stages.ops.resizing import cross_entropy, resize
from stages.runtime import distributed
from stages.runtime.distributed import global_mean
from stages.seg import SegData, read_pair
from wsssbed_hub.evaluation.pseudo_label import IGNORE
from wsssbed_hub.utils.errors import UsageError

_REDRAWN = 10  # times, at most, that a crop with too much of one class is drawn again
_TINY = 1e-30  # below every probability that counts; it has a logarithm
Network = Callable[[Tensor], Tensor]  # float[N, 3, H, W] to logits float[N, C, h, w]


@dataclass(frozen=True)
class MMSegRecipe:
    """The training samples, the loss and the test of MMSegmentation's configurations.

    Values are those of ``configs/_base_/datasets/pascal_voc12.py`` and ``ade20k.py``, which are
    the same but for the padding. Raises UsageError for a sliding window with gaps.
    """

    batch_size: int = 16  # all cards together: 4 of 4 images or 8 of 2
    accumulate: int = 1
    scale: tuple[int, int] = (2048, 512)  # bounds of the long and the short side, times the ratio
    ratio: tuple[float, float] = (0.5, 2.0)
    crop: int = 512
    cat_max_ratio: float = 0.75  # a crop has to have less of one class, of its labelled pixels
    flip: float = 0.5
    distortion: float = 0.5  # probability of each change of the colours
    brightness: float = 32.0  # grey levels
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18  # of 180 levels
    padding: Literal["black", "mean"] = "black"  # before (`Pad`) or after the normalisation
    avg_non_ignore: bool = False  # the mean of a loss is over all pixels, ignored ones included
    test_mode: Literal["whole", "slide"] = "whole"
    test_scale: tuple[int, int] = (2048, 512)
    test_window: int = 512  # of mode "slide": its side, and its stride
    test_stride: int = 341
    test_ratios: tuple[float, ...] = ()  # of the image's own size, instead of test_scale
    test_flip: bool = False  # the mirror image too

    def __post_init__(self) -> None:
        if not 0 < self.test_stride <= self.test_window:
            raise UsageError(
                f"test_stride={self.test_stride}, test_window={self.test_window}: a window may go "
                "on by its own side at most, or it would leave pixels out."
            )

    def unread(self) -> Iterator[tuple[Collection[str], str]]:
        """Fields that change nothing beside the others, and why."""
        if self.test_mode == "whole":
            yield ["test_window", "test_stride"], "The test has no windows (--set test_mode=slide)"
        if self.test_ratios:
            yield ["test_scale"], "With test_ratios the sizes are those of the image, times these"
        if not self.distortion:
            colours = ["brightness", "contrast", "saturation", "hue"]
            yield colours, "With distortion=0 no colour is changed"


TEST_TIME_AUGMENTATION: Mapping[str, Any] = {
    "test_ratios": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    "test_flip": True,
}
"""Of MMSegmentation's ``tta_pipeline``: fields of a recipe that measures with it."""


class Crops:
    """Images with their labels, resized, cropped, mirrored and changed in colour at random."""

    def __init__(self, data: SegData, recipe: MMSegRecipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """``image`` float32[3, crop, crop] normalised RGB, ``label`` int64[crop, crop].

        Raises HubError if image and label differ in size.
        """
        recipe, size = self.recipe, self.recipe.crop
        rgb, label = read_pair(self.data, self.data.image_ids[index])
        ratio = rng.uniform(*recipe.ratio)
        long, short = (int(bound * ratio) for bound in recipe.scale)
        height, width = size_within(label.shape[0], label.shape[1], (long, short))
        rgb = resize_bilinear(rgb, height, width)
        label = resize_nearest(label, height, width)
        window = random_window(label, size, recipe.cat_max_ratio, rng)
        rgb, label = rgb[window], label[window]
        if rng.random() < recipe.flip:
            rgb, label = rgb[:, ::-1], label[:, ::-1]
        rgb = distorted(
            np.ascontiguousarray(rgb),
            rng,
            share=recipe.distortion,
            brightness=recipe.brightness,
            contrast=recipe.contrast,
            saturation=recipe.saturation,
            hue=recipe.hue,
        )
        missing = [(0, size - side) for side in label.shape]
        label = np.pad(label, missing, constant_values=IGNORE)
        if recipe.padding == "black":
            image = imagenet_rgb(np.pad(rgb, [*missing, (0, 0)]))
        else:
            image = np.pad(imagenet_rgb(rgb), [(0, 0), *missing])
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label.astype(np.int64))}


def random_window(
    label: np.ndarray, size: int, cat_max_ratio: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a crop of uint8[H, W], ``size`` each, or all where there are fewer.

    Drawn again while one class has ``cat_max_ratio`` or more of the pixels that are not ignored,
    or there are less than two, but ten times at most; the last is taken as it comes. With 1.0 and
    more every first one is.
    """
    window = _any_window(label, size, rng)
    for _ in range(_REDRAWN if cat_max_ratio < 1 else 0):
        counts = np.bincount(label[window].ravel(), minlength=IGNORE)[:IGNORE]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
        window = _any_window(label, size, rng)
    return window


def _any_window(label: np.ndarray, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in label.shape)
    return slice(top, top + size), slice(left, left + size)


def mean_over_all_pixels(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy, its sum over the labelled pixels divided by the number of *all* pixels.

    MMSegmentation's default (``avg_non_ignore=False``). ``logits`` are float[N, C, h, w], resized
    to the label, int64[N, H, W] with 255 for pixels that are ignored.
    """
    return _sum_of_losses(logits, label) / label.numel()


def mean_over_labelled_pixels(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy, the mean over the labelled pixels of all processes (``avg_non_ignore``)."""
    return global_mean(_sum_of_losses(logits, label), (label != IGNORE).sum())


def _sum_of_losses(logits: Tensor, label: Tensor) -> Tensor:
    full = resize(logits.float(), label.shape[1:])
    return cross_entropy(full, label, ignore_index=IGNORE)


def weighted_losses(
    logits: Mapping[str, Tensor], weights: Mapping[str, float], label: Tensor, recipe: MMSegRecipe
) -> dict[str, Tensor]:
    """The recipe's loss of each head, times its weight (1 where there is none)."""
    mean = mean_over_labelled_pixels if recipe.avg_non_ignore else mean_over_all_pixels
    return {name: weights.get(name, 1.0) * mean(one, label) for name, one in logits.items()}


def require_several(recipe: MMSegRecipe, name: str) -> None:
    """UsageError where batch norm would see one number: of one image, pooled to one place."""
    if recipe.batch_size // recipe.accumulate < 2 and distributed.size() == 1:
        raise UsageError(
            f"--batch-size {recipe.batch_size}: {name} pools whole images and normalises the "
            "result over the batch, which takes at least two images in a pass."
        )


def predict(network: Network, rgb: np.ndarray, recipe: MMSegRecipe, device: Any) -> Tensor:
    """float32[C, H, W] of an image uint8[H, W, 3], by the recipe's test.

    Of one view these are its logits, of several (``test_ratios``, ``test_flip``) the logarithms of
    their mean softmax.
    """
    views = list(_views(rgb, recipe))
    infer = whole if recipe.test_mode == "whole" else slide
    mean: Tensor | None = None
    for view, mirrored in views:
        image = torch.from_numpy(imagenet_rgb(view))[None].to(device)
        logits = infer(network, image.flip(3) if mirrored else image, recipe)
        logits = resize(logits.flip(3) if mirrored else logits, rgb.shape[:2])[0]
        if len(views) == 1:
            return logits
        part = logits.softmax(0) / len(views)
        mean = part if mean is None else mean + part
    assert mean is not None
    return mean.clamp(min=_TINY).log()


def _views(rgb: np.ndarray, recipe: MMSegRecipe) -> Iterator[tuple[np.ndarray, bool]]:
    """The image at each size that it is tested at, and whether it is mirrored."""
    height, width = rgb.shape[:2]
    sizes = [size_times(height, width, ratio) for ratio in recipe.test_ratios]
    for size in sizes or [size_within(height, width, recipe.test_scale)]:
        view = resize_bilinear(rgb, *size)
        yield view, False
        if recipe.test_flip:
            yield view, True


def whole(network: Network, image: Tensor, recipe: MMSegRecipe) -> Tensor:
    """float32[N, C, H, W]: logits of float[N, 3, H, W] in one piece, at its size."""
    return resize(network(image).float(), image.shape[2:])


def slide(network: Network, image: Tensor, recipe: MMSegRecipe) -> Tensor:
    """float32[N, C, H, W]: the mean of the logits of all windows over float[N, 3, H, W].

    Windows of ``test_window`` go on by ``test_stride``; the last of a row or column lies at the
    edge. Where a side is shorter, they are as short.
    """
    total, count = None, torch.zeros(image.shape[2:], device=image.device)
    for top in _starts(image.shape[2], recipe):
        for left in _starts(image.shape[3], recipe):
            rows = slice(top, top + recipe.test_window)
            columns = slice(left, left + recipe.test_window)
            logits = whole(network, image[:, :, rows, columns], recipe)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *image.shape[2:])
            total[:, :, rows, columns] += logits
            count[rows, columns] += 1
    assert total is not None
    return total / count


def _starts(length: int, recipe: MMSegRecipe) -> list[int]:
    last = max(length - recipe.test_window, 0)
    number = -(-last // recipe.test_stride) + 1
    return [min(n * recipe.test_stride, last) for n in range(number)]
