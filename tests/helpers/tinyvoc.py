"""A target of a few images in the layout of VOC, with maps in the layout of the release."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from samples import noise, png

IDS = {"a1": (0, 2), "b2": (1,), "c3": (5,)}  # image id: classes that are in it
SIZE = (6, 8)


def make_target(root: Path, names: tuple[str, ...]) -> Path:
    """The target ``shapes`` below ``root``, with IDS in train_aug and image ``v9`` in val."""
    folder = root / "shapes" / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for image_id, classes in {**IDS, "v9": (3,)}.items():
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(
            folder / "JPEGImages" / f"{image_id}.jpg"
        )
        objects = "".join(f"<object><name>{names[c]}</name></object>" for c in classes)
        path = folder / "Annotations" / f"{image_id}.xml"
        path.write_text(f"<annotation>{objects}</annotation>")
    lists = {"train_aug": list(IDS), "train": list(IDS)[:1], "val": ["v9"]}
    for split, ids in lists.items():
        path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_text("".join(f"{i}\n" for i in ids))
    return root


def saliency() -> dict[str, bytes]:
    """PNGs by file name; brighter inside than at the border, as saliency maps are."""
    found = {}
    for number, image_id in enumerate(IDS):
        pixels = noise(number, *SIZE) // 4
        pixels[1:-1, 1:-1] += 128
        found[f"{image_id}.png"] = png(pixels)
    return found


def activations() -> dict[str, bytes]:
    return {
        f"{image_id}_{c}.png": png(noise(10 * number + c, *SIZE))
        for number, (image_id, classes) in enumerate(IDS.items())
        for c in classes
    }


def zipped(files: Mapping[str, bytes], folder: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(f"{folder}{name}"), data)
    return file.getvalue()


def unpacked(files: Mapping[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
