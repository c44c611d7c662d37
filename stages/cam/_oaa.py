"""Online attention accumulation: what is kept of an image's attention maps, and for what.

Written after the published code (models/vgg.py and res.py of OAA-PyTorch). All maps are those of
the classes of the image-level label, in ascending order, at the resolution of the class maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from stages.ops.images import resize_maps_bicubic
from stages.ops.resizing import resize
from stages.runtime.memory import Memory

EPSILON = 1e-8  # in every denominator
LATE = -256
"""Added to the levels of a map that only counts if the class has no other."""
ABSENT = LATE - 1
"""Instead of a map, where a class has none."""


def levels(maps: np.ndarray) -> np.ndarray:
    """Class maps float32[K, h, w] of any sign to 0..255: ReLU, then each divided by its maximum."""
    positive = np.maximum(maps, np.float32(0))
    highest = positive.max((1, 2), keepdims=True)
    scaled: np.ndarray = positive / (highest + np.float32(EPSILON))
    return scaled * np.float32(255)


def in_top_k(scores: Tensor, label: Tensor) -> Tensor:
    """bool[N, C]: the k highest of an image's scores float[N, C]; it has k classes in ``label``.

    Of equal ones the first counts; equal are those that float32's sigmoid does not tell apart, as
    it is sigmoids that the published code sorts.
    """
    order = (-scores.float().sigmoid()).argsort(dim=1, stable=True)
    place = order.argsort(dim=1)  # of each class
    return place < label.sum(1, keepdim=True)


class Accumulation:
    """The attention maps of a training of ``epochs`` epochs, in its memories.

    Of epoch 0 nothing is kept (``first`` is the first of which something is). A class whose score
    is among the image's k highest gives the pixelwise maximum of what is kept and its map, rounded
    to 8 bits. In the last epoch a class of which nothing was kept gives its map whatever its score.

    With ``drop`` the last map that was let through by its score is kept as well, as it was, for the
    attention-drop layer.
    """

    def __init__(self, epochs: int, *, first: int = 1, drop: bool = False) -> None:
        self._epochs, self._first = epochs, first
        # int16[K, h, w] by image: the levels, those minus 256 of late ones, or ABSENT. So the
        # maximum is the rule: a late map gives way to any other, and anything to no map.
        self._kept = Memory(lambda _, old, new: new if old is None else np.maximum(old, new))
        self._current = Memory(
            lambda _, old, new: new if old is None else np.where(new < 0, old, new)
        )
        self._drop = drop

    @property
    def memories(self) -> Mapping[str, Memory]:
        """For the phase that calls ``see``."""
        current = {"current attention": self._current} if self._drop else {}
        return {"accumulated attention": self._kept, **current}

    def see(self, image_id: str, maps: Tensor, label: Tensor, epoch: int) -> None:
        """Take the class maps float[C, h, w] that the training gave of an image in an epoch.

        ``label`` is multi-hot float[C]. What it keeps is there when the epoch has ended.
        """
        if not self._first <= epoch < self._epochs:
            return
        through = in_top_k(maps.mean((1, 2))[None], label[None])[0]
        present = label > 0
        chosen, sure = maps[present].float().cpu().numpy(), through[present].cpu().numpy()
        found = np.rint(levels(chosen)).astype(np.int16)
        last = epoch == self._epochs - 1
        found[~sure] = found[~sure] + LATE if last else ABSENT
        self._kept.put(image_id, found)
        if self._drop and not last:
            self._current.put(image_id, found)

    def accumulated(self, image_id: str) -> tuple[np.ndarray, np.ndarray] | None:
        """uint8[K, h, w] and bool[K], whether there is a map: what was kept until the last epoch's
        end; None if nothing was."""
        return _decoded(self._kept.get(image_id))

    def current(self, image_id: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The same of the maps for the drop layer."""
        return _decoded(self._current.get(image_id))


def _decoded(kept: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    if kept is None:
        return None
    present = kept.max((1, 2)) > ABSENT
    maps = np.where(kept < 0, kept - LATE, kept)
    maps[~present] = 0
    return maps.astype(np.uint8), present


def drop_mask(maps: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """bool[H, W] of ``size`` (height, width): where any of the maps uint8[K, h, w], of which K may
    be 0, is above ``threshold`` of 255 (the attention-drop layer)."""
    if len(maps) == 0:
        return np.zeros(size, bool)
    wide = resize(torch.from_numpy(maps)[None].float(), size)[0].round().numpy()
    return np.asarray((wide / 255 > threshold).any(0))


def zoom(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Accumulated maps uint8[K, h, w] at the image's size (height, width): uint8[K, H, W].

    Each is stretched from its minimum to its maximum and cut to 8 bits, so that 254 is the highest.
    """
    wide = resize_maps_bicubic(maps, *size).astype(np.float64)
    lowest, highest = (pick(wide, axis=(1, 2), keepdims=True) for pick in (np.min, np.max))
    stretched: np.ndarray = (wide - lowest) / (highest - lowest + EPSILON) * 255
    return stretched.astype(np.uint8)


def attention_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class maps float32[K, h, w] of a trained network at the image's size: uint8[K, H, W].

    Cut to 8 bits before they are enlarged (scripts/test.py and test_iam.py).
    """
    return resize_maps_bicubic(levels(maps).astype(np.uint8), *size)


def integral_targets(maps: np.ndarray, class_ids: Sequence[int], classes: int) -> np.ndarray:
    """float32[C, h, w] in 0..1 of accumulated maps uint8[K, h, w]; 0 for classes not there."""
    targets = np.zeros((classes, *maps.shape[1:]), np.float32)
    targets[list(class_ids)] = maps.astype(np.float32) / np.float32(255)
    return targets
