"""Random views of images with image-level labels, as the methods on ResNet-38 are trained on."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from stages.cam import CamData
from stages.ops.augment import colour_jitter, random_crop, resize_long_side
from stages.ops.images import imagenet_rgb
from wsssbed_hub.utils.errors import HubError


class ViewRecipe(Protocol):
    """The fields of a recipe that say how views are drawn."""

    @property
    def long_side(self) -> tuple[int, int]:
        """The least and greatest length of the longer side, in pixels."""
        ...

    @property
    def flip(self) -> float:
        """How often a view is mirrored, 0 to 1."""
        ...

    @property
    def jitter(self) -> tuple[float, float, float, float]:
        """Of brightness, contrast, saturation and hue, as ``colour_jitter`` takes them."""
        ...

    @property
    def crop(self) -> int:
        """Height and width of a view, in pixels."""
        ...


class Views:
    """Random views of the images, with their image-level labels.

    In this order: the longer side gets a random length, half of the views are mirrored, the colours
    are jittered, a window is cut out at a random place. Where there are saliency maps
    (``data.saliency``) theirs is the same geometry, at the same random size and place.
    """

    def __init__(self, data: CamData, recipe: ViewRecipe) -> None:
        self.data = data
        self.recipe = recipe

    def __len__(self) -> int:
        return len(self.data.image_ids)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A view of the image number ``index`` and its ``label`` float32[C]."""
        image_id = self.data.image_ids[index]
        return {**self.view(image_id, rng), "label": multi_hot(self.data, image_id)}

    def view(self, image_id: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """``image`` float32[3, crop, crop] as the network takes it; where there are saliency maps,
        ``saliency`` float32[1, crop, crop] from 0 to 1, which is 0 where the image is padding.

        Raises HubError if an image and its saliency map differ in size.
        """
        recipe = self.recipe
        shortest, longest = recipe.long_side
        length = int(rng.integers(shortest, longest + 1))
        rgb = self.data.read_image(image_id)
        pictures = (
            [rgb] if self.data.saliency is None else [rgb, saliency_of(self.data, image_id, rgb)]
        )
        pictures = [resize_long_side(picture, length) for picture in pictures]
        if rng.random() < recipe.flip:
            pictures = [picture[:, ::-1] for picture in pictures]
        planes = [imagenet_rgb(colour_jitter(pictures[0], rng, *recipe.jitter))]
        planes += [saliency[None] / np.float32(255) for saliency in pictures[1:]]
        cropped = random_crop(np.concatenate(planes), recipe.crop, rng)
        view = {"image": cropped[:3]}
        return view if self.data.saliency is None else view | {"saliency": cropped[3:]}


def multi_hot(data: CamData, image_id: str) -> np.ndarray:
    """float32[C], 1 for the classes that are present."""
    label = np.zeros(data.num_classes, np.float32)
    label[list(data.image_labels(image_id))] = 1
    return label


def saliency_of(data: CamData, image_id: str, rgb: np.ndarray) -> np.ndarray:
    """The saliency map uint8[H, W] of an image. HubError if it has another size than ``rgb``."""
    assert data.saliency is not None
    saliency = np.asarray(data.saliency.read(image_id))
    if saliency.shape != rgb.shape[:2]:
        raise HubError(
            f"{data.saliency.name}: the saliency map of {image_id} has {saliency.shape} "
            f"pixels (height, width), its image {rgb.shape[:2]}. Use maps of these images."
        )
    return saliency
