from __future__ import annotations

import contextlib
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from samples import header, noise, png, png_chunks

from wsssbed_hub.artifacts.pictures import voc_palette
from wsssbed_hub.artifacts.png_codec import GREY, PALETTE, check_png, decode_png, encode_png
from wsssbed_hub.utils.errors import HubError

GOOD = png(noise(0))
END = (b"IEND", b"")


def read(data: bytes) -> np.ndarray:
    check_png(data, "the map", inflate=True)
    return decode_png(data, "the map")


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.booleans())
def test_what_is_encoded_is_read(pixels: np.ndarray, palette: bool) -> None:
    data = encode_png(pixels, palette=palette)
    colour = PALETTE if palette else GREY
    assert check_png(data, "x") == (*pixels.shape, colour)
    assert np.array_equal(read(data), pixels)


def test_labels_have_the_colours_of_voc() -> None:
    data = encode_png(np.array([[0, 15, 255]], dtype=np.uint8), palette=True)
    place = data.index(b"PLTE") + 4
    assert data[place + 45 : place + 48] == bytes((192, 128, 128))  # person
    assert data[place : place + 768] == voc_palette().tobytes()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_palette_may_have_fewer_bits(depth: int) -> None:
    pixels = np.array([[0, 1, 0], [1, 1, 0]], dtype=np.uint8)
    assert np.array_equal(read(png(pixels, "P", bits=depth)), pixels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a PNG"),
        (png(noise(0), format="JPEG"), "is not a PNG"),
        (png(noise(0), format="BMP"), "is not a PNG"),
        (png(noise(0), "RGB"), "is 8-bit RGB"),
        (png(noise(0), "LA"), "is 8-bit grey with alpha"),
        (png(noise(0), "RGBA"), "is 8-bit RGB with alpha"),
        (png(noise(0), "1"), "is 1-bit grey"),
        (png(noise(0).astype(np.uint16) * 200), "is 16-bit grey"),
        (GOOD[:8], "is cut short after 8 bytes"),
        (GOOD[:40], "is cut short after 40 bytes"),
        (GOOD[:-1], "is cut short"),
        (png_chunks(END), "does not begin with its size"),
        (png_chunks(header(3, 3), END), "a part is missing"),
        (png_chunks(header(3, 3, colour=3), (b"IDAT", b"x"), END), "a part is missing"),
        (png_chunks(header(0, 3), (b"IDAT", b"x"), END), "has 3 x 0 pixels"),
        (png_chunks(header(1 << 16, 1 << 16), (b"IDAT", b"x"), END), "has 65536 x 65536 pixels"),
        (png_chunks(header(3, 3), (b"acTL", bytes(8)), (b"IDAT", b"x"), END), "an animation"),
        (png_chunks(header(3, 3), (b"IDAT", b"not zlib"), END), "cannot be decoded"),
        (png_chunks(header(3, 3), (b"IDAT", zlib.compress(b"\0abc")), END), "fewer rows or more"),
        (png_chunks(header(3, 1), (b"IDAT", zlib.compress(b"\0abcd")), END), "fewer rows or more"),
        (png_chunks(header(3, 1), (b"IDAT", zlib.compress(b"\0abc")[:-1]), END), "fewer rows"),
        (png_chunks(header(3, 1), (b"IDAT", zlib.compress(b"\7abc")), END), "cannot be decoded"),
    ],
)
def test_what_is_not_a_map(data: bytes, message: str) -> None:
    with pytest.raises(HubError, match=message) as caught:
        read(data)
    assert str(caught.value).startswith("the map ")


@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("height", range(1, 10))
def test_interlaced_pictures_have_rows_for_seven_passes(width: int, height: int) -> None:
    """Sizes of the seven pictures, read off the pattern that the PNG specification prints."""
    pattern = ["16462646", "77777777", "56565656", "77777777", "36463646", "77777777"]
    pattern += ["56565656", "77777777"]
    size = 0
    for number in "1234567":
        rows = [sum(pattern[y % 8][x % 8] == number for x in range(width)) for y in range(height)]
        size += sum(1 + columns for columns in rows if columns)
    head = (b"IHDR", header(width, height)[1][:-1] + b"\1")
    good = png_chunks(head, (b"IDAT", zlib.compress(bytes(size))), END)
    assert read(good).shape == (height, width)
    with pytest.raises(HubError, match="fewer rows or more"):
        read(png_chunks(head, (b"IDAT", zlib.compress(bytes(size - 1))), END))


@given(st.integers(0, 8 * len(GOOD) - 1))
def test_every_flipped_bit_is_found(place: int) -> None:
    data = bytearray(GOOD)
    data[place // 8] ^= 1 << place % 8
    with pytest.raises(HubError):
        read(bytes(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    data = png_chunks(header(3, 2), (b"IDAT", body), END)
    with contextlib.suppress(HubError):
        assert read(data).shape == (2, 3)
