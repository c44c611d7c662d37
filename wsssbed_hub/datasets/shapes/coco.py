"""The target's pictures in the layout of COCO 2014: instances as polygons and run lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from wsssbed_hub.datasets.shapes.objects import CLASSES
from wsssbed_hub.datasets.shapes.scenes import Scene

FOLDER = "coco"
_GAP = 3  # after so many categories one id is left out, as COCO does here and there


class CocoFiles:
    """Collects what is drawn, image by image; things of no class are no instances."""

    def __init__(self) -> None:
        self._images: dict[str, list[dict[str, Any]]] = {"train2014": [], "val2014": []}
        self._instances: dict[str, list[dict[str, Any]]] = {"train2014": [], "val2014": []}

    def add(self, split: str, index: int, scene: Scene, jpeg: bytes) -> tuple[str, bytes]:
        """Path and bytes of the image; ``jpeg`` is ``scene`` as a file."""
        part, number = f"{split}2014", index + 1
        name = f"COCO_{part}_{number:012d}.jpg"
        height, width = scene.image.shape[:2]
        self._images[part].append(
            {"id": number, "file_name": name, "height": height, "width": width}
        )
        for thing in scene.things:
            if thing.class_id is not None:
                instances = self._instances[part]
                instances.append(_instance(len(instances) + 1, number, thing.class_id, thing.mask))
        return f"{FOLDER}/{part}/{name}", jpeg

    def annotations(self) -> Iterator[tuple[str, bytes]]:
        """Paths and bytes of the annotation files, when all images are added."""
        categories = [
            {"id": category_id(index), "name": kind.name, "supercategory": "shape"}
            for index, kind in enumerate(CLASSES)
        ]
        for part, images in self._images.items():
            content = {
                "info": {"description": "shapes"},
                "images": images,
                "annotations": self._instances[part],
                "categories": categories,
            }
            yield f"{FOLDER}/annotations/instances_{part}.json", json.dumps(content).encode()


def category_id(class_id: int) -> int:
    """COCO's number for a class: from 1, with gaps."""
    return class_id + 1 + (class_id >= _GAP)


def _instance(number: int, image: int, class_id: int, mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    rings = outlines(mask)
    return {
        "id": number,
        "image_id": image,
        "category_id": category_id(class_id),
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        # Polygons of COCO have no holes, which run lengths can have.
        "segmentation": _run_lengths(mask) if rings is None else rings,
    }


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Lengths of runs down the columns, the first one (maybe 0) outside."""
    pixels = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    ends = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], ends]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def outlines(mask: np.ndarray) -> list[list[int]] | None:
    """Polygons [x, y, x, y, …] along the edges of the pixels of bool[H, W], clockwise; None if
    there is a hole."""
    following = _edges(mask)
    rings: list[list[int]] = []
    while following:
        # Above the highest corner that is left, no other outline touches this one.
        start = here = min(following, key=lambda corner: (corner[1], corner[0]))
        way = following[start][0]
        corners = [start]
        while True:
            _leave(following, here, way)
            here = (here[0] + _WAYS[way][0], here[1] + _WAYS[way][1])
            if here == start:
                break
            # To the right first: where two pixels touch at a corner, each has its own outline.
            turn = next(t for t in (1, 0, -1) if (way + t) % 4 in following[here])
            if turn:
                corners.append(here)
            way = (way + turn) % 4
        if _area(corners) < 0:
            return None
        rings.append([coordinate for corner in corners for coordinate in corner])
    return rings


def _leave(following: dict[tuple[int, int], list[int]], corner: tuple[int, int], way: int) -> None:
    following[corner].remove(way)
    if not following[corner]:
        del following[corner]


_WAYS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up


def _edges(mask: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """Ways in which the outline leaves each of its corners, with the inside on the right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    found: dict[tuple[int, int], list[int]] = {}
    # Of an inner pixel at (y, x): where the neighbour is outside, and where that edge begins.
    for way, neighbour, (dx, dy) in (
        (0, padded[:-2, 1:-1], (0, 0)),
        (1, padded[1:-1, 2:], (1, 0)),
        (2, padded[2:, 1:-1], (1, 1)),
        (3, padded[1:-1, :-2], (0, 1)),
    ):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            found.setdefault((x + dx, y + dy), []).append(way)
    return found


def _area(corners: list[tuple[int, int]]) -> int:
    """Twice the area, negative if they go around it anticlockwise."""
    x, y = np.array(corners).T
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())
