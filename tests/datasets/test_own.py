"""People's own targets: what the YAML file may say, and that commands take them by their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from layouts import finding, grey_png, id_list, image, mask, remove
from samples import Hub

from wsssbed_hub.datasets import check, open_target
from wsssbed_hub.evaluation.inspect import check_lists, expectation_of
from wsssbed_hub.utils.errors import HubError, UsageError

DESCRIPTION: dict[str, Any] = {
    "name": "mine",
    "title": "Streets",
    "classes": ["car", "bicycle", "traffic light"],
    "images": "streets/images",
    "lists": {"train": "streets/train.txt", "val": "streets/val.txt"},
    "masks": "streets/masks",
    "labels": "streets/labels.txt",
}
CLASSES = {"a": (0, 2), "b": (1,), "v": (0,)}


def describe(root: Path, **changes: Any) -> Path:
    """Writes the description with ``changes``; None takes a field away."""
    fields = {name: value for name, value in (DESCRIPTION | changes).items() if value is not None}
    path = root / "mine.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images a (PNG) and b for training and v for validation, 6 x 9, with masks and labels."""
    streets = tmp_path / "streets"
    for image_id, classes in CLASSES.items():
        image(streets / f"images/{image_id}.{'png' if image_id == 'a' else 'jpg'}")
        grey_png(streets / f"masks/{image_id}.png", mask([c + 1 for c in classes]))
    id_list(streets / "train.txt", ["b", "a"])
    id_list(streets / "val.txt", ["v"])
    (streets / "labels.txt").write_text("a 2 0\nb 1\n\nv 0\n")
    describe(tmp_path)
    return tmp_path


def test_a_target_as_it_is_described(root: Path) -> None:
    target = open_target("mine", root)
    assert (target.name, target.num_classes, target.splits) == ("mine", 3, ("train", "val"))
    assert target.training_split == "train"
    assert target.classes == ("car", "bicycle", "traffic light")
    assert target.image_ids("train") == ["a", "b"]
    assert target.image_path("a") == root / "streets/images/a.png"
    assert target.image_path("elsewhere") == root / "streets/images/elsewhere.jpg"
    assert target.read_image("b").shape == (6, 9, 3)
    assert {i: target.image_labels(i) for i in CLASSES} == CLASSES
    assert np.array_equal(target.ground_truth("train").read("a"), mask([1, 3]))
    with pytest.raises(UsageError, match="Splits are train, val"):
        target.image_ids("test")


def test_without_labels_the_masks_tell_the_classes(root: Path) -> None:
    describe(root, labels=None)
    target = open_target("mine", root)
    assert {i: target.image_labels(i) for i in CLASSES} == CLASSES
    remove(root / "streets/masks/b.png")
    with pytest.raises(HubError, match="no mask of image b, and no labels"):
        target.image_labels("b")


def test_masks_of_some_splits_only(root: Path) -> None:
    describe(root, masks={"val": "streets/masks"})
    target = open_target("mine", root)
    assert np.array_equal(target.ground_truth("val").read("v"), mask([1]))
    with pytest.raises(HubError, match=r"mine has no masks of train: mine\.yaml names none"):
        target.ground_truth("train").read("a")
    assert not any(found.what == "train: masks" for found in check("mine", root).findings)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"image": "x"}, "image: Extra inputs"),
    "missing field": ({"title": None}, "title: Field required"),
    "another name": ({"name": "yours"}, r"describes 'yours'\. Call it yours\.yaml"),
    "no name": ({"name": "../mine"}, "name: String should match"),
    "no class": ({"classes": []}, "classes: Tuple should have at least 1 item"),
    "a class twice": ({"classes": ["car", "car"]}, "a class is named twice"),
    "no list": ({"lists": {}}, "lists: Dictionary should have at least 1 item"),
    "out of the root": ({"images": "../secret"}, "images: .* below the data root"),
    "absolute": ({"labels": "/etc/passwd"}, "labels: .* below the data root"),
    "out by a list": ({"lists": {"train": "a/../../b"}}, "lists.train: .* below the data root"),
    "masks of no list": ({"masks": {"test": "m"}}, "masks are of a split that has no list"),
    "no classes": ({"masks": None, "labels": None}, "neither masks nor labels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_descriptions_that_are_refused(root: Path, case: str) -> None:
    changes, message = WRONG[case]
    path = describe(root, **changes)
    for use in (open_target, check, expectation_of):
        with pytest.raises(HubError, match=message) as raised:
            use("mine", root)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 3", "line 1: after the image come its class numbers, distinct, from 0 to 2"),
        ("a 0 0", "line 1: after the image come its class numbers, distinct"),
        ("a car", "line 1: after the image"),
        ("a -1", "line 1: after the image"),
        ("b 0\nb 1", "line 2: b stands there twice"),
        ("../b 1", r"line 1: '\.\./b' is not an image id"),
    ],
)
def test_labels_that_are_refused(root: Path, line: str, message: str) -> None:
    (root / "streets/labels.txt").write_text(line)
    with pytest.raises(HubError, match=rf"labels\.txt, {message}"):
        open_target("mine", root).image_labels("a")


def test_what_is_missing_is_said(root: Path) -> None:
    assert check("mine", root, deep=True).ok
    remove(root / "streets/images/b.jpg")
    (root / "streets/labels.txt").write_text("a 0\nv 0\n")
    grey_png(root / "streets/masks/v.png", mask(width=4))
    report = check("mine", root, deep=True)
    for what in ("train: images", "train: labels"):
        assert finding(report, what).detail == "missing: b"
    opened = finding(report, "every mask opened")
    assert "is 6 x 4 pixels, the image v.jpg is 6 x 9" in opened.detail
    other = finding(report, "masks with a class that the labels lack")
    assert (other.ok, other.found) == (True, 1)  # a's traffic light
    assert report.sources[0].where == str(root / "mine.yaml")
    remove(root / "streets/images")
    with pytest.raises(HubError, match=r"mine is not below .*streets/images"):
        open_target("mine", root)


def test_unknown_names_say_how_to_describe_one(root: Path) -> None:
    message = rf"Targets are voc12.*, and your own NAME that {root}/NAME\.yaml describes"
    for name in ("yours", "../mine", str(root / "mine"), "mine.yaml"):
        with pytest.raises(UsageError, match=message):
            open_target(name, root)


def test_maps_are_compared_with_it(root: Path) -> None:
    expected = expectation_of("mine", root)
    assert (expected.ids, expected.checks) == (("a", "b"), ["ids", "sizes", "classes"])
    wrong = {"a": [0, 2], "b": [0]}
    (problem,) = check_lists(list(wrong), expected, wrong.__getitem__)
    assert str(problem) == "classes other than the image-level labels: b"


def test_commands_take_it_by_its_name(command: Hub, root: Path) -> None:
    (root / "other.yaml").write_text("no: target")
    rows = json.loads(command("data", "list", "--json", "--data-root", root).out)
    assert [row["there"] for row in rows if row["name"] == "mine"] == ["yes"]
    assert not any(row["name"] == "other" for row in rows)
    checked = command("data", "check", "mine", "--data-root", root, "--deep")
    assert checked.code == 0, checked.out
    for image_id, classes in CLASSES.items():
        for c in classes:
            bright = np.where(mask([k + 1 for k in classes]) == c + 1, 200, 10).astype(np.uint8)
            grey_png(root / f"cam/{image_id}_{c}.png", bright)
        grey_png(root / f"sal/{image_id}.png", np.full((6, 9), 255, np.uint8))
    rooted = ["--target", "mine", "--data-root", root]
    given = ["--cam", root / "cam", "--sal", root / "sal"]
    tau = ["--tau-from", "curve:train"]
    made = command("label", *given, *tau, "--to", root / "made", *rooted)
    assert made.code == 0, made.err
    split = ["--split", "val", "--json"]
    score = json.loads(command("eval", "labels", root / "made", *rooted, *split).out)
    assert (score["images"], score["class_iou"][1]) == (1, 1)
    curves = json.loads(command("curve", *given, *rooted, *split).out)
    assert [curve["images"] for curve in curves.values()] == [1]
    page = root / "page.html"
    assert command("report", *given, *rooted, "--to", page, "--split", "val").code == 0
    assert "traffic light" in page.read_text()
