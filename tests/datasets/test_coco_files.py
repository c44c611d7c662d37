"""COCO's annotation files: read once, kept small, and hostile until checked."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import COCO_IDS, HEIGHT, WIDTH, box, coco, instance

from wsssbed_hub.datasets import coco_index, make_shapes, open_target
from wsssbed_hub.datasets.coco_index import read_index
from wsssbed_hub.datasets.coco_instances import Instances, segmentation_mask
from wsssbed_hub.utils.errors import HubError

PREFIX = "COCO_train2014_"
NINE = f"{PREFIX}000000000009"
IMAGE = {"id": 9, "file_name": f"{NINE}.jpg", "height": HEIGHT, "width": WIDTH}
ONE = {"image_id": 9, "category_id": 1, "area": 1.0, "segmentation": box(0, 0, 1, 1)}
PERSON = {"id": 1, "name": "person"}


def content(**other: Any) -> dict[str, Any]:
    return {"images": [IMAGE], "annotations": [ONE], "categories": [PERSON]} | other


def written(folder: Path, text: Any) -> Path:
    path = folder / "instances_train2014.json"
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


@pytest.mark.parametrize("window", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 3])
def test_the_index_is_what_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, indent: int | None
) -> None:
    """Windows of any size, so that every kind of value is cut somewhere."""
    make_shapes(tmp_path, train=3, val=1, sod=1, sod_test=1, small=1)
    source = tmp_path / "shapes/coco/annotations/instances_train2014.json"
    known = json.loads(source.read_text())
    known["info"] = {"note": 'ÄÖ \\ " ]}', "nested": [[[1]], {}], "empty": []}
    known["annotations"].reverse()
    path = written(tmp_path, json.dumps(known, indent=indent, ensure_ascii=False) + "\n ")
    monkeypatch.setattr(coco_index, "_WINDOW", window)
    index = read_index(path, PREFIX)
    assert index.numbers.tolist() == [1, 2, 3]
    assert index.sizes.tolist() == [[one["height"], one["width"]] for one in known["images"]]
    assert index.category_ids.tolist() == [one["id"] for one in known["categories"]]
    assert list(index.names) == [one["name"] for one in known["categories"]]
    by_image = defaultdict(list)
    for one in known["annotations"]:
        by_image[one["image_id"]].append(one)
    data = path.read_bytes()
    for row, number in enumerate(index.numbers.tolist()):
        chosen = slice(index.first[row], index.first[row + 1])
        found = [json.loads(data[start : start + size]) for start, size in index.spans[chosen]]
        assert found == by_image[number]
        categories = [one["category_id"] for one in by_image[number]]
        assert index.category_of[chosen].tolist() == categories


TEXT = json.dumps(content())
DEEP = "[" * 100_000
WRONG: dict[str, tuple[Any, str]] = {
    "nothing": ("", "its end"),
    "no JSON": (b"\x89PNG\r\n\x1a\n", "instead of {"),
    "a list": ("[1]", "instead of {"),
    "cut short": (TEXT[:-30], "instead of"),
    "cut in the list": (TEXT[: TEXT.index("annotations") + 20], "Unterminated|Expecting"),
    "something behind": (TEXT + "1", "something follows"),
    "too deep": (f'{{"info": {DEEP}', "recursion"),
    "too deep an annotation": (f'{{"annotations": [{DEEP}', "recursion"),
    "a huge number": (f'{{"info": {"9" * 5000}}}', "integer string"),
    "no images": ({"annotations": [], "categories": []}, "no 'images'"),
    "an object": (content(images={"1": IMAGE}), "instead of \\["),
    "twice": (TEXT[:-1] + ', "images": []}', "'images' twice"),
    "an image twice": (content(images=[IMAGE, IMAGE]), "image 9 occurs twice"),
    "a category twice": (content(categories=[PERSON, PERSON]), "category 1 occurs twice"),
    "no name": (content(categories=[{"id": 1}]), "category 1 has no name"),
    "another name": (
        content(images=[IMAGE | {"file_name": "../../../etc/passwd"}]),
        "is called '../../../etc/passwd'",
    ),
    "another image's name": (content(images=[IMAGE | {"id": 10}]), "not COCO_train2014_.*010"),
    "no size": (content(images=[IMAGE | {"height": None}]), "height is None"),
    "too large": (content(images=[IMAGE | {"height": 1 << 14, "width": 1 << 14}]), "16384 x"),
    "empty image": (content(images=[IMAGE | {"height": 0}]), "0 x 9 pixels"),
    "negative id": (content(images=[IMAGE | {"id": -9}]), "id is -9"),
    "a truth": (content(annotations=[ONE | {"image_id": True}]), "image_id is True"),
    "a fraction": (content(annotations=[ONE | {"category_id": 1.5}]), "category_id is 1.5"),
    "a string": (content(annotations=["x"]), "image_id is None"),
    "beyond 64 bits": (content(annotations=[ONE | {"image_id": 1 << 70}]), "image_id is"),
    "of no image": (content(annotations=[ONE | {"image_id": 8}]), "image 8, which it has not"),
    "of no category": (content(annotations=[ONE | {"category_id": 2}]), "category 2, which it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_files_that_are_refused(tmp_path: Path, case: str) -> None:
    text, message = WRONG[case]
    path = written(tmp_path, text)
    with pytest.raises(HubError, match=message) as raised:
        read_index(path, PREFIX)
    assert str(raised.value).startswith(f"{path} is not an annotation file of COCO: ")
    assert len(str(raised.value)) < 500


def test_an_element_that_does_not_end_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_index, "_ELEMENT", 1 << 12)
    monkeypatch.setattr(coco_index, "_WINDOW", 1 << 10)
    long = ONE | {"segmentation": [[0.5] * 5000]}
    with pytest.raises(HubError, match="is not an annotation file of COCO"):
        read_index(written(tmp_path, content(annotations=[long])), PREFIX)


def test_a_file_of_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "instances_train2014.json"
    with open(path, "wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(HubError, match="more than 1,073,741,824 bytes"):
        Instances(path, PREFIX).image_ids()


RUNS = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "neither polygons nor run lengths"),
    "text": ("abc", "neither polygons nor run lengths"),
    "flat": ([0, 0, 1, 0, 1, 1], "no list of pairs"),
    "odd": ([[0, 0, 1, 0, 1, 1, 5]], "no list of pairs"),
    "strings": ([["0", "0", "1", "0", "1", "1"]], "no list of pairs"),
    "not a number": ([[0, 0, 1, 0, float("nan"), 1]], "leaves the picture"),
    "infinite": ([[0, 0, 1, 0, float("inf"), 1]], "leaves the picture"),
    # What brings the reference program down, by its issue 380.
    "far": ([[-164.1, -221.8, 2.0e8, 3.5e8, 225.9, 236.5, 272.0, 384.2]], "leaves the picture"),
    "huge": ([[0, 0, 10**400, 0, 1, 1]], "leaves the picture"),
    "long": ([[0, 0, 18, 12] * 120_000], "too long to draw"),
    "another size": (RUNS | {"size": [WIDTH, HEIGHT]}, "not those of 6 x 9"),
    "no counts": ({"size": [HEIGHT, WIDTH]}, "no list of numbers"),
    "packed": (RUNS | {"counts": "WX2"}, "no list of numbers"),
    "too many": (RUNS | {"counts": [1, HEIGHT * WIDTH]}, "not those of 6 x 9"),
    "too few": (RUNS | {"counts": [HEIGHT * WIDTH - 1]}, "not those of 6 x 9"),
    "backwards": (RUNS | {"counts": [60, -6]}, "not those of 6 x 9"),
    "fractions": (RUNS | {"counts": [53.5, 0.5]}, "not those of 6 x 9"),
    "nothing many times": (RUNS | {"counts": [0] * 1000 + [54]}, "not those of 6 x 9"),
}


@pytest.mark.parametrize("case", BAD)
def test_segmentations_that_are_refused(tmp_path: Path, case: str) -> None:
    segmentation, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        segmentation_mask(segmentation, HEIGHT, WIDTH)
    path = written(tmp_path, content(annotations=[ONE | {"segmentation": segmentation}]))
    with pytest.raises(HubError, match=rf"_train2014\.json: an instance of {NINE}: .*{message}"):
        Instances(path, PREFIX).label(NINE, {1: 0})


@pytest.mark.parametrize("area", [None, "1", -1, float("nan"), float("inf"), True])
def test_areas_that_are_none(tmp_path: Path, area: Any) -> None:
    path = written(tmp_path, content(annotations=[ONE | {"area": area}]))
    with pytest.raises(HubError, match="an instance of image 9 has no area"):
        Instances(path, PREFIX).label(NINE, {1: 0})


def test_polygons_at_random_do_no_harm() -> None:
    """The C code has no checks of its own: what is let through has to be fit for it."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width = (int(side) for side in rng.integers(1, 40, 2))
        side = max(height, width)
        corners = rng.uniform(-2 * side, 3 * side, 2 * int(rng.integers(3, 12))).tolist()
        covered = segmentation_mask([corners], height, width)
        assert covered.shape == (height, width)
        assert covered.dtype == bool


def reading(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read anew from here on."""
    read: list[Path] = []
    real: Callable[[Path, str], Any] = coco_index.read_index

    def counted(path: Path, prefix: str) -> Any:
        read.append(path)
        return real(path, prefix)

    monkeypatch.setattr(coco_index, "read_index", counted)
    return read


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reading(monkeypatch)
    one = [instance(1, box(0, 0, 2, 2))]
    path = coco(tmp_path, {9: one})
    for _ in range(2):
        target = open_target("coco14", tmp_path)
        assert target.image_ids("train") == [NINE]
        assert target.image_labels(NINE) == (0,)
        assert np.asarray(target.ground_truth("train").read(NINE)).sum() == 4
    assert read == [path]
    coco(tmp_path, {9: one, 25: one})
    assert len(open_target("coco14", tmp_path).image_ids("train")) == 2
    assert read == [path] * 2
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # as another of this size
    assert len(open_target("coco14", tmp_path).image_ids("train")) == 2
    assert read == [path] * 3


def test_a_file_that_changes_under_the_hands(tmp_path: Path) -> None:
    path = coco(tmp_path, {9: [instance(1, box(0, 0, 2, 2))], 25: []})
    truth = open_target("coco14", tmp_path).ground_truth("train")
    path.write_text(path.read_text().replace('"category_id": 1}', '"category_id": 2}'))
    path.write_text(path.read_text().replace('"category_id": 1,', '"category_id": 2,'))
    with pytest.raises(HubError, match="was changed while it was in use"):
        truth.read(NINE)
    path.write_text("{")
    with pytest.raises(HubError, match="was changed while it was in use"):
        truth.read(NINE)
    path.unlink()
    with pytest.raises(HubError, match="cannot be read"):
        truth.read(NINE)


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "folder"])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    coco(tmp_path, {9: [instance(1, box(0, 0, 2, 2))]})
    open_target("coco14", tmp_path).image_ids("train")
    (kept,) = (tmp_path / "cache/annotations").glob("*.npz")
    data = kept.read_bytes()
    kept.unlink()
    if damage == "folder":
        kept.mkdir()
    else:
        kept.write_bytes({"cut": data[:-40], "noise": b"x" * 999, "empty": b""}[damage])
    read = reading(monkeypatch)
    assert open_target("coco14", tmp_path).image_ids("train") == [NINE]
    assert len(read) == 1
    assert open_target("coco14", tmp_path).image_ids("train") == [NINE]
    assert len(read) == (2 if damage == "folder" else 1)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco(tmp_path, {9: [instance(COCO_IDS[3], box(0, 0, 2, 2))]})
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WSSSBED_CACHE", str(tmp_path / "file/cache"))
    assert open_target("coco14", tmp_path).image_labels(NINE) == (3,)
