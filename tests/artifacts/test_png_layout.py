from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import IDS, key_folder, leftovers, maps_of, noise, png, same

from wsssbed_hub.registry.open_artifact import Maps, PngFolder, PngZip, open_artifact, write_pngs
from wsssbed_hub.utils.errors import HubError, UsageError

Make = Callable[..., Maps]


def as_folder(tmp_path: Path, files: dict[str, bytes], **options: Any) -> Maps:
    folder = tmp_path / "pngs"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return PngFolder(folder, **options)


def as_zip(tmp_path: Path, files: dict[str, bytes], **options: Any) -> Maps:
    with zipfile.ZipFile(tmp_path / "pngs.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return PngZip(tmp_path / "pngs.zip", **options)


def as_deep_zip(tmp_path: Path, files: dict[str, bytes], **options: Any) -> Maps:
    inside = {f"VOC2012_CAM/{name}": data for name, data in files.items()}
    with zipfile.ZipFile(tmp_path / "pngs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("VOC2012_CAM")
        for name, data in inside.items():
            archive.writestr(name, data)
            archive.writestr("__MACOSX/VOC2012_CAM/._" + name, b"a resource fork")
    return PngZip(tmp_path / "pngs.zip", **options)


@pytest.fixture(params=[as_folder, as_zip, as_deep_zip])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


GREY = {f"{image_id}.png": png(noise(number)) for number, image_id in enumerate(IDS)}
PALETTE = {f"{image_id}.png": png(noise(number), "P") for number, image_id in enumerate(IDS)}
CAM = {
    "2007_000032_14.png": png(noise(1)),
    "2007_000032_0.png": png(noise(2)),
    "2007_000032_9.png": png(noise(3)),
    "2007_000039_19.png": png(noise(4)),
}


def test_saliency_maps(tmp_path: Path, make: Make) -> None:
    found = make(tmp_path, GREY)
    assert (found.kind, found.image_ids) == ("sal", IDS)
    assert same(found.read(IDS[1]), noise(1))


def test_labels(tmp_path: Path, make: Make) -> None:
    found = make(tmp_path, PALETTE)
    assert found.kind == "label"
    assert same(found.read(IDS[2]), noise(2))


def test_activation_maps(tmp_path: Path, make: Make) -> None:
    found = make(tmp_path, CAM)
    assert (found.kind, found.image_ids) == ("cam", IDS[:2])
    activations, class_ids = found.read(IDS[0])
    assert class_ids.tolist() == [0, 9, 14]
    assert same(activations, np.stack([noise(2), noise(3), noise(1)]))


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["2007_000032.png", "2007_000039.png"], "sal"),
        (["shapes_000012.png"], "sal"),
        (["shapes_000012_3.png"], "cam"),
        (["COCO_train2014_000000000009_79.png"], "cam"),
        (["COCO_train2014_000000000009.png"], "sal"),
        (["a_1.png", "a_01.png"], "sal"),
        (["a_1.png", "b.png"], "sal"),
        (["a_100.png"], "sal"),
    ],
)
def test_the_kind_is_seen_from_the_names(
    tmp_path: Path, make: Make, names: list[str], kind: str
) -> None:
    assert make(tmp_path, dict.fromkeys(names, png(noise(0)))).kind == kind


def test_the_kind_may_be_given(tmp_path: Path, make: Make) -> None:
    files = {"a_1.png": png(noise(0)), "a_2.png": png(noise(1))}
    assert make(tmp_path, files, kind="sal").image_ids == ["a_1", "a_2"]
    assert make(tmp_path, files).image_ids == ["a"]
    with pytest.raises(UsageError, match="no maps of kind 'weights'"):
        make(tmp_path, files, kind="weights")


def test_a_grey_label_has_to_be_called_one(tmp_path: Path, make: Make) -> None:
    mixed = PALETTE | {f"{IDS[1]}.png": png(noise(1))}
    with pytest.raises(HubError, match=f"image {IDS[1]} is grey, not palette.*kind='label'"):
        make(tmp_path, mixed).read(IDS[1])
    assert same(make(tmp_path, mixed, kind="label").read(IDS[1]), noise(1))
    assert same(make(tmp_path, mixed, kind="label").read(IDS[0]), noise(0))


def test_hidden_and_other_files_are_not_looked_at(tmp_path: Path, make: Make) -> None:
    found = make(tmp_path, GREY | {".a.png": b"", "list.txt": b"", "Thumbs.db": b""})
    assert found.image_ids == IDS


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        ({}, None, "holds no PNG files"),
        ({"a.jpg": b""}, None, "holds no PNG files"),
        ({"a b.png": png(noise(0))}, None, "'a b' is not an image id"),
        ({"a..b.png": png(noise(0))}, None, "is not an image id"),
        ({"-a.png": png(noise(0))}, None, "is not an image id"),
        ({"a_01.png": png(noise(0))}, "cam", "is not named as an activation map"),
        ({"_1.png": png(noise(0))}, "cam", "is not named as an activation map"),
        ({"a.png": b"no"}, None, "a.png is not a PNG"),
    ],
)
def test_names_that_are_refused(
    tmp_path: Path, make: Make, files: dict[str, bytes], kind: str | None, message: str
) -> None:
    (tmp_path / "pngs").mkdir()
    with pytest.raises(HubError, match=message):
        make(tmp_path, files, kind=kind)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a PNG"),
        (png(noise(0))[:50], "cut short"),
        (png(noise(0), "RGB"), "8-bit RGB"),
        (png(noise(0), format="TIFF"), "is not a PNG"),
    ],
)
def test_a_corrupt_picture_names_place_and_image(
    tmp_path: Path, make: Make, data: bytes, message: str
) -> None:
    found = make(tmp_path, GREY | {f"{IDS[1]}.png": data})
    assert same(found.read(IDS[0]), noise(0))
    with pytest.raises(HubError, match=message) as caught:
        found.read(IDS[1])
    assert str(tmp_path / "pngs") in str(caught.value)
    assert f"image {IDS[1]}" in str(caught.value)


def test_maps_of_one_image_have_one_size(tmp_path: Path, make: Make) -> None:
    found = make(tmp_path, CAM | {"2007_000032_9.png": png(noise(3, 8, 6))})
    with pytest.raises(HubError, match="image 2007_000032: the maps of its classes differ in size"):
        found.read("2007_000032")


def test_an_image_that_is_not_there(tmp_path: Path, make: Make) -> None:
    with pytest.raises(HubError, match=r"has no maps of image \.\./x"):
        make(tmp_path, GREY).read("../x")


def test_a_file_that_went_away(tmp_path: Path) -> None:
    found = as_folder(tmp_path, GREY)
    (tmp_path / "pngs" / f"{IDS[0]}.png").unlink()
    with pytest.raises(HubError, match="No such file"):
        found.read(IDS[0])


@pytest.mark.parametrize("kind", ["sal", "cam", "label"])
def test_the_release_layout_is_written(tmp_path: Path, kind: str) -> None:
    maps = maps_of(kind)
    content = key_folder(tmp_path / "key", kind).entry("1.0.0", "shapes").content
    steps: list[tuple[int, int]] = []
    folder = write_pngs(
        open_artifact(tmp_path / "key"),
        tmp_path / "out",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    names = sorted(path.name for path in folder.iterdir())
    if kind == "cam":
        assert names[:2] == ["2007_000032_0.png", "2007_000032_20.png"]
    else:
        assert names == [f"{image_id}.png" for image_id in IDS]
        picture = Image.open(folder / names[0])
        assert picture.mode == ("P" if kind == "label" else "L")
        assert np.array_equal(np.asarray(picture), maps[IDS[0]])
    assert open_artifact(folder).digest() == content
    assert not leftovers(tmp_path)


def test_writing_what_is_there_changes_nothing(tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    maps = open_artifact(tmp_path / "key")
    folder = write_pngs(maps, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_pngs(maps, tmp_path / "out") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    (tmp_path / "out").mkdir()
    folder = write_pngs(open_artifact(tmp_path / "key"), tmp_path / "out")
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (f"{IDS[0]}.png", b"other", "differs from"),
        (f"{IDS[0]}.png", None, "is not there"),
        ("notes.txt", b"mine", r"also holds notes\.txt"),
    ],
)
def test_something_else_is_left_alone(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    key_folder(tmp_path / "key")
    folder = write_pngs(open_artifact(tmp_path / "key"), tmp_path / "out")
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(HubError, match=message):
        write_pngs(open_artifact(tmp_path / "key"), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_in_the_way(tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(HubError, match="is there already and not a folder"):
        write_pngs(open_artifact(tmp_path / "key"), tmp_path / "out")


def test_what_a_killed_run_left_is_completed(tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    maps = open_artifact(tmp_path / "key")
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    good = write_pngs(maps, tmp_path / "other") / f"{IDS[0]}.png"
    (partial / good.name).write_bytes(good.read_bytes()[:20])
    (partial / "stray.png").write_bytes(b"of another artifact")
    write_pngs(maps, tmp_path / "out")
    assert open_artifact(tmp_path / "out").digest() == maps.content
    assert len(list((tmp_path / "out").iterdir())) == 3
