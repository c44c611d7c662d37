"""SOD datasets: pictures and saliency masks, in the folders in which they are distributed.

The masks of COCO are drawn from its instances, see ``sod_instances``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsssbed_hub.artifacts.maps import check_image_id
from wsssbed_hub.datasets.base import Finding, NotThere, Source
from wsssbed_hub.datasets.image_files import (
    image_size,
    listing,
    read_grey,
    read_rgb,
    some,
    some_messages,
)
from wsssbed_hub.datasets.sod_coco import (
    Drawn,
    InstanceLayout,
    find_part,
    missing_images,
    open_instances,
)
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import Progress

_JPEG = (".jpg", ".jpeg")
_ANY = (*_JPEG, ".png")


class Layout(NamedTuple):
    """Folders below the data root. If they are one, images are its JPEGs and masks its PNGs."""

    images: str
    masks: str


@dataclass(frozen=True)
class SodSpec:
    """A SOD dataset as it was published.

    ``layouts`` are the folders that it may lie in, the authors' own first. ``count`` is the
    published number of images, None where the papers that train on it do not say it. A dataset
    whose masks are drawn has ``instances`` instead of layouts, one that joins others ``parts``.
    """

    name: str
    title: str
    sources: tuple[Source, ...] = ()
    layouts: tuple[Layout, ...] = ()
    instances: InstanceLayout | None = None
    count: int | None = None
    licence: str = "not stated by the authors: research use"
    paper: str | None = None
    parts: tuple[SodSpec, ...] = ()

    @property
    def published(self) -> str:
        """The published number of images, in words; empty if there is none."""
        return "" if self.count is None else f"{self.count:,}"


class Pair(NamedTuple):
    """An image and the file of its mask."""

    image: Path
    mask: Path

    @property
    def what(self) -> str:
        """What messages call the mask."""
        return str(self.mask)

    def read_mask(self) -> np.ndarray:
        """uint8[H, W]."""
        return read_grey(self.mask)

    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the mask."""
        return image_size(self.mask)


class SodDataset:
    """Pictures with a saliency mask each. Ids of a joined dataset begin with their part's name."""

    def __init__(self, spec: SodSpec, pairs: Mapping[str, Pair | Drawn]) -> None:
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

    def _pair(self, image_id: str) -> Pair | Drawn:
        try:
            return self._pairs[image_id]
        except KeyError:
            raise HubError(f"{self.name} has no image {image_id!r}.") from None


def open_sod(spec: SodSpec, data_root: Path) -> SodDataset:
    """The dataset below ``data_root``.

    Raises HubError if it is not there, and for an image without mask or a mask without image.
    """
    if spec.parts:
        joined: dict[str, Pair | Drawn] = {}
        for part in spec.parts:
            dataset = open_sod(part, data_root)
            joined |= {f"{part.name}-{i}": dataset._pair(i) for i in dataset.image_ids}
        return SodDataset(spec, joined)
    if spec.instances is not None:
        drawn = open_instances(spec.name, spec.instances, data_root, spec.sources)
        lost = list(missing_images(drawn))
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
    return SodDataset(spec, {stem: Pair(images[stem], masks[stem]) for stem in both})


def sod_is_there(spec: SodSpec, data_root: Path) -> bool:
    """Whether there are images in a folder of the dataset; whether all, ``inspect_sod`` tells."""
    if spec.parts:
        return all(sod_is_there(part, data_root) for part in spec.parts)
    try:
        if spec.instances is not None:
            return find_part(spec.name, spec.instances, data_root, spec.sources).is_dir()
        return bool(_find(spec, data_root))
    except HubError:
        return False


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


def _check_sizes(pair: Pair | Drawn, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    if image != mask:
        raise HubError(
            f"{pair.what} is {mask[0]} x {mask[1]} pixels, "
            f"its image {pair.image} is {image[0]} x {image[1]}."
        )


def inspect_sod(
    spec: SodSpec, data_root: Path, *, deep: bool, progress: Progress | None
) -> Iterator[Finding]:
    """What ``check`` reports: whether all pairs are there; ``deep`` compares their sizes too."""
    if spec.parts:
        for part in spec.parts:
            yield from inspect_sod(part, data_root, deep=deep, progress=progress)
        return
    if spec.instances is not None:
        yield from _inspect_drawn(spec, spec.instances, data_root, deep, progress)
        return
    try:
        images, masks = _find(spec, data_root)
    except NotThere as error:
        yield error.finding(f"{spec.name}: images", spec.count)
        return
    except HubError as error:
        yield Finding(f"{spec.name}: images", False, None, spec.count, detail=str(error))
        return
    for what, have, others in (("images", images, masks), ("masks", masks, images)):
        alone = sorted(others.keys() - have.keys())
        right = spec.count in (None, len(have))
        detail = f"missing: {some(alone)}" if alone else ""
        if not right and not alone:
            detail = "not the published number"
        folder = str(next(iter((have or others).values())).parent)
        ok = right and not alone
        yield Finding(f"{spec.name}: {what}", ok, len(have), spec.count, folder, detail)
    if deep:
        pairs = [Pair(images[stem], masks[stem]) for stem in sorted(images.keys() & masks.keys())]
        yield _open_all(spec, pairs, progress)


def _inspect_drawn(
    spec: SodSpec,
    layout: InstanceLayout,
    data_root: Path,
    deep: bool,
    progress: Progress | None,
) -> Iterator[Finding]:
    try:
        drawn = open_instances(spec.name, layout, data_root, spec.sources)
    except NotThere as error:
        yield error.finding(f"{spec.name}: instances", spec.count)
        return
    except HubError as error:
        yield Finding(f"{spec.name}: instances", False, None, spec.count, detail=str(error))
        return
    first = next(iter(drawn.values()), None)
    path = None if first is None else str(first.instances.path)
    detail = "images with an instance; masks are drawn" if drawn else "no image has an instance"
    yield Finding(f"{spec.name}: instances", bool(drawn), len(drawn), spec.count, path, detail)
    lost = list(missing_images(drawn))
    folder = None if first is None else str(first.image.parent)
    detail = f"missing: {some(lost)}" if lost else ""
    found = len(drawn) - len(lost)
    yield Finding(f"{spec.name}: images", not lost, found, len(drawn), folder, detail)
    if deep:
        there = drawn.keys() - set(lost)
        yield _open_all(spec, [drawn[image_id] for image_id in sorted(there)], progress)


def _open_all(spec: SodSpec, pairs: Sequence[Pair | Drawn], progress: Progress | None) -> Finding:
    messages = []
    for done, pair in enumerate(pairs, start=1):
        try:
            _check_sizes(pair, image_size(pair.image), pair.mask_size())
        except HubError as error:
            messages.append(str(error))
        if progress is not None:
            progress(done, len(pairs))
    detail = some_messages(messages)
    return Finding(f"{spec.name}: every pair opened", not messages, len(pairs), detail=detail)
