"""Images and their maps as one small picture, whatever is wrong with them: for a first look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsssbed_hub.artifacts import pictures
from wsssbed_hub.report.gallery import Images, Readable, class_name
from wsssbed_hub.utils.errors import HubError

_MOST = 4  # maps of one image that are shown beside each other: the rest is left out


def thumbnail_gallery(
    images: Images | None,
    columns: Sequence[tuple[str, Readable]],
    image_ids: Sequence[str],
    *,
    remarks: Mapping[str, str] | None = None,
    longest: int = 160,
) -> bytes:
    """One PNG file: a row for each image, the image and then what each titled column has of it.

    ``images`` is None where they are not at hand. ``remarks`` (by image id) stand below. A map that
    cannot be read leaves a gap that says so, and one of another size than its image is shown as it
    is: this is where people look for what is wrong. Raises ValueError without images.
    """
    have = [set(maps.image_ids) for _, maps in columns]
    rows = []
    for image_id in image_ids:
        image = _image(images, image_id)
        remark = (remarks or {}).get(image_id)
        name = f"{image_id}: {remark}" if remark else image_id
        row = [[pictures.Tile(image, name)]]
        for (_, maps), known in zip(columns, have, strict=True):
            row.append(_cells(maps, image_id, image, images) if image_id in known else [])
        rows.append(row)
    widths = [max((len(row[column]) for row in rows), default=1) for column in range(len(rows[0]))]
    names = ["image", *(title for title, _ in columns)]
    titles = [
        name if place == 0 else ""
        for name, width in zip(names, widths, strict=True)
        for place in range(width)
    ]
    cells = [
        [
            cells[place] if place < len(cells) else pictures.Tile(None)
            for cells, width in zip(row, widths, strict=True)
            for place in range(width)
        ]
        for row in rows
    ]
    return pictures.encode(pictures.contact_sheet(cells, titles, longest=longest), "PNG")


def _image(images: Images | None, image_id: str) -> np.ndarray | None:
    if images is None:
        return None
    try:
        return images.read_image(image_id)
    except HubError:
        return None


def _cells(
    maps: Readable, image_id: str, image: np.ndarray | None, images: Images | None
) -> list[pictures.Tile]:
    try:
        found: Any = maps.read(image_id)
    except HubError:
        return [pictures.Tile(None, "cannot be read")]
    if maps.kind == "cam":
        names = images.classes if images is not None else ()
        return [
            pictures.Tile(_heat(grey, image), f"{class_name(names, int(c))}{_size(grey, image)}")
            for grey, c in list(zip(*found, strict=True))[:_MOST]
        ]
    array = pictures.label_picture(found) if maps.kind == "label" else found
    return [pictures.Tile(array, _size(found, image).strip())]


def _heat(grey: np.ndarray, image: np.ndarray | None) -> np.ndarray:
    """Over the image if there is one of that size, else alone."""
    if image is None or image.shape[:2] != grey.shape:
        return pictures.heat_picture(grey)
    return pictures.heat_overlay(image, grey)


def _size(grey: np.ndarray, image: np.ndarray | None) -> str:
    """Both sizes in words where they differ."""
    if image is None or image.shape[:2] == grey.shape:
        return ""
    return f" {grey.shape[0]} x {grey.shape[1]}, not {image.shape[0]} x {image.shape[1]}"
