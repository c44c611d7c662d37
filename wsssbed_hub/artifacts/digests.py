"""Digests: of files, of lists of image ids, and of decoded maps (the content digest).

The content digest is the identity of an artifact's maps, whatever wrote the PNGs. It has two
levels, so that parts of an artifact can be digested apart, by several processes or in several runs:

- an image's digest is the sha256 of the line ``<H> <W> <class ids joined by commas>\\n`` (no class
  ids for saliency maps and labels) and then the bytes of the maps, uint8, row by row, in the order
  of the class ids;
- the content digest is the sha256 of the line ``wsssbed-hub maps 1 <kind>\\n`` and then, with the
  ids in ascending order, of a line ``<image id> <image digest>\\n`` for each image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

_MAPS = "wsssbed-hub maps 1"


def file_digest(path: Path) -> str:
    """``sha256:…`` of the file's bytes."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def list_digest(ids: Iterable[str]) -> str:
    """``sha256:…`` of the ids in ascending order, each followed by a newline."""
    text = "".join(f"{image_id}\n" for image_id in sorted(ids))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def image_digest(maps: np.ndarray, class_ids: Sequence[int] | np.ndarray = ()) -> str:
    """64 hex digits for the maps of one image: uint8[H, W], or uint8[K, H, W] with K class ids."""
    height, width = maps.shape[-2:]
    ids = ",".join(str(int(class_id)) for class_id in class_ids)
    digest = hashlib.sha256(f"{height} {width} {ids}\n".encode())
    digest.update(np.ascontiguousarray(maps).data)
    return digest.hexdigest()


def content_digest(kind: str, images: Iterable[tuple[str, str]]) -> str:
    """``sha256:…`` over (image id, image digest) pairs, which must come in ascending order."""
    digest = hashlib.sha256(f"{_MAPS} {kind}\n".encode())
    for image_id, hexadecimal in images:
        digest.update(f"{image_id} {hexadecimal}\n".encode())
    return "sha256:" + digest.hexdigest()
