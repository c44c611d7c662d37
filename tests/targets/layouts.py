"""Small datasets in the layouts in which the real ones are distributed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

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


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
