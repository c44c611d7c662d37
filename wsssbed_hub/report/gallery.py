"""Images side by side with their maps, for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from wsssbed_hub.artifacts import pictures
from wsssbed_hub.artifacts.png_codec import encode_png
from wsssbed_hub.report.data import Gallery, GalleryRow, Picture
from wsssbed_hub.utils.errors import HubError


class Images(Protocol):
    """The part of a target that is needed here (see wsssbed_hub.datasets)."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    def read_image(self, image_id: str) -> np.ndarray: ...
    def image_labels(self, image_id: str) -> tuple[int, ...]: ...


class Readable(Protocol):
    """The part of maps (``sal``, ``cam`` or ``label``) that is needed here."""

    @property
    def kind(self) -> str: ...
    @property
    def image_ids(self) -> Sequence[str]: ...
    def read(self, image_id: str) -> Any: ...


class _Drawn(NamedTuple):
    """A map as it will be shown: grey, RGB, or (``label``) label values."""

    what: str
    array: np.ndarray
    label: bool = False


def choose_images(images: Images, image_ids: Sequence[str], count: int) -> list[str]:
    """``count`` of ``image_ids`` that together show as many classes as a few images can, sorted.

    The choice depends on the ids alone: the same list gives the same images.
    """
    shuffled = sorted(image_ids, key=lambda name: hashlib.sha256(name.encode()).digest())
    pool = shuffled[: max(40 * count, 200)]  # reading the labels of all takes too long
    chosen: list[str] = []
    seen: set[int] = set()
    for image_id in pool:
        new = set(images.image_labels(image_id)) - seen
        if new and len(chosen) < count:
            chosen.append(image_id)
            seen |= new
    rest = [image_id for image_id in pool if image_id not in chosen]
    return sorted(chosen + rest[: count - len(chosen)])


def make_gallery(
    images: Images,
    columns: Sequence[tuple[str, Readable]],
    image_ids: Sequence[str],
    *,
    longest: int = 400,
) -> Gallery:
    """One row for each image: the image, then what each of the titled ``columns`` has of it.

    Pictures are shrunk to ``longest`` pixels. An image that a column lacks stays empty there.
    Raises HubError if a map and its image differ in size.
    """
    rows, shown = [], set()
    have = [set(maps.image_ids) for _, maps in columns]
    for image_id in image_ids:
        image = images.read_image(image_id)
        cells = [[_encode(_Drawn("image", image), longest)]]
        for (title, maps), known in zip(columns, have, strict=True):
            found = maps.read(image_id) if image_id in known else None
            drawn = _draw(maps.kind, found, image, images.classes, f"{title}, {image_id}")
            shown |= {int(v) for item in drawn if item.label for v in np.unique(item.array)}
            cells.append([_encode(item, longest) for item in drawn])
        classes = list(images.image_labels(image_id))
        rows.append(GalleryRow(image_id=image_id, classes=classes, cells=cells))
    return Gallery(columns=["image", *(t for t, _ in columns)], rows=rows, shown=sorted(shown))


def _draw(
    kind: str, found: Any, image: np.ndarray, classes: Sequence[str], name: str
) -> list[_Drawn]:
    """Pictures of the maps of one image: a saliency map, a label, or a heat map of each class."""
    if found is None:
        return []
    if kind == "cam":
        drawn = [
            (class_name(classes, int(class_id)), activation)
            for activation, class_id in zip(found[0], found[1], strict=True)
        ]
    else:
        drawn = [({"sal": "saliency", "label": "label"}[kind], found)]
    for _, array in drawn:
        if array.shape != image.shape[:2]:
            raise HubError(
                f"{name}: the map is {array.shape[0]} x {array.shape[1]} pixels (height x width), "
                f"the image {image.shape[0]} x {image.shape[1]}. Maps have the size of the image."
            )
    if kind == "cam":
        return [_Drawn(name, pictures.heat_overlay(image, array)) for name, array in drawn]
    return [_Drawn(name, array, kind == "label") for name, array in drawn]


def class_name(classes: Sequence[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def _encode(drawn: _Drawn, longest: int) -> Picture:
    small = pictures.shrink(drawn.array, longest, exact=drawn.label)
    encoded = encode_png(small, palette=True) if drawn.label else pictures.encode(small, "JPEG")
    return Picture.of(drawn.what, encoded, small.shape, pixelated=drawn.label)
