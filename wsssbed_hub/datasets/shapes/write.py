"""Drawing ``shapes`` and writing it in the layouts of VOC, COCO and DUTS."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsssbed_hub.artifacts.png_codec import encode_png
from wsssbed_hub.datasets.shapes import coco
from wsssbed_hub.datasets.shapes.objects import CLASSES
from wsssbed_hub.datasets.shapes.scenes import Scene, draw_plain_scene, draw_scene
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import atomic_folder, disk_errors, write_whole
from wsssbed_hub.utils.progress import Progress

STAMP = "shapes.json"
DRAWING = 2  # goes up when the files of a seed change

_SIZES = (113, 145)  # sides of a target's image: at least, and less than
_SOD_SIZE = 128
_OTHERS_IN_TARGET = 0.15  # things of no class are rare in the target's pictures …
_OTHERS_IN_SOD = 0.5  # … and common where only saliency counts
_STREAMS = ("train", "val", "sod", "sod_test", "small")  # a picture depends on its place here
_JPEG_QUALITY = 92

Files = Iterator[tuple[str, bytes]]


def make_shapes(
    root: Path,
    seed: int = 0,
    *,
    train: int = 300,
    val: int = 100,
    sod: int = 300,
    sod_test: int = 60,
    small: int = 24,
    progress: Progress | None = None,
) -> None:
    """Draws the synthetic dataset below the data root ``root``: ``shapes`` and ``shapes-small``.

    ``train`` pictures are the split train_aug, the first third of them is train; ``val`` pictures
    are val; both are there a second time, in the layout of COCO. ``sod`` and ``sod_test`` are
    DUTS-TR and DUTS-TE, ``small`` is the DUTS-TR of shapes-small. Each picture depends on (seed,
    split, index) alone, so more pictures leave the first ones as they are. The same settings give
    the same bytes with the same library versions.

    Each of the two folders appears whole or not at all; one that is there with the same settings
    is left alone. ``progress(done, total)`` counts pictures.

    Raises UsageError for numbers that make no dataset, HubError if a folder is there with other
    settings or was changed since, or if the disk is full.
    """
    counts = {"train": train, "val": val, "sod": sod, "sod_test": sod_test, "small": small}
    if seed < 0 or train < 3 or min(counts.values()) < 1:
        raise UsageError("shapes needs a seed of 0 or more, 3 training images and 1 of the rest.")
    total = sum(counts.values())
    root = Path(root)
    with disk_errors(root):
        _make(
            root / "shapes-small",
            {"seed": seed, "small": small},
            lambda: _duts("small", seed, small, "DUTS-TR"),
            progress and (lambda done: progress(done, total)),
        )
        settings = {"seed": seed} | {name: counts[name] for name in _STREAMS[:4]}
        _make(
            root / "shapes",
            settings,
            lambda: _shapes(settings),
            progress and (lambda done: progress(small + done, total)),
        )


def _make(
    folder: Path,
    settings: Mapping[str, int],
    draw: Callable[[], Files],
    progress: Callable[[int], None] | None,
) -> None:
    """Writes the files that ``draw`` gives below ``folder``, all of them or none."""
    stamp = {"drawing": DRAWING, "settings": dict(settings)}
    with atomic_folder(folder) as partial:
        if partial is None:
            _verify(folder, stamp)
            return
        _write_all(partial, draw(), progress)
        stamp["content"] = _content(partial)
        write_whole(partial / STAMP, (json.dumps(stamp, indent=2) + "\n").encode())


def _write_all(folder: Path, files: Files, progress: Callable[[int], None] | None) -> None:
    # Not synced one by one: that takes longer than the drawing. A power cut can empty files that
    # were just written, and `_verify` then sees it by their sizes.
    pictures = 0
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if name.endswith(".jpg") and not name.startswith(f"{coco.FOLDER}/"):  # a second copy
            pictures += 1
            if progress is not None:
                progress(pictures)


def _content(folder: Path) -> str:
    """Digest of the names and sizes of all files but the stamp."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / STAMP]
    lines = sorted(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _verify(folder: Path, stamp: Mapping[str, Any]) -> None:
    again = f"Remove {folder} to draw it again, or choose another data root."
    try:
        there = json.loads((folder / STAMP).read_text())
        content = there.pop("content")
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise HubError(f"{folder} was not drawn by this program. {again}") from None
    if there != stamp:
        raise HubError(f"{folder} was drawn with other settings: {json.dumps(there)}. {again}")
    if content != _content(folder):
        raise HubError(f"{folder} was changed since it was drawn. {again}")


def _rng(seed: int, stream: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS.index(stream), index])


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _shapes(settings: Mapping[str, int]) -> Files:
    seed = settings["seed"]
    yield from _target(seed, settings["train"], settings["val"])
    yield from _duts("sod", seed, settings["sod"], "DUTS-TR")
    yield from _duts("sod_test", seed, settings["sod_test"], "DUTS-TE")


def _target(seed: int, train: int, val: int) -> Files:
    folder = "VOCdevkit/VOC2012"
    train_aug = [f"train_{index:04d}" for index in range(train)]
    lists = {"train_aug": train_aug, "train": train_aug[: train // 3]}
    lists["val"] = [f"val_{index:04d}" for index in range(val)]
    lists["trainval"] = lists["train"] + lists["val"]
    for name, ids in lists.items():
        text = "".join(f"{image_id}\n" for image_id in ids)
        yield f"{folder}/ImageSets/Segmentation/{name}.txt", text.encode()
    fine = set(lists["trainval"])
    in_coco = coco.CocoFiles()
    for image_id in train_aug + lists["val"]:
        split, index = image_id.split("_")
        scene = _target_scene(_rng(seed, split, int(index)), int(index))
        jpeg = _jpeg(scene.image)
        yield f"{folder}/JPEGImages/{image_id}.jpg", jpeg
        yield in_coco.add(split, int(index), scene, jpeg)
        yield f"{folder}/Annotations/{image_id}.xml", _annotation(image_id, scene).encode()
        label = scene.label()
        if split == "train":
            yield f"{folder}/SegmentationClassAug/{image_id}.png", encode_png(label, palette=True)
        if image_id in fine:
            label = with_void(label)
            yield f"{folder}/SegmentationClass/{image_id}.png", encode_png(label, palette=True)
    yield from in_coco.annotations()


def _target_scene(rng: np.random.Generator, index: int) -> Scene:
    height, width = (int(side) for side in rng.integers(*_SIZES, 2))
    return draw_scene(rng, height, width, index % len(CLASSES), others=_OTHERS_IN_TARGET)


def _duts(stream: str, seed: int, count: int, part: str) -> Files:
    for index in range(count):
        scene = _sod_scene(_rng(seed, stream, index), plain=stream == "small")
        name = f"{stream}_{index:04d}"
        yield f"{part}/{part}-Image/{name}.jpg", _jpeg(scene.image)
        yield f"{part}/{part}-Mask/{name}.png", encode_png(scene.salient())


def _sod_scene(rng: np.random.Generator, *, plain: bool) -> Scene:
    if plain:
        return draw_plain_scene(rng, _SOD_SIZE)
    first = int(rng.integers(len(CLASSES))) if rng.random() < 0.6 else None
    return draw_scene(rng, _SOD_SIZE, _SOD_SIZE, first, others=_OTHERS_IN_SOD)


def with_void(label: np.ndarray) -> np.ndarray:
    """``label`` with 255 on those pixels of a class that touch another label, as a border of one
    pixel; uint8[H, W]."""
    padded = np.pad(label, 1, mode="edge")
    near = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    border = (label > 0) & np.any([other != label for other in near], axis=0)
    return np.where(border, 255, label).astype(np.uint8)


def _annotation(image_id: str, scene: Scene) -> str:
    """The XML annotation of VOC: one object for each thing of a class, boxes from 1."""
    height, width = scene.image.shape[:2]
    objects = ""
    for thing in scene.things:
        if thing.class_id is None:
            continue
        rows, columns = np.flatnonzero(thing.mask.any(1)), np.flatnonzero(thing.mask.any(0))
        cut = rows[0] == 0 or columns[0] == 0 or rows[-1] == height - 1 or columns[-1] == width - 1
        objects += (
            f"\t<object>\n\t\t<name>{thing.kind.name}</name>\n\t\t<pose>Unspecified</pose>\n"
            f"\t\t<truncated>{int(cut)}</truncated>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>\n"
            f"\t\t\t<xmin>{columns[0] + 1}</xmin>\n\t\t\t<ymin>{rows[0] + 1}</ymin>\n"
            f"\t\t\t<xmax>{columns[-1] + 1}</xmax>\n\t\t\t<ymax>{rows[-1] + 1}</ymax>\n"
            "\t\t</bndbox>\n\t</object>\n"
        )
    return (
        f"<annotation>\n\t<folder>VOC2012</folder>\n\t<filename>{image_id}.jpg</filename>\n"
        "\t<source>\n\t\t<database>shapes</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n"
        "\t\t<depth>3</depth>\n\t</size>\n\t<segmented>1</segmented>\n"
        f"{objects}</annotation>\n"
    )
