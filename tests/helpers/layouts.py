"""Small datasets in the layouts in which the real ones are distributed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from wsssbed_hub.datasets import DatasetReport, FileFinding
from wsssbed_hub.datasets.coco import COCO_CLASSES

HEIGHT, WIDTH = 6, 9


def image(path: Path, height: int = HEIGHT, width: int = WIDTH, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def mask(values: Iterable[int] = (1,), height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8[H, W] of background with one pixel of each value in its first row."""
    pixels = np.zeros((height, width), np.uint8)
    for column, value in enumerate(values):
        pixels[0, column] = value
    return pixels


def palette_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(path)


def grey_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def annotation(path: Path, names: Iterable[str]) -> None:
    """An annotation as VOC has them: objects may have parts, which have names too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult>"
        "<part><name>head</name></part></object>"
        for name in names
    )
    path.write_text(f"<annotation><filename>{path.stem}.jpg</filename>{objects}</annotation>")


def id_list(path: Path, ids: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids))


def sbd_mat(path: Path, pixels: np.ndarray, *, compressed: bool = True) -> None:
    """As SBD has them: a struct with boundaries, segmentation and categories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = np.unique(pixels[pixels > 0]).astype(np.uint8)[:, None]
    content = {"Segmentation": pixels, "CategoriesPresent": categories}
    savemat(path, {"GTcls": content}, do_compression=compressed)


def voc(
    root: Path,
    *,
    train: Iterable[str] = ("2007_000001", "2007_000003"),
    val: Iterable[str] = ("2007_000002",),
    further: Iterable[str] = ("2008_000004",),
    folder: str = "VOCdevkit/VOC2012",
) -> Path:
    """VOC 2012 with two classes (aeroplane, tvmonitor) in every image; ``further`` images have no
    mask of VOC's own. Returns its folder."""
    base = root / folder
    for image_id in (*train, *val, *further):
        image(base / "JPEGImages" / f"{image_id}.jpg")
        annotation(base / "Annotations" / f"{image_id}.xml", ["tvmonitor", "aeroplane"])
    for image_id in (*train, *val):
        palette_png(base / "SegmentationClass" / f"{image_id}.png", mask([1, 20, 255]))
    id_list(base / "ImageSets/Segmentation/train.txt", train)
    id_list(base / "ImageSets/Segmentation/val.txt", val)
    return base


def sbd(
    root: Path,
    *,
    train: Iterable[str] = ("2008_000004", "2007_000001"),
    val: Iterable[str] = ("2007_000002",),
    folder: str = "benchmark_RELEASE/dataset",
) -> Path:
    """SBD, whose lists overlap VOC's; its masks hold class 0 in one pixel. Returns its folder."""
    base = root / folder
    for image_id in (*train, *val):
        sbd_mat(base / "cls" / f"{image_id}.mat", mask([1]))
    id_list(base / "train.txt", train)
    id_list(base / "val.txt", val)
    return base


def pairs(images: Path, masks: Path, stems: Iterable[str], *, suffix: str = ".jpg") -> None:
    """Images and binary masks of a SOD dataset."""
    for stem in stems:
        image(images / f"{stem}{suffix}")
        grey_png(masks / f"{stem}.png", mask([255]))


def finding(report: DatasetReport, what: str) -> FileFinding:
    """The only finding of ``what``."""
    (found,) = [found for found in report.findings if found.what == what]
    return found


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


COCO_IDS = tuple(n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's category ids: 80 of the numbers to 90."""


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A polygon around the pixels from (left, top) to before (right, bottom)."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def instance(category: int, segmentation: Any, *, area: float = 1.0, crowd: int = 0) -> dict:
    """An annotation as COCO has them, without its image."""
    return {
        "segmentation": segmentation,
        "area": area,
        "iscrowd": crowd,
        "bbox": [0, 0, 1, 1],
        "category_id": category,
    }


def coco(
    root: Path,
    images: Mapping[int, list[dict]],
    *,
    part: str = "train2014",
    prefix: str | None = None,
    names: Sequence[str] = COCO_CLASSES,
    ids: Sequence[int] = COCO_IDS,
    folder: str = "coco",
) -> Path:
    """COCO with the instances of each image, by its number, in the order in which they are given.

    Pictures are HEIGHT x WIDTH. Returns the annotation file."""
    prefix = f"COCO_{part}_" if prefix is None else prefix
    listed, annotations = [], []
    for number, instances in images.items():
        name = f"{prefix}{number:012d}.jpg"
        listed.append(
            {"license": 1, "file_name": name, "height": HEIGHT, "width": WIDTH, "id": number}
        )
        image(root / folder / part / name)
        annotations += [one | {"image_id": number} for one in instances]
    content = {
        "info": {"description": "drawn by hand"},
        "images": listed,
        "licenses": [{"id": 1, "name": "none", "url": ""}],
        "annotations": [one | {"id": place + 1} for place, one in enumerate(annotations)],
        "categories": [
            {"supercategory": "", "id": number, "name": name}
            for number, name in zip(ids, names, strict=True)
        ],
    }
    path = root / folder / f"annotations/instances_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
