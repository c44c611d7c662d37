"""Folders and zips of PNGs in the layout of the WSSS-BED release, read in place.

``{image_id}.png`` holds a saliency map or a label, ``{image_id}_{class}.png`` the activation map
of one class. Hidden files, ``__MACOSX`` and what does not end in ``.png`` are not looked at.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from wsssbed_hub.artifacts.maps import (
    MAP_KINDS,
    Activations,
    EncodedMaps,
    Maps,
    check_image_id,
    release_names,
)
from wsssbed_hub.artifacts.parquet import ParquetMaps
from wsssbed_hub.artifacts.png_codec import GREY, MAX_BYTES, PALETTE, check_png, encode_png
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import atomic_folder, disk_errors
from wsssbed_hub.utils.progress import Progress

MAX_MEMBERS = 1_000_000  # of a zip; COCO's activation maps are about 240,000
MAX_RATIO = 100  # of a member above _SMALL; PNGs are compressed already
_SMALL = 1 << 16

_CLASS = re.compile(r"(?P<image_id>.+)_(?P<class_id>0|[1-9][0-9]?)")


class _Release(EncodedMaps):
    """The part that folder and zip share: from file names to images and classes."""

    def __init__(self, path: Path, kind: str | None, stems: Iterable[str]):
        name = str(path)
        found = sorted(stems)
        if not found:
            raise HubError(f"{name} holds no PNG files.")
        if kind is not None and kind not in MAP_KINDS:
            raise UsageError(f"There are no maps of kind {kind!r}, only {', '.join(MAP_KINDS)}.")
        super().__init__("", name, colours=(GREY,), strict=True)
        self.kind = kind or self._guess(found)
        if self.kind == "label":
            self._colours = (PALETTE,) if kind is None else (GREY, PALETTE)
        self._classes: dict[str, list[int]] = {}
        for stem in found:
            self._add(stem)
        for class_ids in self._classes.values():
            class_ids.sort()
        self.image_ids = sorted(self._classes)

    def _guess(self, stems: list[str]) -> str:
        if all(_CLASS.fullmatch(stem) for stem in stems):
            return "cam"
        first = check_png(self._bytes(stems[0]), f"{self.name}: {stems[0]}.png")
        return "label" if first.colour == PALETTE else "sal"

    def _add(self, stem: str) -> None:
        if self.kind != "cam":
            self._classes[check_image_id(stem)] = []
            return
        match = _CLASS.fullmatch(stem)
        if match is None:
            raise HubError(
                f"{self.name}: {stem[:200]}.png is not named as an activation map is, "
                "{image_id}_{class}.png."
            )
        class_ids = self._classes.setdefault(check_image_id(match["image_id"]), [])
        class_ids.append(int(match["class_id"]))

    def class_ids(self, image_id: str) -> list[int]:
        """Classes of the image's activation maps, by the names of the files; ascending."""
        return list(self._classes.get(image_id, []))

    def pngs(self, image_id: str) -> tuple[list[bytes], list[int]]:
        class_ids = self._classes.get(image_id)
        if class_ids is None:
            raise HubError(f"{self.name} has no maps of image {image_id}.")
        names = release_names(image_id, class_ids)
        return [self._bytes(name.removesuffix(".png")) for name in names], class_ids

    @abstractmethod
    def _bytes(self, stem: str) -> bytes: ...


class PngFolder(_Release):
    """A folder of PNGs. ``kind`` is seen from names and colours unless it is given."""

    def __init__(self, path: Path, kind: str | None = None):
        self._path = path
        with os.scandir(path) as entries:
            stems = [
                entry.name.removesuffix(".png")
                for entry in entries
                if entry.name.endswith(".png") and not entry.name.startswith(".")
            ]
        super().__init__(path, kind, stems)

    def _bytes(self, stem: str) -> bytes:
        path = self._path / f"{stem}.png"
        try:
            size = path.stat().st_size
            if not path.is_file() or size > MAX_BYTES:
                raise HubError(f"{path} is not a PNG file of at most {MAX_BYTES:,} bytes.")
            return path.read_bytes()
        except OSError as error:
            raise HubError(f"{path} cannot be read: {error.strerror}.") from None


class PngZip(_Release):
    """A zip of PNGs, which may all lie in one folder of it; nothing is unpacked.

    Raises HubError for members with absolute names, ``..``, backslashes, links, encryption,
    names that occur twice, more than ``MAX_MEMBERS`` members, or members of more than
    ``png.MAX_BYTES`` or compressed more than ``MAX_RATIO`` times.
    """

    def __init__(self, path: Path, kind: str | None = None):
        self._path = path
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}
        infos = self._open().infolist()
        if len(infos) > MAX_MEMBERS:
            raise HubError(f"{path} has {len(infos):,} members, more than {MAX_MEMBERS:,}.")
        names = set()
        folders = set()
        for info in infos:
            _check_member(path, info)
            if info.filename in names:
                raise HubError(f"{path}: {info.filename[:200]!r} is in it twice.")
            names.add(info.filename)
            inside = PurePosixPath(info.filename)
            if _is_map(inside) and not info.is_dir():
                folders.add(inside.parent)
                self._members[inside.stem] = info
        if len(folders) > 1:
            raise HubError(
                f"{path} has PNGs in {len(folders)} folders, such as {folders.pop()} and "
                f"{folders.pop()}; all maps of a zip lie in one."
            )
        super().__init__(path, kind, self._members)

    def _open(self) -> zipfile.ZipFile:
        # A forked process would share the file's position with its parent, so each opens its own.
        if self._archive is None or self._archive[0] != os.getpid():
            try:
                self._archive = (os.getpid(), zipfile.ZipFile(self._path))
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise HubError(f"{self._path} cannot be read as a zip: {error}.") from None
        return self._archive[1]

    def _bytes(self, stem: str) -> bytes:
        info = self._members[stem]
        name = f"{self._path}: {info.filename}"
        try:
            with self._open().open(info) as member:
                data = member.read(MAX_BYTES + 1)
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError) as error:
            raise HubError(f"{name} is damaged: {error}.") from None
        if len(data) != info.file_size:
            raise HubError(f"{name} has {len(data):,} bytes; the zip says {info.file_size:,}.")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None}


def _is_map(inside: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)
    return inside.suffix == ".png" and not hidden


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    name = info.filename
    mode = info.external_attr >> 16
    wrong = None
    if name != info.orig_filename or "\\" in name or name.startswith("/") or ":" in name:
        wrong = "has a name that is not a plain relative path"
    elif ".." in PurePosixPath(name).parts or not PurePosixPath(name).parts:
        wrong = "has a name that leads out of the zip"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        wrong = "is a link or a device"
    elif info.flag_bits & 0x1:
        wrong = "is encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        wrong = "is compressed in a way that is not read"
    elif info.file_size > MAX_BYTES:
        wrong = f"has {info.file_size:,} bytes, too many for a map"
    elif info.file_size > _SMALL and info.file_size > MAX_RATIO * info.compress_size:
        wrong = f"unpacks to {info.file_size:,} bytes from {info.compress_size:,}: a zip bomb"
    if wrong:
        raise HubError(f"{path}: the member {name[:200]!r} {wrong}. Nothing of it was read.")


def write_pngs(maps: Maps, folder: Path, *, progress: Progress | None = None) -> Path:
    """Writes ``maps`` as the PNGs of the release layout; ``progress(images, of)`` as it goes.

    The folder appears when it is complete. A killed run leaves ``.<name>.partial`` beside it, which
    the next one completes. A folder that is there already is compared: HubError if it differs.
    """
    folder = Path(os.path.abspath(folder))
    with (
        disk_errors(folder.parent, maps.stored_bytes),
        atomic_folder(folder, resume=True) as partial,
    ):
        if partial is None:
            _compare_images(maps, folder, progress)
        else:
            _write_images(maps, partial, progress)
            os.sync()  # thousands of files: one call is far faster than one for each
    return folder


def _write_images(maps: Maps, folder: Path, progress: Progress | None) -> None:
    written = set()
    for done, image_id in enumerate(maps.image_ids, 1):
        for name, data in _release_files(maps, image_id).items():
            # What a killed run left may end anywhere, so it counts only if it is the same.
            if not _holds(folder / name, data):
                (folder / name).write_bytes(data)
            written.add(name)
        if progress is not None:
            progress(done, len(maps))
    for path in folder.iterdir():
        if path.name not in written:
            path.unlink()


def _compare_images(maps: Maps, folder: Path, progress: Progress | None) -> None:
    advice = f"Remove {folder}, or choose another folder, and run it again."
    if not folder.is_dir():
        raise HubError(f"{folder} is there already and not a folder. {advice}")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    for done, image_id in enumerate(maps.image_ids, 1):
        for name, data in _release_files(maps, image_id).items():
            if not _holds(folder / name, data):
                what = "differs from" if name in there else "is not there, unlike in"
                raise HubError(f"{folder / name} {what} {maps.name}. {advice}")
            there.discard(name)
        if progress is not None:
            progress(done, len(maps))
    if there:
        raise HubError(f"{folder} also holds {min(there)}, which {maps.name} does not. {advice}")


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _release_files(maps: Maps, image_id: str) -> dict[str, bytes]:
    """File names and PNGs of one image: as they are stored where that is possible."""
    if isinstance(maps, ParquetMaps):
        return maps.encoded(image_id)
    found = maps.read(image_id)
    if isinstance(found, Activations):
        names = release_names(image_id, found.class_ids)
        return {n: encode_png(a) for n, a in zip(names, found.activations, strict=True)}
    return {release_names(image_id)[0]: encode_png(found, palette=maps.kind == "label")}
