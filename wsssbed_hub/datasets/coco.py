"""Targets in the layout of COCO 2014: ``train2014``, ``val2014`` and ``annotations``.

The lists are the images that have an instance: 82,081 of 82,783 for training, 40,137 of 40,504 for
validation. Classes are the 80 categories in the order of their ids, counted from 0; an image's
labels are the classes of all its instances, crowds included. That gives the lists of the WSSS-BED
release.

COCO has no masks of classes, and those that papers measured with differ. This project's are drawn
from the instances with COCO's own program; where instances overlap the smaller one is on top, and
nothing is void. So does coco2voc (github.com/alicranck/coco2voc), which many papers name. If masks
that others made are there, they are taken instead: label PNGs with classes from 1 to 80, and not
COCO's category ids, as ``SegmentationClass/val2014/{id}.png``, ``SegmentationClass/{id}.png`` or
``mask/{id}.png``. ``data check`` says which ones are used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from wsssbed_hub.artifacts.maps import check_image_id
from wsssbed_hub.datasets.base import DownloadSource, NotThere, Target, TargetSpec
from wsssbed_hub.datasets.coco_instances import Instances
from wsssbed_hub.datasets.image_files import image_size, read_indices
from wsssbed_hub.datasets.inventory import (
    ClassCheck,
    DrawnMasks,
    ExpectedList,
    ImageFiles,
    ImageList,
    Inventory,
)
from wsssbed_hub.utils.errors import HubError

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COCO_SPLITS = ("train", "val")
_IMAGE_ID = re.compile(r"COCO_(train|val)2014_\d{12}", re.ASCII)


def part_of(split: str) -> str:
    """The folder of a split's images."""
    return f"{split}2014"


def annotation_file(folder: Path, part: str) -> Path:
    """Where the instances of ``train2014``, ``val2014``, ``train2017`` are."""
    return folder / "annotations" / f"instances_{part}.json"


def find_coco(
    name: str,
    data_root: Path,
    folders: tuple[str, ...],
    parts: tuple[str, ...],
    sources: tuple[DownloadSource, ...],
) -> Path:
    """The first of ``folders`` below the data root with annotations of one of ``parts``.

    Raises NotThere if there is none.
    """
    candidates = [data_root / folder for folder in folders]
    for folder in candidates:
        if any(annotation_file(folder, part).is_file() for part in parts):
            return folder
    looked_for = [annotation_file(folder, parts[0]) for folder in candidates]
    raise NotThere(name, data_root, looked_for, sources)


class CocoTarget(Target):
    """COCO 2014 below ``folder``. Ids are ``COCO_train2014_000000000009`` and the like."""

    def __init__(self, spec: TargetSpec, folder: Path) -> None:
        super().__init__(spec)
        self.folder = folder
        self._instances = {
            split: Instances(annotation_file(folder, part_of(split)), f"COCO_{part_of(split)}_")
            for split in spec.splits
        }
        self._class_of: dict[str, dict[int, int]] = {}
        self._mask_folder: dict[str, Path | None] = {}

    def image_ids(self, split: str) -> list[str]:
        self.class_of(split)
        return self.instances(split).image_ids()

    def image_path(self, image_id: str) -> Path:
        split = self._split_of(check_image_id(image_id)) or self.splits[0]
        return self.folder / part_of(split) / f"{image_id}.jpg"

    def image_labels(self, image_id: str) -> tuple[int, ...]:
        split = self._split_of(image_id)
        if split is None:
            raise HubError(f"{self.name} has no image {image_id!r}.")
        class_of = self.class_of(split)
        categories = self.instances(split).categories(image_id)
        return tuple(sorted(class_of[category] for category in categories))

    def instances(self, split: str) -> Instances:
        """The annotation file of a split. Raises UsageError for an unknown split."""
        self.require_split(split)
        return self._instances[split]

    def class_of(self, split: str) -> dict[int, int]:
        """The class of each category id.

        Raises HubError if the annotation file is not there, or has not the target's categories.
        """
        if split not in self._class_of:
            instances = self.instances(split)
            names = instances.index.names
            if names != self.classes:
                other = next(
                    (name for name, own in zip(names, self.classes, strict=False) if name != own),
                    f"{len(names)} of them",
                )
                raise HubError(
                    f"{instances.path} has not the {self.num_classes} categories of {self.name} "
                    f"in the order of their ids: {other} is another one."
                )
            ids = instances.index.category_ids.tolist()
            self._class_of[split] = {category: index for index, category in enumerate(ids)}
        return self._class_of[split]

    def mask_folder(self, split: str) -> Path | None:
        """Folder with masks that others made of the split's images; None if they are drawn."""
        if split not in self._mask_folder:
            prefix = self.instances(split).prefix
            names = (f"SegmentationClass/{part_of(split)}", "SegmentationClass", "mask")
            folders = (self.folder / name for name in names)
            self._mask_folder[split] = next((f for f in folders if _has(f, prefix)), None)
        return self._mask_folder[split]

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """uint8[H, W]: 0 background, c + 1 class c, 255 void. Has the size of the image.

        Raises HubError if others' masks are there without that of the image.
        """
        folder = self.mask_folder(split)
        if folder is None:
            label = self.instances(split).label(image_id, self.class_of(split))
            what = str(self.instances(split).path)
        else:
            path = folder / f"{check_image_id(image_id)}.png"
            if not path.is_file():
                raise HubError(
                    f"{path} is not there, others are. Complete the folder; or move it away, then "
                    f"masks are drawn from {self.instances(split).path.name}."
                )
            label = read_indices(path, self.num_classes)
            what = str(path)
        image = self.image_path(image_id)
        size = image_size(image) if image.is_file() else self.size(image_id)
        if size != label.shape:
            raise HubError(
                f"{what}: the mask of {image_id} is {label.shape[0]} x {label.shape[1]} pixels, "
                f"the image {size[0]} x {size[1]}."
            )
        return label

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) of the image, which the annotation file says without the image."""
        split = self._split_of(image_id)
        return super().size(image_id) if split is None else self.instances(split).size(image_id)

    def _split_of(self, image_id: str) -> str | None:
        match = _IMAGE_ID.fullmatch(image_id)
        return match[1] if match else None

    def inventory(self) -> Inventory:
        counts = self.spec.counts
        # The masks are made from the instances, whoever made them.
        classes = ClassCheck(
            "masks with a class that the instances lack",
            self.image_labels,
            "are they COCO's category ids?",
            tolerated=False,
        )
        lists = [ExpectedList(s, counts.get(s), partial(self._listed, s)) for s in self.splits]
        return Inventory(lists, classes=classes)

    def _listed(self, split: str) -> ImageList:
        ids, instances = self.image_ids(split), self.instances(split)
        folder = self.mask_folder(split)
        read_mask = partial(self.read_mask, split=split)
        images = ImageFiles(
            "image", lambda image_id: [self.image_path(image_id)], self._checked_size
        )
        masks: ImageFiles | DrawnMasks = DrawnMasks(instances.path, read_mask)
        if folder is not None:
            masks = ImageFiles("mask", lambda image_id: [folder / f"{image_id}.png"], read_mask)
        without = instances.images - len(ids)
        note = f"{without:,} images without instances are left out" if without else ""
        return ImageList(ids, (images, masks), str(instances.path), note)

    def _checked_size(self, image_id: str) -> tuple[int, int]:
        path, stated = self.image_path(image_id), self.size(image_id)
        size = image_size(path)
        if size != stated:
            raise HubError(
                f"{path} is {size[0]} x {size[1]} pixels, the annotations say "
                f"{stated[0]} x {stated[1]}."
            )
        return size


def _has(folder: Path, prefix: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.startswith(prefix) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def open_coco(folders: tuple[str, ...]) -> Callable[..., CocoTarget]:
    """An opener for a target whose COCO 2014 lies in one of ``folders`` below the data root."""

    def open_target(spec: TargetSpec, data_root: Path) -> CocoTarget:
        parts = tuple(part_of(split) for split in spec.splits)
        return CocoTarget(spec, find_coco(spec.name, data_root, folders, parts, spec.sources))

    return open_target
