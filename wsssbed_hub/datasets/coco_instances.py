"""The instances of a COCO annotation file, and the masks that are drawn from them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsssbed_hub.datasets.coco_index import Index, load_index
from wsssbed_hub.utils.errors import HubError

_REACH = 2  # polygons may leave the picture by this many times its sides
_OUTLINE = 4_000_000  # pixels along all polygons of an instance: what drawing them costs


class Instance(NamedTuple):
    """One annotation: a thing, or a crowd of things that were not told apart."""

    category: int
    area: float
    segmentation: Any
    """As in the file, unchecked: polygons, or run lengths."""


class Instances:
    """The file ``path``, whose images are called ``prefix`` and twelve digits.

    It is opened when something is asked of it. All functions raise HubError if it is not there, or
    not what COCO's files are.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self.path, self.prefix = path, prefix
        self._name = re.compile(re.escape(prefix) + r"(\d{12})", re.ASCII)

    @cached_property
    def index(self) -> Index:
        return load_index(self.path, self.prefix)

    @property
    def images(self) -> int:
        """Number of images in the file, with instances or without."""
        return len(self.index.numbers)

    def image_ids(self, categories: Collection[int] | None = None) -> list[str]:
        """The images that have an instance (of one of these categories), in ascending order."""
        index = self.index
        if categories is None:
            has = np.diff(index.first) > 0
        else:
            chosen = np.isin(index.category_of, list(categories))
            before = np.concatenate([[0], np.cumsum(chosen)])
            has = np.diff(before[index.first]) > 0
        return [f"{self.prefix}{number:012d}" for number in index.numbers[has].tolist()]

    def categories(self, image_id: str) -> set[int]:
        """Category ids of the image's instances."""
        return set(self.index.category_of[self._of(image_id)].tolist())

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) of the image, as the file says."""
        height, width = self.index.sizes[self._row(image_id)].tolist()
        return height, width

    def label(self, image_id: str, class_of: Mapping[int, int]) -> np.ndarray:
        """uint8[H, W]: 0 background, c + 1 class c; ``class_of`` gives the class of a category.

        Where instances overlap, the one with the smaller area is on top (of equal ones the first
        in the file); crowds count as instances. There is no void.
        """
        height, width = self.size(image_id)
        label = np.zeros((height, width), np.uint8, order="F")  # as masks are
        found = sorted(self.read(image_id), key=lambda one: one.area)
        for one in reversed(found):
            covered = self._mask(one, image_id, height, width)
            np.copyto(label, np.uint8(class_of[one.category] + 1), where=covered)
        return np.ascontiguousarray(label)

    def union(self, image_id: str, categories: Collection[int]) -> np.ndarray:
        """bool[H, W]: where an instance of one of the categories is."""
        height, width = self.size(image_id)
        union = np.zeros((height, width), bool, order="F")
        for one in self.read(image_id):
            if one.category in categories:
                union |= self._mask(one, image_id, height, width)
        return np.ascontiguousarray(union)

    def read(self, image_id: str) -> list[Instance]:
        """The image's instances in the order of the file."""
        chosen = self._of(image_id)
        spans = self.index.spans[chosen].tolist()
        try:
            with open(self.path, "rb") as file:
                datas = [os.pread(file.fileno(), length, offset) for offset, length in spans]
        except OSError as error:
            raise HubError(f"{self.path} cannot be read: {error.strerror}.") from None
        number = int(self.index.numbers[self._row(image_id)])
        categories = self.index.category_of[chosen].tolist()
        return [self._parse(d, number, c) for d, c in zip(datas, categories, strict=True)]

    def _parse(self, data: bytes, number: int, category: int) -> Instance:
        try:
            element = json.loads(data.decode("latin-1"))
            right = (element["image_id"], element["category_id"]) == (number, category)
        except (ValueError, KeyError, TypeError, RecursionError):
            right = False
        if not right:
            raise HubError(f"{self.path} was changed while it was in use. Run it again.")
        area = element.get("area")
        if type(area) not in (int, float) or not math.isfinite(area) or area < 0:
            raise HubError(f"{self.path}: an instance of image {number} has no area.")
        return Instance(category, float(area), element.get("segmentation"))

    def _mask(self, one: Instance, image_id: str, height: int, width: int) -> np.ndarray:
        try:
            return segmentation_mask(one.segmentation, height, width)
        except ValueError as error:
            raise HubError(f"{self.path}: an instance of {image_id}: {error}.") from None

    def _row(self, image_id: str) -> int:
        match = self._name.fullmatch(image_id)
        if match:
            number = int(match[1])
            row = int(np.searchsorted(self.index.numbers, number))
            if row < self.images and self.index.numbers[row] == number:
                return row
        raise HubError(f"{self.path} has no image {image_id!r}.")

    def _of(self, image_id: str) -> slice:
        row = self._row(image_id)
        return slice(int(self.index.first[row]), int(self.index.first[row + 1]))


def segmentation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """bool[H, W], column by column in memory: a segmentation's pixels, by COCO's own program.

    A list of polygons [x, y, x, y, …] (those of fewer than three corners cover nothing), or
    ``{"size": [H, W], "counts": [...]}``: lengths of runs down the columns, outside and inside in
    turn. Raises ValueError for anything else, and for polygons that leave the picture by far.
    """
    if isinstance(segmentation, dict):
        return _draw_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    from pycocotools import mask

    polygons = [_polygon(one, height, width) for one in segmentation]
    if sum(_outline(one) for one in polygons) > _OUTLINE:
        raise ValueError("its polygons are too long to draw")
    closed = [one for one in polygons if len(one) >= 3]
    if not closed:
        return np.zeros((height, width), bool, order="F")
    runs = mask.frPyObjects([one.ravel().tolist() for one in closed], height, width)
    return mask.decode(mask.merge(runs)).view(bool)  # 0 or 1


def _polygon(coordinates: Any, height: int, width: int) -> np.ndarray:
    """float64[K, 2]: its corners. The C code that draws them checks nothing."""
    numbers = isinstance(coordinates, list) and all(type(c) in (int, float) for c in coordinates)
    if not numbers or len(coordinates) % 2:
        raise ValueError("a polygon is no list of pairs of numbers")
    side = max(height, width)
    if not all(-_REACH * side <= c <= (1 + _REACH) * side for c in coordinates):  # NaN neither
        raise ValueError("a polygon leaves the picture by far")
    return np.array(coordinates, np.float64).reshape(-1, 2)


def _outline(corners: np.ndarray) -> float:
    steps = np.abs(corners - np.roll(corners, 1, axis=0))
    return float(steps.max(axis=1, initial=0).sum()) + len(corners)


def _draw_runs(segmentation: dict[str, Any], height: int, width: int) -> np.ndarray:
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"its run lengths are not those of {height} x {width} pixels")
    counts = segmentation.get("counts")
    if not isinstance(counts, list):
        raise ValueError("its run lengths are no list of numbers")
    pixels = height * width
    right = all(type(count) is int and 0 <= count <= pixels for count in counts)
    if not right or len(counts) > 2 * pixels + 2 or sum(counts) != pixels:
        raise ValueError(f"its run lengths are not those of {height} x {width} pixels")
    runs = np.arange(len(counts)) % 2 == 1
    return np.repeat(runs, counts).reshape(width, height).T
