"""PNG bytes to maps and back. What comes from outside is checked before it is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from wsssbed_hub.artifacts.pictures import voc_palette
from wsssbed_hub.utils.errors import HubError

MAX_PIXELS = 1 << 26  # of one map
MAX_BYTES = MAX_PIXELS + (1 << 24)  # of one PNG: pixels that do not compress, and some room
GREY, PALETTE = 0, 3  # colour types of the PNG specification

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {GREY: "grey", 2: "RGB", PALETTE: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
# Twice as fast as zlib's usual 6 on saliency maps, for files that are 5 % larger.
_LEVEL = 4


class Header(NamedTuple):
    """Size and kind that a PNG states; ``colour`` is GREY or PALETTE."""

    height: int
    width: int
    colour: int


def check_png(data: bytes, name: str, *, inflate: bool = False) -> Header:
    """The header of a PNG whose chunks are all whole.

    Raises HubError naming ``name`` for anything but a single 8-bit grey or a palette picture of at
    most ``MAX_PIXELS``: other formats, other depths, animations, missing or damaged chunks. With
    ``inflate`` also if the compressed stream holds fewer rows or more than the header says, which
    decoders pass over in silence; this costs a third of decoding.
    """
    chunks: dict[bytes, list[bytes]] = {}
    for kind, body in _chunks(data, name):
        if not chunks and (kind != b"IHDR" or len(body) != 13):
            raise HubError(f"{name} is not a PNG: it does not begin with its size.")
        chunks.setdefault(kind, []).append(body)
    if b"acTL" in chunks:
        raise HubError(f"{name} is an animation, not a map.")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"][0])
    if not 0 < width * height <= MAX_PIXELS:
        raise HubError(f"{name} has {height} x {width} pixels; a map has 1 to {MAX_PIXELS:,}.")
    if colour not in (GREY, PALETTE) or (colour == GREY and depth != 8) or depth > 8:
        raise HubError(
            f"{name} is {depth}-bit {_COLOURS.get(colour, 'of unknown colour')}; "
            "a map is 8-bit grey, or palette if it is a label."
        )
    if b"IDAT" not in chunks or (colour == PALETTE and b"PLTE" not in chunks):
        raise HubError(f"{name} is not a PNG that can be decoded: a part is missing.")
    if inflate:
        _check_rows(chunks[b"IDAT"], _row_bytes(width, height, depth, bool(interlaced)), name)
    return Header(height, width, colour)


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk, up to the end of the picture."""
    if data[:8] != _SIGNATURE:
        raise HubError(f"{name} is not a PNG.")
    place = 8
    kind = b""
    while kind != b"IEND":
        head = data[place : place + 8]
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        end = place + 12 + length
        if end > len(data):
            raise HubError(f"{name} is cut short after {len(data):,} bytes.")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[place + 4 : end - 4]) != checksum:
            raise HubError(f"{name} is damaged: a checksum inside does not match.")
        yield kind, data[place + 8 : end - 4]
        place = end


def _row_bytes(width: int, height: int, depth: int, interlaced: bool) -> int:
    """Bytes of all rows with their filter bytes, as the specification counts them."""
    # Offset and step of columns and rows, for a plain picture or the seven passes of Adam7.
    passes = [(0, 1, 0, 1)]
    if interlaced:
        passes = [
            (0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2),
            (0, 1, 1, 2),
        ]  # fmt: skip
    total = 0
    for left, across, top, down in passes:
        columns = max(0, -(-(width - left) // across))
        rows = max(0, -(-(height - top) // down))
        total += rows * (1 + -(-columns * depth // 8)) if columns else 0
    return total


def _check_rows(bodies: list[bytes], expected: int, name: str) -> None:
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(b"".join(bodies), expected + 1)
    except zlib.error as error:
        raise HubError(f"{name} cannot be decoded: {error}.") from None
    if len(rows) != expected or not stream.eof:
        raise HubError(f"{name} has fewer rows or more than it says.")


def decode_png(data: bytes, name: str) -> np.ndarray:
    """uint8[H, W] pixel values (palette indices for a palette) of bytes that ``check_png`` passed.

    Raises HubError naming ``name`` if they cannot be decoded all the same.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            pixels = np.array(picture)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise HubError(f"{name} cannot be decoded: {error}.") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise HubError(f"{name} does not decode to one 8-bit channel.")
    return pixels


def encode_png(pixels: np.ndarray, *, palette: bool = False) -> bytes:
    """uint8[H, W] as an 8-bit grey PNG, or as palette indices in the colours of VOC.

    The same pixels give the same bytes.
    """
    picture = Image.fromarray(pixels)
    if palette:
        picture.putpalette(voc_palette().tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=_LEVEL)
    return file.getvalue()
