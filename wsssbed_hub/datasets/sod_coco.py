"""SOD datasets whose masks are drawn from the instances of COCO: a thing is salient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsssbed_hub.datasets.base import DownloadSource
from wsssbed_hub.datasets.coco import annotation_file, find_coco
from wsssbed_hub.datasets.coco_instances import Instances
from wsssbed_hub.utils.errors import HubError


@dataclass(frozen=True)
class InstanceLayout:
    """``part`` (train2017) of COCO in one of ``folders`` below the data root, whose images are
    called ``prefix`` and twelve digits. ``classes`` are those whose instances count: all, if it is
    None."""

    folders: tuple[str, ...]
    part: str
    prefix: str = ""
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DrawnPair:
    """An image, and its mask that is drawn: 255 on every instance of the categories."""

    image: Path
    instances: Instances
    categories: frozenset[int]

    @property
    def what(self) -> str:
        """The mask's name in messages."""
        return f"the mask of {self.image.stem} drawn from {self.instances.path}"

    def read_mask(self) -> np.ndarray:
        """uint8[H, W], 0 or 255."""
        union = self.instances.union(self.image.stem, self.categories)
        return union.astype(np.uint8) * 255

    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the mask."""
        return self.instances.size(self.image.stem)


def find_part(
    name: str, layout: InstanceLayout, data_root: Path, sources: tuple[DownloadSource, ...]
) -> Path:
    """The folder of the images, or where it would be.

    Raises HubError if their annotations are not there.
    """
    return find_coco(name, data_root, layout.folders, (layout.part,), sources) / layout.part


def open_instances(
    name: str, layout: InstanceLayout, data_root: Path, sources: tuple[DownloadSource, ...]
) -> dict[str, DrawnPair]:
    """Every image with an instance that counts, by its id; whether the images are there is left
    open.

    Raises HubError if the annotations are not there, or lack one of the classes.
    """
    images = find_part(name, layout, data_root, sources)
    instances = Instances(annotation_file(images.parent, layout.part), layout.prefix)
    index = instances.index
    known = dict(zip(index.names, index.category_ids.tolist(), strict=True))
    classes = layout.classes if layout.classes is not None else index.names
    lacking = [one for one in classes if one not in known]
    if lacking:
        raise HubError(f"{instances.path} has no category {lacking[0]!r}, which {name} needs.")
    categories = frozenset(known[one] for one in classes)
    return {
        image_id: DrawnPair(images / f"{image_id}.jpg", instances, categories)
        for image_id in instances.image_ids(categories)
    }
