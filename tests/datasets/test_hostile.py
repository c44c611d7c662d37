"""Files of a dataset that are damaged, or that someone made to do harm."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import id_list, image, mask, sbd_mat, voc
from PIL import Image
from samples import header, png, png_chunks
from scipy.io import savemat

from wsssbed_hub.datasets import open_target
from wsssbed_hub.datasets.image_files import image_size, read_grey, read_ids, read_indices, read_rgb
from wsssbed_hub.datasets.voc_annotations import object_names, read_sbd_mask
from wsssbed_hub.utils.errors import HubError

BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
OBJECT = "<annotation><object><name>{}</name></object></annotation>"


@pytest.mark.parametrize(
    "text",
    [
        BOMB + OBJECT.format("&c;"),
        FILE + OBJECT.format("&x;"),
        "<!DOCTYPE annotation>" + OBJECT.format("cat"),
        (BOMB + OBJECT.format("&c;")).encode("utf-16"),
        OBJECT.format("&undefined;"),
        "<annotation><object>",
        "",
        "<a>" * 5000,
    ],
)
def test_annotations_that_are_refused(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(HubError, match=r"x\.xml is not a VOC annotation"):
        object_names(path)


def test_an_annotation_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(HubError, match="more than 1,048,576 bytes"):
        object_names(path)


def test_a_plain_annotation(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_text(OBJECT.format(" cat\n") + "<!-- fine -->")
    assert object_names(path) == ["cat"]


@pytest.mark.parametrize(
    "wrong", ["../../etc/passwd", "a/b", ".hidden", "2007_000032 1", "ü", "-a"]
)
def test_lists_with_ids_that_are_paths(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "train.txt"
    path.write_text(f"2007_000032\n{wrong}\n", encoding="utf-8")
    with pytest.raises(HubError, match=r"train\.txt"):
        read_ids(path)


def test_a_bad_id_in_a_list_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("a\n\n../b\n")
    with pytest.raises(HubError, match=r"train\.txt, line 3: '\.\./b' is not an image id"):
        read_ids(path)


def test_lists_that_are_empty_or_repeat_themselves(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("\n")
    with pytest.raises(HubError, match="lists no images"):
        read_ids(path)
    path.write_text("b\r\na\r\nb\r\n")
    with pytest.raises(HubError, match="lists b more than once"):
        read_ids(path)
    path.write_text("b\r\na\r\n")
    assert read_ids(path) == ["a", "b"]


def test_ids_that_come_from_callers_are_checked(tmp_path: Path) -> None:
    voc(tmp_path)
    target = open_target("voc12", tmp_path)
    for read in (target.image_path, target.read_image, target.image_labels, target.size):
        with pytest.raises(HubError, match="is not an image id"):
            read("../../secret")


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :]


def _noise(mode: str | None = None, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 21, (40, 40), dtype=np.uint8)
    return png(pixels, mode, **options)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_cut(_noise("P")), id="truncated"),
        pytest.param(_flipped(_noise("P")), id="flipped bit"),
        pytest.param(b"GIF89a" + bytes(40), id="gif"),
        pytest.param(b"", id="empty"),
        pytest.param(_noise("RGB"), id="colours, not indices"),
        pytest.param(_noise(format="JPEG"), id="jpeg"),
        pytest.param(png_chunks(header(1 << 15, 1 << 15, 8, 0), (b"IEND", b"")), id="huge"),
        pytest.param(
            png_chunks(header(4, 1, 4, 0), (b"IDAT", zlib.compress(b"\0\x12\x34")), (b"IEND", b"")),
            id="4-bit grey, whose values a reader would stretch",
        ),
    ],
)
def test_masks_that_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(data)
    with pytest.raises(HubError, match=r"mask\.png"):
        read_indices(path, 20)


@pytest.mark.parametrize("value", [21, 254])
def test_masks_with_values_that_are_no_class(tmp_path: Path, value: int) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png(mask([20, value, 255]), "P"))
    with pytest.raises(HubError, match=f"has the value {value}"):
        read_indices(path, 20)


@pytest.mark.parametrize("read", [read_rgb, read_grey])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pictures_that_are_cut_short(tmp_path: Path, read: Any, form: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(_cut(_noise(format=form)))
    with pytest.raises(HubError, match=r"picture\.jpg is not a whole PNG or JPEG"):
        read(path)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_refused_whatever_the_name(tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(_noise(format=form))
    for read in (read_rgb, image_size):
        with pytest.raises(HubError, match="not a whole PNG or JPEG"):
            read(path)


@pytest.mark.parametrize("side", [9000, 1 << 20])
def test_pictures_with_too_many_pixels_are_not_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png_chunks(header(side, side), (b"IDAT", b""), (b"IEND", b"")))
    with pytest.raises(HubError, match=r"picture\.png"):
        read_rgb(path)


def test_a_mask_of_16_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.full((3, 3), 4000, np.uint16)).save(path)
    with pytest.raises(HubError, match="not an 8-bit mask"):
        read_grey(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_sbd_masks(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.mat"
    sbd_mat(path, mask([3, 20]), compressed=compressed)
    assert np.array_equal(read_sbd_mask(path, 20), mask([3, 20]))


def _mat(path: Path, **content: Any) -> bytes:
    savemat(path, content, do_compression=True)
    return path.read_bytes()


def test_sbd_masks_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    good = _mat(path, GTcls={"Segmentation": mask([3])})
    noise = np.random.default_rng(0).integers(0, 21, (50, 50), dtype=np.uint8)
    long = _mat(path, GTcls={"Segmentation": noise})
    bad = [
        b"",
        good[:100],
        _cut(long),
        long[:200] + bytes(50) + long[250:],
        _mat(path, other=mask()),
        _mat(path, GTcls=mask()),
        _mat(path, GTcls={"Segmentation": mask().astype(np.float64)}),
        _mat(path, GTcls={"Segmentation": mask([21])}),
        _mat(path, GTcls={"Segmentation": "text"}),
        b"\x89HDF\r\n\x1a\n" + bytes(600),
    ]
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(HubError, match=r"x\.mat"):
            read_sbd_mask(path, 20)


def test_an_sbd_mask_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    head = _mat(path, GTcls={"Segmentation": mask()})[:128]
    body = zlib.compress(bytes(65 << 20), 1)
    path.write_bytes(head + struct.pack("<II", 15, len(body)) + body)
    with pytest.raises(HubError, match="unpacks to more than"):
        read_sbd_mask(path, 20)


def test_a_folder_where_a_picture_should_be(tmp_path: Path) -> None:
    base = voc(tmp_path)
    (base / "JPEGImages/2009_000001.jpg").mkdir()
    id_list(base / "ImageSets/Segmentation/val.txt", ["2009_000001"])
    target = open_target("voc12", tmp_path)
    with pytest.raises(HubError, match="is not there"):
        target.read_image("2009_000001")


def test_a_picture_of_camera_orientation_keeps_its_pixels(tmp_path: Path) -> None:
    """Masks are drawn on the pixels as stored, so a noted rotation must not be applied."""
    path = tmp_path / "x.jpg"
    image(path, 4, 6)
    with Image.open(path) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6  # rotate by 90 degrees to view
        picture.save(path, exif=exif)
    assert read_rgb(path).shape == (4, 6, 3)
    assert image_size(path) == (4, 6)


def test_pictures_of_sixteen_bits_are_refused_and_not_made_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(path)
    with pytest.raises(HubError, match=r"a\.png has grey levels of more than 8 bits"):
        read_rgb(path)
