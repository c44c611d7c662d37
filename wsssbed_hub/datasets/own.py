"""A person's own target: a YAML file ``<data root>/<name>.yaml`` that says where things are.

    name: mine
    title: Streets that I photographed
    classes: [car, bicycle, traffic light]   # without background, in the order of their numbers
    images: mine/images                      # {image_id}.jpg, .jpeg or .png
    lists: {train: mine/train.txt, val: mine/val.txt}
    masks: {val: mine/masks}                 # {image_id}.png: 0 background, c + 1 class c, 255 void
    labels: mine/labels.txt                  # image_id and its class numbers, from 0

Paths are below the data root. Maps are made over the first list. ``masks`` may be one folder for
all lists, or be left out; without ``labels`` the classes of an image are those of its mask.
``licence`` and ``paper`` are told to whoever uses it.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from wsssbed_hub.artifacts.manifest import Model, Name, Text
from wsssbed_hub.artifacts.maps import check_image_id
from wsssbed_hub.datasets.base import DownloadSource, NotThere, Target, TargetSpec
from wsssbed_hub.datasets.image_files import read_bytes, read_ids, read_indices, read_lines
from wsssbed_hub.datasets.inventory import (
    ClassCheck,
    ExpectedList,
    ImageFiles,
    ImageList,
    Inventory,
)
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.safe_yaml import load_yaml

_BYTES = 1 << 20  # of a description
_SUFFIXES = (".jpg", ".jpeg", ".png")


def _below(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ValueError("a path below the data root is needed, without '..'")
    return path


Below = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_below)]
SplitName = Annotated[str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$")]


class Description(Model):
    """The content of the YAML file."""

    name: Name
    title: Text
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=254)]
    images: Below
    lists: Annotated[dict[SplitName, Below], Field(min_length=1)]
    masks: Below | dict[SplitName, Below] | None = None
    labels: Below | None = None
    licence: Text = "not stated"
    paper: Text | None = None

    @model_validator(mode="after")
    def _fits(self) -> Description:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice")
        if isinstance(self.masks, dict) and not self.masks.keys() <= self.lists.keys():
            raise ValueError("masks are of a split that has no list")
        if self.masks is None and self.labels is None:
            raise ValueError("there are neither masks nor labels: no image has a class")
        return self

    def mask_folder(self, split: str) -> str | None:
        """The folder with the masks of a split, below the data root; None if there are none."""
        return self.masks.get(split) if isinstance(self.masks, dict) else self.masks


def read_description(path: Path) -> TargetSpec:
    """The target that the YAML file describes.

    Raises HubError naming the file and what is wrong: not YAML, unknown or missing fields, paths
    that leave the data root, a name that is not the file's.
    """
    try:
        described = Description.model_validate(load_yaml(read_bytes(path, _BYTES), str(path)))
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc'])) or 'target'}: {item['msg']}"
            for item in error.errors()
        ]
        raise HubError("\n".join([f"{path} does not describe a target:", *lines])) from None
    if described.name != path.stem:
        raise HubError(f"{path} describes {described.name!r}. Call it {described.name}.yaml.")
    return TargetSpec(
        name=described.name,
        title=described.title,
        classes=described.classes,
        splits=tuple(described.lists),
        sources=(DownloadSource("as described in", str(path)),),
        licence=described.licence,
        paper=described.paper,
        open=partial(_open, described),
    )


def _open(described: Description, spec: TargetSpec, data_root: Path) -> OwnTarget:
    images = data_root / described.images
    if not images.is_dir():
        raise NotThere(spec.name, data_root, [images], spec.sources)
    return OwnTarget(spec, described, data_root)


class OwnTarget(Target):
    """A target as its ``Description`` says, below ``data_root``."""

    def __init__(self, spec: TargetSpec, described: Description, data_root: Path) -> None:
        super().__init__(spec)
        self._described, self._root = described, data_root
        self._lists: dict[str, list[str]] = {}

    def image_ids(self, split: str) -> list[str]:
        self.require_split(split)
        if split not in self._lists:
            self._lists[split] = read_ids(self._root / self._described.lists[split])
        return list(self._lists[split])

    def image_path(self, image_id: str) -> Path:
        paths = self._image_paths(image_id)
        return next((path for path in paths if path.is_file()), paths[0])

    def _image_paths(self, image_id: str) -> list[Path]:
        stem = check_image_id(image_id)
        return [self._root / self._described.images / f"{stem}{suffix}" for suffix in _SUFFIXES]

    def image_labels(self, image_id: str) -> tuple[int, ...]:
        if self._described.labels is not None:
            try:
                return self._labels[check_image_id(image_id)]
            except KeyError:
                raise HubError(f"{self._labels_path} has no image {image_id!r}.") from None
        for split in self.splits:
            path = self._mask_path(image_id, split)
            if path is not None and path.is_file():
                values = np.unique(self.read_mask(image_id, split)).tolist()
                return tuple(value - 1 for value in values if 0 < value < 255)
        raise HubError(f"{self.name} has no mask of image {image_id}, and no labels of images.")

    @property
    def _labels_path(self) -> Path:
        return self._root / (self._described.labels or "")

    @cached_property
    def _labels(self) -> dict[str, tuple[int, ...]]:
        path = self._labels_path
        found: dict[str, tuple[int, ...]] = {}
        for number, image_id, words in read_lines(path):
            numbers = {int(word) for word in words if word.isascii() and word.isdecimal()}
            if len(numbers) < len(words) or any(c >= self.num_classes for c in numbers):
                raise HubError(
                    f"{path}, line {number}: after the image come its class numbers, distinct, "
                    f"from 0 to {self.num_classes - 1}."
                )
            if image_id in found:
                raise HubError(f"{path}, line {number}: {image_id} stands there twice.")
            found[image_id] = tuple(sorted(numbers))
        return found

    def _mask_path(self, image_id: str, split: str) -> Path | None:
        folder = self._described.mask_folder(split)
        return None if folder is None else self._root / folder / f"{check_image_id(image_id)}.png"

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        path = self._mask_path(image_id, split)
        if path is None:
            raise HubError(f"{self.name} has no masks of {split}: {self.name}.yaml names none.")
        label = read_indices(path, self.num_classes)
        self.require_size(image_id, label, str(path))
        return label

    def inventory(self) -> Inventory:
        classes = None
        if self._described.labels is not None:
            classes = ClassCheck(
                "masks with a class that the labels lack",
                self.image_labels,
                "do the labels count classes from 0, without background?",
                tolerated=True,
            )
        lists = [ExpectedList(s, None, partial(self._listed, s)) for s in self.splits]
        return Inventory(lists, classes=classes)

    def _listed(self, split: str) -> ImageList:
        files = [ImageFiles("image", self._image_paths, self.size)]
        if self._described.labels is not None:
            files.append(ImageFiles("label", self._labels_of, self.image_labels))
        folder = self._described.mask_folder(split)
        if folder is not None:
            masks = self._root / folder
            read = partial(self.read_mask, split=split)
            files.append(ImageFiles("mask", lambda image_id: [masks / f"{image_id}.png"], read))
        return ImageList(
            self.image_ids(split), files, str(self._root / self._described.lists[split])
        )

    def _labels_of(self, image_id: str) -> list[Path]:
        """The file, if it has the image; else a place where nothing is."""
        path = self._labels_path
        return [path if image_id in self._labels else path / image_id]
