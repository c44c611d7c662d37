"""Base classes of targets and of what is known of a dataset before any file is opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsssbed_hub.artifacts.maps import Maps
from wsssbed_hub.datasets.image_files import either, image_size, read_rgb
from wsssbed_hub.datasets.inventory import Inventory
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean


@dataclass(frozen=True)
class DownloadSource:
    """Where something is to be had: a web page, or the command that makes it."""

    what: str
    where: str


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(ABC):
    """A dataset as it was published, whether or not it is on this machine."""

    name: str
    title: str
    sources: tuple[DownloadSource, ...]
    licence: str
    paper: str | None = None

    @property
    @abstractmethod
    def published(self) -> str:
        """The published numbers of images, in words; empty if there are none."""

    @property
    def parts_or_self(self) -> Sequence[DatasetSpec]:
        """The datasets that it joins; itself if it joins none."""
        return (self,)

    @property
    def published_images(self) -> int | None:
        """The published number of images, None where it is unknown or each split has its own."""
        return None

    @abstractmethod
    def inventory(self, data_root: Path) -> Inventory:
        """The lists and files that should be there; not for a dataset that joins others.

        Raises NotThere, or HubError for files that cannot be told apart.
        """

    @abstractmethod
    def is_there(self, data_root: Path) -> bool:
        """Whether it can be opened; whether it is complete, ``check`` tells."""


@dataclass(frozen=True, kw_only=True)
class TargetSpec(DatasetSpec):
    """A target as it was published.

    ``classes`` are without background; ``counts`` are the published numbers of images of each
    split, empty for a target whose size is up to whoever makes it.
    """

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    open: Callable[[TargetSpec, Path], Target]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def published(self) -> str:
        return ", ".join(f"{count:,} {split}" for split, count in self.counts.items())

    def inventory(self, data_root: Path) -> Inventory:
        return self.open(self, data_root).inventory()

    def is_there(self, data_root: Path) -> bool:
        try:
            self.open(self, data_root)
        except HubError:
            return False
        return True


class Target(ABC):
    """A dataset whose images maps are made for: its lists, images and labels.

    An image id is known to a target whether or not a list has it; ``image_path`` says where the
    image would be.
    """

    def __init__(self, spec: TargetSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.classes = spec.classes
        self.num_classes = len(spec.classes)
        self.splits = spec.splits

    @property
    def training_split(self) -> str:
        """The split that methods are trained on and maps are made over: the first one."""
        return self.splits[0]

    @abstractmethod
    def image_ids(self, split: str) -> list[str]:
        """Image ids in ascending order. Raises UsageError for an unknown split."""

    def listed_ids(self, name: str) -> list[str]:
        """Image ids of a split, or of another list that comes with the dataset and of which there
        are images alone, as of VOC's test; ascending. Raises UsageError for an unknown one."""
        return self.image_ids(name)

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """Where the image is, or would be. Raises HubError for what is no image id."""

    @abstractmethod
    def image_labels(self, image_id: str) -> tuple[int, ...]:
        """Classes that are in the image: 0-based, ascending."""

    @abstractmethod
    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """uint8[H, W]: 0 background, c + 1 class c, 255 void. Has the size of the image.

        Raises HubError if it is not there or cannot be read.
        """

    @abstractmethod
    def inventory(self) -> Inventory:
        """The files that ``check`` looks for."""

    def ground_truth(self, split: str) -> Maps:
        """The masks of a split, as maps of kind ``label``. Raises UsageError for an unknown one."""
        return _GroundTruth(self, split)

    def read_image(self, image_id: str) -> np.ndarray:
        """uint8[H, W, 3], RGB."""
        return read_rgb(self.image_path(image_id))

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) of the image, from its header."""
        return image_size(self.image_path(image_id))

    def require_split(self, split: str) -> None:
        """Raises UsageError for an unknown split."""
        if split not in self.splits:
            raise UsageError(
                f"{self.name} has no split {split!r}.{did_you_mean(split, self.splits)} "
                f"Splits are {', '.join(self.splits)}."
            )

    def require_size(self, image_id: str, label: np.ndarray, what: str) -> None:
        """Raises HubError saying ``what`` is wrong if the image is there and has another size."""
        image = self.image_path(image_id)
        if image.is_file() and self.size(image_id) != label.shape:
            height, width = self.size(image_id)
            raise HubError(
                f"{what} is {label.shape[0]} x {label.shape[1]} pixels, "
                f"the image {image.name} is {height} x {width}."
            )


class _GroundTruth(Maps):
    def __init__(self, target: Target, split: str) -> None:
        self.kind = "label"
        self.name = f"the ground truth of {target.name} {split}"
        self.image_ids = target.image_ids(split)
        self._target, self._split = target, split
        self._ids = set(self.image_ids)

    def read(self, image_id: str) -> np.ndarray:
        if image_id not in self._ids:
            raise HubError(f"{self.name} has no image {image_id!r}.")
        return self._target.read_mask(image_id, self._split)


def find_folder(data_root: Path, candidates: tuple[str, ...]) -> Path | None:
    """The first of the folders below ``data_root`` that is there."""
    return next((data_root / name for name in candidates if (data_root / name).is_dir()), None)


class NotThere(HubError):
    """A dataset is not below the data root."""

    def __init__(
        self,
        name: str,
        data_root: Path,
        looked_for: list[Path],
        sources: tuple[DownloadSource, ...],
    ) -> None:
        self.looked_for = looked_for
        get = "; ".join(f"{source.what}: {source.where}" for source in sources)
        super().__init__(
            f"{name} is not below {data_root}: looked for {either(looked_for)}. "
            f"Where to get it: {get}."
        )
