"""Maps, whatever files they lie in: the image ids in order, and the maps of one image."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from wsssbed_hub.artifacts.digests import content_digest, image_digest
from wsssbed_hub.artifacts.png_codec import GREY, MAX_PIXELS, PALETTE, check_png, decode_png
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.progress import Progress

MAP_KINDS = ("sal", "cam", "label")
MAX_CLASS = 253  # class c is label c + 1, and 255 means ignored


_IMAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class Activations(NamedTuple):
    """The activation maps of one image."""

    activations: np.ndarray
    """uint8[K, H, W], one map for each present class."""
    class_ids: np.ndarray
    """int64[K], 0-based and ascending; the background is not counted."""


def check_image_id(image_id: str) -> str:
    """``image_id`` itself.

    Raises HubError unless it is 1 to 128 of letters, digits, ``.``, ``_`` and ``-``, begins with a
    letter or a digit and has no ``..``: an id becomes a file name.
    """
    if not _IMAGE_ID.fullmatch(image_id) or ".." in image_id:
        raise HubError(
            f"{image_id[:200]!r} is not an image id. An id is made of letters, digits, '.', '_' "
            "and '-', and begins with a letter or a digit."
        )
    return image_id


class Maps(ABC):
    """Maps of one kind over a list of images.

    ``read`` gives uint8[H, W] for a saliency map (0..255) and for a label (0 background, c + 1
    class c, 255 ignored), and ``Activations`` for activation maps.
    """

    kind: str
    """``sal``, ``cam`` or ``label``."""
    name: str
    """Name in messages."""
    image_ids: Sequence[str]
    """In ascending order."""
    key: str | None = None
    """Key with version, if the maps lie in a key folder."""
    content: str | None = None
    """Content digest that the manifest states, if there is a manifest."""
    stored_bytes: int | None = None
    """Size of the files that hold the maps, where it is known."""

    @abstractmethod
    def read(self, image_id: str) -> np.ndarray | Activations:
        """The maps of one image. Raises HubError if it has none, or if they are damaged."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray | Activations]]:
        """(image id, maps) of every image, in order."""
        for image_id in self.image_ids:
            yield image_id, self.read(image_id)

    def digest(self, progress: Progress | None = None) -> str:
        """Content digest of the decoded maps, ``sha256:…``; ``progress(images, of)`` as it goes."""
        digests = []
        for image_id, maps in self:
            digests.append((image_id, digest_of(maps)))
            if progress is not None:
                progress(len(digests), len(self))
        return content_digest(self.kind, digests)


class EncodedMaps(Maps):
    """Maps that are stored as PNGs: what they have to be, whatever they lie in."""

    def __init__(
        self,
        kind: str,
        name: str,
        *,
        colours: tuple[int, ...],
        strict: bool,
    ):
        self.kind, self.name = kind, name
        self._colours, self._strict = colours, strict

    @abstractmethod
    def pngs(self, image_id: str) -> tuple[list[bytes], list[int]]:
        """Unchecked PNG bytes of one image's maps, and the class ids of activation maps."""

    def encoded(self, image_id: str) -> dict[str, bytes]:
        """The maps of one image as whole PNGs of the right kind and size, not yet decoded.

        Keys are file names of the release layout. Raises HubError as ``read`` does.
        """
        datas, class_ids = self.pngs(image_id)
        self._check(image_id, datas, class_ids)
        return dict(zip(release_names(image_id, class_ids), datas, strict=True))

    def read(self, image_id: str) -> np.ndarray | Activations:
        datas, class_ids = self.pngs(image_id)
        self._check(image_id, datas, class_ids)
        maps = [decode_png(data, self._of(image_id)) for data in datas]
        if self.kind != "cam":
            return maps[0]
        return Activations(np.stack(maps), np.array(class_ids, dtype=np.int64))

    def _of(self, image_id: str) -> str:
        return f"{self.name}: the map of image {image_id}"

    def _check(self, image_id: str, datas: list[bytes], class_ids: list[int]) -> None:
        name = self._of(image_id)
        if self.kind == "cam":
            check_class_ids(class_ids, len(datas), name)
        elif len(datas) != 1:
            raise HubError(f"{name}: there are {len(datas)}, not one.")
        headers = [check_png(data, name, inflate=self._strict) for data in datas]
        sizes = {(header.height, header.width) for header in headers}
        if len(sizes) > 1:
            found = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
            raise HubError(f"{name}: the maps of its classes differ in size: {found}.")
        height, width = headers[0].height, headers[0].width
        if len(datas) * height * width > 4 * MAX_PIXELS:
            raise HubError(f"{name}: {len(datas)} maps of {height} x {width} pixels are too many.")
        for header in headers:
            if header.colour not in self._colours:
                raise HubError(_wrong_colour(name, self.kind, header.colour))


def release_names(image_id: str, class_ids: Sequence[int] | np.ndarray = ()) -> list[str]:
    """File names of the release layout: ``{image_id}.png``, or one ``{image_id}_{class}.png`` for
    each class."""
    return [f"{image_id}_{int(c)}.png" for c in class_ids] or [f"{image_id}.png"]


def check_class_ids(class_ids: Sequence[int] | np.ndarray, maps: int, name: str) -> None:
    """Raises HubError naming ``name`` unless there is one class id for each of the (one or more)
    ``maps``, ascending, from 0 to ``MAX_CLASS``."""
    ids = [int(class_id) for class_id in class_ids]
    if not ids or len(ids) != maps:
        raise HubError(f"{name}: {maps} activation maps for {len(ids)} classes.")
    if ids != sorted(set(ids)) or ids[0] < 0 or ids[-1] > MAX_CLASS:
        raise HubError(
            f"{name}: class ids {ids[:20]} do not ascend from 0 or more to {MAX_CLASS} or less."
        )


def check_maps(kind: str, maps: np.ndarray | Activations, name: str) -> None:
    """Raises HubError naming ``name`` unless ``maps`` are what ``Maps.read`` gives for ``kind``."""
    cam = kind == "cam"
    pixels = maps.activations if isinstance(maps, Activations) else maps
    if cam != isinstance(maps, Activations):
        raise HubError(f"{name}: {type(maps).__name__} is not what maps of kind {kind} are.")
    wrong = pixels.dtype != np.uint8 or pixels.ndim != (3 if cam else 2) or pixels.size == 0
    if wrong or pixels.shape[-2] * pixels.shape[-1] > MAX_PIXELS:
        shape = "uint8[K, H, W]" if cam else "uint8[H, W]"
        raise HubError(f"{name} is {pixels.dtype}{list(pixels.shape)}, not {shape}.")
    if isinstance(maps, Activations):
        check_class_ids(maps.class_ids, len(pixels), name)


def digest_of(maps: np.ndarray | Activations) -> str:
    """Image digest (see ``wsssbed_hub.artifacts.digests``) of what ``Maps.read`` gives."""
    return image_digest(*maps) if isinstance(maps, Activations) else image_digest(maps)


def _wrong_colour(name: str, kind: str, colour: int) -> str:
    if kind == "label" and colour == GREY:
        return f"{name} is grey, not palette. A label all the same? Open it with kind='label'."
    have = {GREY: "grey", PALETTE: "palette"}[colour]
    return f"{name} is {have}; maps of kind {kind} are not."
