"""Training samples of SSNet: views of the two sets, resized to the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stages.ops.augment import random_window, resized, turned
from stages.ops.images import imagenet_rgb
from wsssbed_hub.datasets import SodDataset, Target
from wsssbed_hub.registry.open_artifact import Maps
from wsssbed_hub.utils.errors import HubError

_WHITE = 128  # a mask's pixel from this grey on is salient
_TURN = 10  # degrees, to either side


@dataclass(frozen=True)
class SsnetData:
    """The two sets. Labels of single pixels are read from the SOD dataset alone."""

    target: Target
    image_ids: Sequence[str]
    """The classification set: images with image-level labels."""
    sod: SodDataset | None = None
    """The saliency set, for settings with the saliency loss."""
    labels: Maps | None = None
    """Pseudo labels of the classification set, for settings with the segmentation loss."""


@dataclass(frozen=True)
class Views:
    """How an image becomes a sample: the paper's random crop, or also turns and mirror images."""

    size: int
    crop: float
    augmentation: Literal["paper", "code"]

    def of(self, planes: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """The same view of an image uint8[H, W, 3] and of what lies on it, uint8[H, W].

        Each comes back with ``size`` by ``size`` pixels.
        """
        if self.augmentation == "code":
            planes = turned(planes, int(rng.integers(-_TURN, _TURN + 1)))
        planes = [resized(plane, self.size) for plane in random_window(planes, self.crop, rng)]
        if self.augmentation == "code" and rng.random() < 0.5:
            planes = [plane[:, ::-1] for plane in planes]
        return planes


class ClassImages:
    """The classification set with its image-level labels, or with pseudo labels."""

    def __init__(self, data: SsnetData, views: Views, labels: Maps | None) -> None:
        self.data, self.views, self.labels = data, views, labels

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, S, S]; then ``classes`` float32[C], 1 for those that the image has
        (not the crop alone: nobody looks where they are), or ``label`` int64[S, S].

        Raises HubError for a pseudo label that does not fit its image or the classes.
        """
        target, image_id = self.data.target, self.data.image_ids[index]
        rgb = target.read_image(image_id)
        if self.labels is None:
            classes = np.zeros(target.num_classes, np.float32)
            classes[list(target.image_labels(image_id))] = 1
            return {"image": imagenet_rgb(*self.views.of([rgb], rng)), "classes": classes}
        label = np.asarray(self.labels.read(image_id))
        if label.shape != rgb.shape[:2] or label.max() > target.num_classes:
            raise HubError(
                f"{self.labels.name}: the label of {image_id} has {label.shape} pixels and values "
                f"up to {label.max()}; expected {rgb.shape[:2]}, as its image, and values up to "
                f"{target.num_classes}. Make the labels again."
            )
        rgb, label = self.views.of([rgb, label], rng)
        return {"image": imagenet_rgb(rgb), "label": label.astype(np.int64)}


class SaliencyImages:
    """The saliency set with its masks."""

    def __init__(self, data: SodDataset, views: Views) -> None:
        self.data, self.views = data, views

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, S, S] and ``mask`` float32[S, S], 0 or 1."""
        image_id = self.data.image_ids[index]
        planes = [self.data.read_image(image_id), self.data.read_mask(image_id)]
        rgb, mask = self.views.of(planes, rng)
        return {"image": imagenet_rgb(rgb), "mask": (mask >= _WHITE).astype(np.float32)}
