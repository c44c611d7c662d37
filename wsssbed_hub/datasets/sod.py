"""SOD datasets: pictures and saliency masks, in the folders in which they are distributed.

The masks of COCO are drawn from its instances, see ``sod_coco``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsssbed_hub.artifacts.maps import check_image_id
from wsssbed_hub.datasets.base import DatasetSpec, NotThere
from wsssbed_hub.datasets.coco import annotation_file
from wsssbed_hub.datasets.image_files import image_size, listing, read_grey, read_rgb, some
from wsssbed_hub.datasets.inventory import (
    DrawnMasks,
    ExpectedList,
    ImageFiles,
    ImageList,
    Inventory,
)
from wsssbed_hub.datasets.sod_coco import DrawnPair, InstanceLayout, find_part, open_instances
from wsssbed_hub.utils.errors import HubError

_JPEG = (".jpg", ".jpeg")
_ANY = (*_JPEG, ".png")


class Layout(NamedTuple):
    """Folders below the data root. If they are one, images are its JPEGs and masks its PNGs."""

    images: str
    masks: str


@dataclass(frozen=True, kw_only=True)
class SodSpec(DatasetSpec):
    """A SOD dataset as it was published.

    ``layouts`` are the folders that it may lie in, the authors' own first. ``count`` is the
    published number of images, None where the papers that train on it do not say it. A dataset
    whose masks are drawn has ``instances`` instead of layouts, one that joins others ``parts``.
    """

    layouts: tuple[Layout, ...] = ()
    instances: InstanceLayout | None = None
    count: int | None = None
    licence: str = "not stated by the authors: research use"
    parts: tuple[SodSpec, ...] = ()

    @property
    def published(self) -> str:
        return "" if self.count is None else f"{self.count:,}"

    @property
    def parts_or_self(self) -> Sequence[SodSpec]:
        return self.parts or (self,)

    @property
    def published_images(self) -> int | None:
        return self.count

    def inventory(self, data_root: Path) -> Inventory:
        if self.instances is not None:
            return _drawn_inventory(self, self.instances, data_root)
        return _file_inventory(self, data_root)

    def is_there(self, data_root: Path) -> bool:
        if self.parts:
            return all(part.is_there(data_root) for part in self.parts)
        try:
            if self.instances is not None:
                return find_part(self.name, self.instances, data_root, self.sources).is_dir()
            return bool(_find(self, data_root))
        except HubError:
            return False


class FilePair(NamedTuple):
    """An image and the file of its mask."""

    image: Path
    mask: Path

    @property
    def what(self) -> str:
        """The mask's name in messages."""
        return str(self.mask)

    def read_mask(self) -> np.ndarray:
        """uint8[H, W]."""
        return read_grey(self.mask)

    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the mask."""
        return image_size(self.mask)


class SodDataset:
    """Pictures with a saliency mask each. Ids of a joined dataset begin with their part's name."""

    def __init__(self, spec: SodSpec, pairs: Mapping[str, FilePair | DrawnPair]) -> None:
        self.spec = spec
        self.name = spec.name
        self.image_ids = sorted(pairs)
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_path(self, image_id: str) -> Path:
        """Raises HubError for an unknown id, as all these do."""
        return self._pair(image_id).image

    def read_image(self, image_id: str) -> np.ndarray:
        """uint8[H, W, 3], RGB."""
        return read_rgb(self.image_path(image_id))

    def read_mask(self, image_id: str) -> np.ndarray:
        """uint8[H, W], 0..255 as in the file: most are 0 or 255, some grey at the border.

        Raises HubError if it has not the size of the image.
        """
        pair = self._pair(image_id)
        mask = pair.read_mask()
        _check_sizes(pair, image_size(pair.image), mask.shape)
        return mask

    def _pair(self, image_id: str) -> FilePair | DrawnPair:
        try:
            return self._pairs[image_id]
        except KeyError:
            raise HubError(f"{self.name} has no image {image_id!r}.") from None


def open_sod(spec: SodSpec, data_root: Path) -> SodDataset:
    """The dataset below ``data_root``.

    Raises HubError if it is not there, and for an image without mask or a mask without image.
    """
    if spec.parts:
        joined: dict[str, FilePair | DrawnPair] = {}
        for part in spec.parts:
            dataset = open_sod(part, data_root)
            joined |= {f"{part.name}-{i}": dataset._pair(i) for i in dataset.image_ids}
        return SodDataset(spec, joined)
    if spec.instances is not None:
        drawn = open_instances(spec.name, spec.instances, data_root, spec.sources)
        lost = [image_id for image_id, pair in drawn.items() if not pair.image.is_file()]
        if lost:
            raise HubError(
                f"{spec.name}: {len(lost):,} of {len(drawn):,} images are missing, "
                f"{drawn[lost[0]].image} for example."
            )
        return SodDataset(spec, drawn)
    images, masks = _find(spec, data_root)
    both = sorted(images.keys() & masks.keys())
    for have, lack, what in ((images, masks, "mask"), (masks, images, "image")):
        alone = sorted(have.keys() - lack.keys())
        if alone:
            raise HubError(
                f"{spec.name}: no {what} for {some([str(have[stem]) for stem in alone])} "
                f"({len(alone):,} in all)."
            )
    return SodDataset(spec, {stem: FilePair(images[stem], masks[stem]) for stem in both})


def sod_images(spec: SodSpec, data_root: Path) -> dict[str, Path]:
    """The files of the images by id, whether or not their masks are there.

    Raises HubError if the images are not there.
    """
    if spec.parts:
        return {
            f"{part.name}-{image_id}": path
            for part in spec.parts
            for image_id, path in sod_images(part, data_root).items()
        }
    if spec.instances is not None:
        drawn = open_sod(spec, data_root)
        return {image_id: drawn.image_path(image_id) for image_id in drawn.image_ids}
    for layout in spec.layouts:
        folder = data_root / layout.images
        found = _pictures(folder, _JPEG if layout.images == layout.masks else _ANY)
        if found:
            return found
    looked_for = [data_root / layout.images for layout in spec.layouts]
    raise NotThere(spec.name, data_root, looked_for, spec.sources)


def _find(spec: SodSpec, data_root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks by stem, from the first layout that is there and not empty."""
    looked_for = []
    for layout in spec.layouts:
        images, masks = data_root / layout.images, data_root / layout.masks
        one = layout.images == layout.masks
        looked_for.append(images)
        if not one:
            looked_for.append(masks)
        if images.is_dir() and masks.is_dir():
            found = _pictures(images, _JPEG if one else _ANY)
            if found:
                return found, _pictures(masks, (".png",) if one else _ANY)
    raise NotThere(spec.name, data_root, looked_for, spec.sources)


def _pictures(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Pictures of a folder by stem; archives also have thumbnails databases and the like."""
    found: dict[str, Path] = {}
    for name in sorted(listing(folder)):
        path = folder / name
        if path.suffix.lower() not in suffixes:
            continue
        try:
            stem = check_image_id(path.stem)
        except HubError as error:
            raise HubError(f"{path}: {error}") from None
        if stem in found:
            raise HubError(f"{found[stem]} and {path} are two pictures of one name.")
        found[stem] = path
    return found


def _check_sizes(pair: FilePair | DrawnPair, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    if image != mask:
        raise HubError(
            f"{pair.what} is {mask[0]} x {mask[1]} pixels, "
            f"its image {pair.image} is {image[0]} x {image[1]}."
        )


def _inventory(
    spec: SodSpec,
    pairs: Mapping[str, FilePair | DrawnPair],
    masks: ImageFiles | DrawnMasks,
    source: str | None = None,
    note: str = "",
) -> Inventory:
    images = ImageFiles("image", lambda i: [pairs[i].image], lambda i: image_size(pairs[i].image))
    listed = ImageList(sorted(pairs), (images, masks), source, note)
    lists = [ExpectedList(spec.name, spec.count, lambda: listed)]
    return Inventory(lists, prefix=f"{spec.name}: ")


def _file_inventory(spec: SodSpec, data_root: Path) -> Inventory:
    """Every picture of either folder should have its partner in the other."""
    images, masks = _find(spec, data_root)
    image_folder = next(iter(images.values())).parent
    mask_folder = next(iter(masks.values()), next(iter(images.values()))).parent
    pairs = {
        stem: FilePair(images.get(stem, image_folder / stem), masks.get(stem, mask_folder / stem))
        for stem in {*images, *masks}
    }
    return _inventory(
        spec, pairs, ImageFiles("mask", lambda i: [pairs[i].mask], lambda i: _check_pair(pairs[i]))
    )


def _drawn_inventory(spec: SodSpec, layout: InstanceLayout, data_root: Path) -> Inventory:
    pairs = open_instances(spec.name, layout, data_root, spec.sources)
    source = annotation_file(
        find_part(spec.name, layout, data_root, spec.sources).parent, layout.part
    )
    note = "images with an instance that counts" if pairs else "no image has an instance"
    masks = DrawnMasks(source, lambda i: _check_pair(pairs[i]))
    return _inventory(spec, pairs, masks, str(source), note)


def _check_pair(pair: FilePair | DrawnPair) -> None:
    """Raises HubError if the image is there and the mask has another size."""
    if pair.image.is_file():
        _check_sizes(pair, image_size(pair.image), pair.mask_size())
