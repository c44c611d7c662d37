"""Zips from strangers. They are made here: `writestr` with a ZipInfo writes what it is told to."""

from __future__ import annotations

import os
import pickle
import stat
import zipfile
from pathlib import Path

import pytest
from samples import header, noise, png, png_chunks, same

from wsssbed_hub.registry.open_artifact import PngZip, open_artifact
from wsssbed_hub.utils.errors import HubError


def member(name: str, mode: int = stat.S_IFREG | 0o644, **fields: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def hostile(path: Path, *members: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", png(noise(0)))
        for info, data in members:
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("../a.png"), "leads out"),
        (member("x/../../a.png"), "leads out"),
        (member("x/../a.png"), "leads out"),
        (member("../a.txt"), "leads out"),
        (member("/etc/a.png"), "not a plain relative path"),
        (member("//server/a.png"), "not a plain relative path"),
        (member("C:/a.png"), "not a plain relative path"),
        (member("..\\a.png"), "not a plain relative path"),
        (member("a.png", stat.S_IFLNK | 0o777), "is a link or a device"),
        (member("a.png", stat.S_IFIFO | 0o644), "is a link or a device"),
        (member("a.png", stat.S_IFCHR | 0o644), "is a link or a device"),
    ],
)
def test_hostile_members(tmp_path: Path, info: zipfile.ZipInfo, message: str) -> None:
    path = hostile(tmp_path / "x.zip", (info, png(noise(0))))
    with pytest.raises(HubError, match=message) as caught:
        open_artifact(path)
    assert str(path) in str(caught.value)


def patched(path: Path, name: str, offset: int, value: bytes) -> Path:
    """Changes a field of a member in the zip's directory, at ``offset`` of its entry."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\1\2", 0, data.rindex(name.encode()))
    data[place + offset : place + offset + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, b"\1\0", "is encrypted"),
        (10, b"\x0e\0", "compressed in a way"),  # LZMA
        (24, (1 << 30).to_bytes(4, "little"), "too many for a map"),
    ],
)
def test_hostile_directories(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    path = hostile(tmp_path / "x.zip", (member("a.png"), png(noise(0))))
    with pytest.raises(HubError, match=message):
        open_artifact(patched(path, "a.png", offset, value))


def test_a_zip_bomb(tmp_path: Path) -> None:
    info = member("a.png", compress_type=zipfile.ZIP_DEFLATED)
    path = hostile(tmp_path / "x.zip", (info, bytes(20 << 20)))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(HubError, match=r"unpacks to 20,971,520 bytes from .*a zip bomb"):
        open_artifact(path)


def test_a_bomb_that_lies_about_its_size(tmp_path: Path) -> None:
    info = member("zz.png", compress_type=zipfile.ZIP_DEFLATED)
    path = hostile(tmp_path / "x.zip", (info, png(noise(0)) + bytes(20 << 20)))
    found = open_artifact(patched(path, "zz.png", 24, (99).to_bytes(4, "little")))
    with pytest.raises(HubError, match=r"x\.zip: zz\.png is damaged"):
        found.read("zz")


def test_a_picture_that_is_a_bomb(tmp_path: Path) -> None:
    """The size is read from the header; nothing of 2 GB is allocated."""
    bomb = png_chunks(header(40_000, 50_000), (b"IDAT", b""), (b"IEND", b""))
    found = open_artifact(hostile(tmp_path / "x.zip", (member("zz.png"), bomb)))
    with pytest.raises(HubError, match="has 50000 x 40000 pixels"):
        found.read("zz")


def test_names_that_occur_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = hostile(tmp_path / "x.zip", (member("good.png"), png(noise(1))))
    with pytest.raises(HubError, match=r"'good\.png' is in it twice"):
        open_artifact(path)


def test_pictures_in_two_folders(tmp_path: Path) -> None:
    path = hostile(tmp_path / "x.zip", (member("sub/good.png"), png(noise(1))))
    with pytest.raises(HubError, match="PNGs in 2 folders"):
        open_artifact(path)


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsssbed_hub.artifacts.png_layout.MAX_MEMBERS", 2)
    path = hostile(tmp_path / "x.zip", (member("a.png"), b""), (member("b.png"), b""))
    with pytest.raises(HubError, match="has 3 members, more than 2"):
        open_artifact(path)


@pytest.mark.parametrize("size", [0, 30, 200, -1])
def test_a_truncated_zip(tmp_path: Path, size: int) -> None:
    path = hostile(tmp_path / "x.zip")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(HubError, match="is not a zip, or its end is missing"):
        open_artifact(path)


def test_flipped_bits_in_a_zip_are_found(tmp_path: Path) -> None:
    """Every bit of a member's data; the rest of a zip is names and places."""
    path = hostile(tmp_path / "x.zip")
    good = path.read_bytes()
    start = good.index(b"\x89PNG")
    for place in range(start, start + len(png(noise(0)))):
        data = bytearray(good)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(HubError, match=r"x\.zip"):
            open_artifact(path).read("good")


def test_a_zip_is_read_after_pickling_and_forking(tmp_path: Path) -> None:
    members = [(member(f"{number}.png"), png(noise(number))) for number in range(3)]
    found = PngZip(hostile(tmp_path / "x.zip", *members), "sal")
    assert same(pickle.loads(pickle.dumps(found)).read("2"), noise(2))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(same(found.read(str(n)), noise(n)) for n in [0, 1, 2] * 50) else 1)
    assert all(same(found.read(str(n)), noise(n)) for n in [2, 1, 0] * 50)
    assert os.waitpid(pid, 0)[1] == 0
