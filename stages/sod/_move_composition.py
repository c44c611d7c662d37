"""The pictures that MOVE makes of images and masks, for its discriminator to judge."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.backbones.mae import MaskedAutoencoder
from stages.ops.resizing import resize_nearest


class Composition:
    """The pictures that are made of images and masks (section 3), each when it is asked for.

    ``image`` float[N, 3, S, S], ``mask`` float[N, 1, S, S] in [0, 1]; ``shifts`` are pixels to the
    right and down, for each image.
    """

    def __init__(
        self,
        mae: MaskedAutoencoder,
        image: Tensor,
        mask: Tensor,
        shifts: list[tuple[int, int]],
        *,
        copy_real: bool = False,
        binary_inpainting: bool = False,
    ) -> None:
        self.mae = mae
        self.image, self.mask, self.shifts = image, mask, shifts
        self.copy_real, self.binary_inpainting = copy_real, binary_inpainting

    @cached_property
    def latent(self) -> Tensor:
        with torch.no_grad():
            return self.mae.encode(self.image)

    @cached_property
    def shifted_mask(self) -> Tensor:
        return shifted(self.mask, self.shifts)

    @cached_property
    def hole(self) -> Tensor:
        """float[N, 1, S, S]: where the background is not seen, or the object covers it."""
        return self.mask * (1 - self.shifted_mask) + self.shifted_mask

    @cached_property
    def keep(self) -> Tensor:
        """float[N, cells]: 1 for patches of the background that are seen whole."""
        keep = 1 - F.max_pool2d(self.hole, self.mae.patch).flatten(1)
        return (keep > 0.5).to(keep.dtype) if self.binary_inpainting else keep

    @cached_property
    def background(self) -> Tensor:
        """float[N, 3, S, S]: the image with the hole inpainted."""
        inpainted = self.mae.decode(self.latent, self.keep)
        if not self.copy_real:
            return inpainted
        side = self.image.shape[2] // self.mae.patch
        share = resize_nearest(self.keep.unflatten(1, (1, side, side)), self.image.shape[2:])
        return self.image * share + inpainted * (1 - share)

    @cached_property
    def real(self) -> Tensor:
        if self.copy_real:
            return self.image
        with torch.no_grad():
            return self.mae.decode(self.latent)

    @cached_property
    def real_shifted(self) -> Tensor:
        moved = shifted(self.image, self.shifts)
        if self.copy_real:
            return moved
        with torch.no_grad():
            return self.mae.decode(self.mae.encode(moved))

    @property
    def composed(self) -> Tensor:
        """The object moved: fake, and what trains the segmenter."""
        return blend(self.real_shifted, self.background, self.shifted_mask)

    @property
    def unmoved(self) -> Tensor:
        """The object in its place before the inpainted background: counts as real."""
        return blend(self.real, self.background, self.mask)

    @property
    def copied(self) -> Tensor:
        """The object a second time, with nothing inpainted: fake."""
        return blend(self.real_shifted, self.real, self.shifted_mask)


def blend(front: Tensor, back: Tensor, mask: Tensor) -> Tensor:
    return front * mask + back * (1 - mask)


def shifted(x: Tensor, shifts: list[tuple[int, int]]) -> Tensor:
    """float[N, C, H, W], each image moved so many pixels right and down; zeros come in."""
    moved = [F.pad(one, (a, -a, b, -b)) for one, (a, b) in zip(x, shifts, strict=True)]
    return torch.stack(moved)


def draw_shifts(count: int, largest: float) -> list[tuple[int, int]]:
    """Pixels, uniform in +-``largest`` and rounded."""
    drawn = ((torch.rand(count, 2) * 2 - 1) * largest).round().long()
    return [(right, down) for right, down in drawn.tolist()]
