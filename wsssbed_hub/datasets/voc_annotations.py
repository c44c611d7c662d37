"""Files of VOC beside its pictures: XML annotations, and SBD's masks as .mat files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from xml.parsers import expat

import numpy as np

from wsssbed_hub.datasets.image_files import check_label_values, read_bytes
from wsssbed_hub.utils.errors import HubError

_XML_BYTES = 1 << 20  # VOC's largest has 20 KB
_MAT_BYTES = 16 << 20
_UNPACKED = 64 << 20  # SBD's largest has 5 MB
_DEPTH = 32
_COMPRESSED = 15  # element type miCOMPRESSED of the MAT-file format, level 5
_OBJECT_NAME = ["annotation", "object", "name"]  # not object/part/name: a head is no class


class _Names:
    """Collects the text of every annotation/object/name; refuses document type declarations."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._path: list[str] = []

    def start(self, tag: str, _: dict[str, str]) -> None:
        self._path.append(tag)
        if len(self._path) > _DEPTH:
            raise ValueError("its elements lie too deep in each other")
        if self._path == _OBJECT_NAME:
            self.names.append("")

    def end(self, _: str) -> None:
        self._path.pop()

    def text(self, text: str) -> None:
        if self._path == _OBJECT_NAME:
            self.names[-1] += text

    def doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type, with which a few lines can fill the memory")


def object_names(path: Path) -> list[str]:
    """Names of the objects of a VOC annotation, in order, as often as they occur.

    Raises HubError naming the file if it is missing, larger than 1 MiB, not well-formed or declares
    a document type (entities).
    """
    data = read_bytes(path, _XML_BYTES)
    found = _Names()
    parser = expat.ParserCreate()
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.text
    parser.StartDoctypeDeclHandler = found.doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        raise HubError(f"{path} is not a VOC annotation: {error}.") from None
    return [name.strip() for name in found.names]


def read_sbd_mask(path: Path, num_classes: int) -> np.ndarray:
    """``GTcls.Segmentation`` of an SBD file: uint8[H, W], 0 background, c + 1 class c; no void.

    Raises HubError naming the file for anything else, and for files that unpack to more than
    64 MiB.
    """
    from scipy.io import loadmat

    data = read_bytes(path, _MAT_BYTES)
    _check_unpacked(data, path)
    try:
        label = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # whatever a damaged file makes of the reader
        raise HubError(f"{path} is not an SBD mask: {error or type(error).__name__}.") from None
    if not isinstance(label, np.ndarray) or label.dtype != np.uint8 or label.ndim != 2:
        raise HubError(f"{path} is not an SBD mask: GTcls.Segmentation is not uint8[H, W].")
    return check_label_values(np.ascontiguousarray(label), num_classes, path)


def _check_unpacked(data: bytes, path: Path) -> None:
    """Raises HubError if the compressed elements of a MAT file hold too much."""
    place, room = 128, _UNPACKED
    order = ">" if data[126:128] == b"MI" else "<"
    while place + 8 <= len(data):
        kind, length = struct.unpack_from(f"{order}II", data, place)
        if kind == _COMPRESSED:
            try:
                room -= len(zlib.decompressobj().decompress(data[place + 8 :][:length], room + 1))
            except zlib.error as error:
                raise HubError(f"{path} is not an SBD mask: {error}.") from None
        if room < 0:
            raise HubError(f"{path} unpacks to more than {_UNPACKED:,} bytes.")
        place += 8 + length
