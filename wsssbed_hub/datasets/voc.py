"""Targets in the layout of PASCAL VOC 2012, with SBD's masks where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from wsssbed_hub.artifacts.maps import check_image_id
from wsssbed_hub.datasets.base import NotThere, Target, TargetSpec, find_folder
from wsssbed_hub.datasets.image_files import either, read_ids, read_indices, some
from wsssbed_hub.datasets.inventory import (
    ClassCheck,
    ExpectedList,
    ImageFiles,
    ImageList,
    Inventory,
)
from wsssbed_hub.datasets.voc_annotations import object_names, read_sbd_mask
from wsssbed_hub.utils.errors import HubError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
SPLITS = ("train_aug", "train", "val")
_AUG_LISTS = ("train_aug.txt", "trainaug.txt")  # both names are in use


class VocTarget(Target):
    """VOC 2012 below ``folder`` and, if it is there, SBD below ``sbd``.

    ``train_aug`` is (SBD train and val, VOC train) without VOC val, 10,582 images; where SBD is not
    there a list ``ImageSets/Segmentation/train_aug.txt`` (or ``trainaug.txt``) says it. Its masks
    are those of ``SegmentationClassAug``; an image that is not there has VOC's own mask, or SBD's.

    Image-level labels are the names of all objects in the XML annotation, those marked difficult
    included, as the published methods take them.
    """

    def __init__(self, spec: TargetSpec, folder: Path, sbd: Path | None) -> None:
        super().__init__(spec)
        self.folder = folder
        self.sbd = sbd

    def image_ids(self, split: str) -> list[str]:
        return list(self._list(split))

    def listed_ids(self, name: str) -> list[str]:
        path = self.lists / f"{name}.txt"
        if name in self.splits or Path(name).name != name or not path.is_file():
            return self.image_ids(name)
        return read_ids(path)

    def image_path(self, image_id: str) -> Path:
        return self.folder / "JPEGImages" / f"{check_image_id(image_id)}.jpg"

    def annotation_path(self, image_id: str) -> Path:
        """Where the XML annotation is, or would be."""
        return self.folder / "Annotations" / f"{check_image_id(image_id)}.xml"

    def image_labels(self, image_id: str) -> tuple[int, ...]:
        path = self.annotation_path(image_id)
        names = set(object_names(path))
        unknown = sorted(names - set(self.classes))
        if unknown:
            raise HubError(f"{path} names {unknown[0]!r}, which is no class of {self.name}.")
        return tuple(index for index, name in enumerate(self.classes) if name in names)

    def mask_path(self, image_id: str, split: str) -> Path:
        """The file with the image's ground truth: PNG, or SBD's .mat.

        Raises HubError naming the places that were looked at if there is none.
        """
        candidates = self.mask_candidates(check_image_id(image_id), split)
        for path in candidates:
            if path.is_file():
                return path
        raise HubError(
            f"{self.name} has no mask of image {image_id} ({split}): looked for "
            f"{either(candidates)}. `wsssbed-hub data check {self.name}` says what is missing."
        )

    def mask_candidates(self, image_id: str, split: str) -> list[Path]:
        """Where the image's ground truth may be, in the order in which it is looked for."""
        candidates = [self.folder / "SegmentationClass" / f"{image_id}.png"]
        if split == "train_aug":
            candidates.insert(0, self.folder / "SegmentationClassAug" / f"{image_id}.png")
            if self.sbd is not None:
                candidates.append(self.sbd / "cls" / f"{image_id}.mat")
        return candidates

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """uint8[H, W]: 0 background, c + 1 class c, 255 void. Has the size of the image."""
        path = self.mask_path(image_id, split)
        read = read_sbd_mask if path.suffix == ".mat" else read_indices
        label = read(path, self.num_classes)
        self.require_size(image_id, label, str(path))
        return label

    def _list(self, split: str) -> Sequence[str]:
        if split == "train_aug":
            return self._train_aug[0]
        self.require_split(split)
        return self._train if split == "train" else self._val

    @cached_property
    def _train(self) -> list[str]:
        return read_ids(self.lists / "train.txt")

    @cached_property
    def _val(self) -> list[str]:
        return read_ids(self.lists / "val.txt")

    @property
    def lists(self) -> Path:
        """Folder with the lists of VOC."""
        return self.folder / "ImageSets" / "Segmentation"

    def list_source(self, split: str) -> str:
        """File or, for SBD's two lists, folder that a split's list comes from.

        Raises HubError if it is not there.
        """
        return self._train_aug[1] if split == "train_aug" else str(self.lists / f"{split}.txt")

    @cached_property
    def _train_aug(self) -> tuple[list[str], str]:
        if self.sbd is not None and (self.sbd / "train.txt").is_file():
            names = [self.sbd / "train.txt", self.sbd / "val.txt"]
            ids = {image_id for path in names for image_id in read_ids(path)} | set(self._train)
            return sorted(ids - set(self._val)), str(self.sbd)
        candidates = [self.lists / name for name in _AUG_LISTS]
        for path in candidates:
            if path.is_file():
                ids = set(read_ids(path))
                both = sorted(ids & set(self._val))
                if both:
                    raise HubError(f"{path} lists images of val: {some(both)}.")
                return sorted(ids), str(path)
        raise HubError(
            f"{self.name} has no list of train_aug: looked for SBD's train.txt and val.txt, "
            f"{either(candidates)}. `wsssbed-hub data check {self.name}` says where to get SBD."
        )

    def inventory(self) -> Inventory:
        counts = self.spec.counts
        classes = ClassCheck(
            "masks with a class that the annotation lacks",
            self._named_labels,
            "not an error, annotators disagree",
            tolerated=True,
        )
        lists = [ExpectedList(s, counts.get(s), partial(self._listed, s)) for s in self.splits]
        return Inventory(lists, classes=classes)

    def _listed(self, split: str) -> ImageList:
        masks = partial(self.mask_candidates, split=split)
        files = (
            ImageFiles("image", lambda image_id: [self.image_path(image_id)], self.size),
            ImageFiles("annotation", lambda i: [self.annotation_path(i)], self._named_labels),
            ImageFiles("mask", masks, partial(self.read_mask, split=split)),
        )
        return ImageList(self.image_ids(split), files, self.list_source(split))

    def _named_labels(self, image_id: str) -> tuple[int, ...]:
        labels = self.image_labels(image_id)
        if not labels:
            raise HubError(f"{self.annotation_path(image_id)} names no object.")
        return labels


def open_voc(folders: tuple[str, ...], sbd: tuple[str, ...] = ()) -> Callable[..., VocTarget]:
    """An opener for a target whose VOC 2012 lies in one of ``folders`` below the data root, and
    whose SBD lies in one of the folders ``sbd``."""

    def open_target(spec: TargetSpec, data_root: Path) -> VocTarget:
        folder = find_folder(data_root, folders)
        if folder is None or not (folder / "JPEGImages").is_dir():
            looked_for = [data_root / name / "JPEGImages" for name in folders]
            raise NotThere(spec.name, data_root, looked_for, spec.sources)
        return VocTarget(spec, folder, find_folder(data_root, sbd))

    return open_target
