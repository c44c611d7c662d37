"""COCO 2014 as a target: lists, labels, and masks that are drawn from its instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import (
    COCO_IDS,
    HEIGHT,
    WIDTH,
    box,
    coco,
    finding,
    grey_png,
    image,
    instance,
    mask,
    palette_png,
    remove,
)
from pycocotools.coco import COCO

from wsssbed_hub.datasets import (
    TARGETS,
    check,
    make_shapes,
    open_target,
)
from wsssbed_hub.datasets.coco import COCO_CLASSES
from wsssbed_hub.evaluation.inspect import check_lists, expectation_of
from wsssbed_hub.utils.errors import HubError, UsageError

TRAIN, VAL = "COCO_train2014_{:012d}", "COCO_val2014_{:012d}"
PERSON, BOWL, ORANGE, BROCCOLI, TOOTHBRUSH = 1, 51, 55, 56, 90  # COCO's category ids
WHOLE = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}


def drawn(root: Path, image_id: str, split: str = "train") -> np.ndarray:
    return np.asarray(open_target("coco14", root).ground_truth(split).read(image_id))


def test_the_classes_are_the_categories_in_the_order_of_their_ids() -> None:
    assert len(COCO_CLASSES) == len(COCO_IDS) == 80
    place = {name: index for index, name in enumerate(COCO_CLASSES)}
    # Class numbers of the WSSS-BED release: picture 9 of its list, "… 45 49 50", is a lunch.
    assert (place["bowl"], place["orange"], place["broccoli"]) == (45, 49, 50)
    assert (place["person"], place["skis"], place["toothbrush"]) == (0, 30, 79)
    assert [COCO_IDS[index] for index in (45, 49, 50, 79)] == [BOWL, ORANGE, BROCCOLI, TOOTHBRUSH]


def test_lists_hold_the_images_that_have_an_instance(tmp_path: Path) -> None:
    one = [instance(PERSON, box(0, 0, 2, 2))]
    coco(tmp_path, {581921: one, 25: one, 30: [], 9: one})
    coco(tmp_path, {42: one}, part="val2014")
    target = open_target("coco14", tmp_path)
    assert target.splits == ("train", "val")
    assert target.training_split == "train"
    assert target.image_ids("train") == [TRAIN.format(n) for n in (9, 25, 581921)]
    assert target.image_ids("val") == ["COCO_val2014_000000000042"]
    path = tmp_path / "coco/train2014/COCO_train2014_000000000009.jpg"
    assert target.image_path("COCO_train2014_000000000009") == path
    assert target.read_image(TRAIN.format(9)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(UsageError, match="Splits are train, val"):
        target.image_ids("train_aug")


def test_published_numbers() -> None:
    assert TARGETS["coco14"].published == "82,081 train, 40,137 val"


def test_labels_are_the_classes_of_all_instances_and_crowds(tmp_path: Path) -> None:
    coco(
        tmp_path,
        {
            9: [
                instance(TOOTHBRUSH, WHOLE, crowd=1),
                instance(ORANGE, box(0, 0, 1, 1)),
                instance(ORANGE, box(2, 2, 3, 3)),
            ],
            3: [],
        },
    )
    target = open_target("coco14", tmp_path)
    assert target.image_labels(TRAIN.format(9)) == (49, 79)
    assert target.image_labels(TRAIN.format(3)) == ()
    for unknown in (TRAIN.format(4), "2007_000032", "COCO_test2014_000000000009", "x/../9"):
        with pytest.raises(HubError, match="no image"):
            target.image_labels(unknown)


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_instance_is_on_top_whatever_the_order(tmp_path: Path, order: int) -> None:
    instances = [
        instance(PERSON, box(1, 1, 8, 5), area=28),
        instance(BOWL, box(2, 2, 4, 4), area=4),
        instance(TOOTHBRUSH, WHOLE, area=54, crowd=1),
    ]
    coco(tmp_path, {9: instances[::order]})
    expected = np.full((HEIGHT, WIDTH), 80, np.uint8)
    expected[1:5, 1:8] = 1
    expected[2:4, 2:4] = 46
    label = drawn(tmp_path, TRAIN.format(9))
    assert label.dtype == np.uint8
    assert label.flags.c_contiguous
    assert np.array_equal(label, expected)


def test_of_equal_ones_the_first_is_on_top(tmp_path: Path) -> None:
    coco(tmp_path, {9: [instance(BOWL, box(0, 0, 4, 4)), instance(PERSON, box(2, 0, 6, 4))]})
    assert drawn(tmp_path, TRAIN.format(9))[0].tolist() == [46, 46, 46, 46, 1, 1, 0, 0, 0]


def test_run_lengths_go_down_the_columns(tmp_path: Path) -> None:
    counts = [1, 2, HEIGHT, 1, HEIGHT * WIDTH - HEIGHT - 4]
    runs = {"size": [HEIGHT, WIDTH], "counts": counts}
    coco(tmp_path, {9: [instance(PERSON, runs)]})
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[1:3, 0] = 1
    expected[3, 1] = 1
    assert np.array_equal(drawn(tmp_path, TRAIN.format(9)), expected)


def test_an_instance_of_several_polygons_and_of_none(tmp_path: Path) -> None:
    parts = [*box(0, 0, 2, 1), *box(5, 5, 9, 6), [1.0, 2.0, 3.0, 4.0]]
    coco(tmp_path, {9: [instance(PERSON, parts), instance(BOWL, [])]})
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0, :2] = expected[5, 5:] = 1
    assert np.array_equal(drawn(tmp_path, TRAIN.format(9)), expected)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    make_shapes(root, train=24, val=6, sod=1, sod_test=1, small=1)
    return root


def test_shapes_in_both_layouts_have_the_same_truth(shapes: Path) -> None:
    """Polygons and run lengths against the masks that were painted."""
    voc, target = open_target("shapes", shapes), open_target("shapes-coco", shapes)
    for split, own in (("train_aug", "train"), ("val", "val")):
        truth, painted = target.ground_truth(own), voc.ground_truth(split)
        assert len(truth) == len(painted)
        for image_id, other in zip(truth.image_ids, painted.image_ids, strict=True):
            assert image_id == f"COCO_{own}2014_{int(other.split('_')[1]) + 1:012d}"
            label, expected = np.asarray(truth.read(image_id)), np.asarray(painted.read(other))
            known = expected != 255
            assert np.array_equal(label[known], expected[known])
            assert target.image_labels(image_id) == voc.image_labels(other)
            assert target.size(image_id) == voc.size(other)
            assert np.array_equal(target.read_image(image_id), voc.read_image(other))


def test_shapes_have_polygons_run_lengths_and_gaps_in_the_ids(shapes: Path) -> None:
    content = json.loads((shapes / "shapes/coco/annotations/instances_train2014.json").read_text())
    kinds = {type(one["segmentation"]) for one in content["annotations"]}
    assert kinds == {list, dict}
    ids = [one["id"] for one in content["categories"]]
    assert ids == sorted(ids)
    assert set(ids) != set(range(1, len(ids) + 1))


def test_masks_are_those_of_the_reference_program(shapes: Path, tmp_path: Path) -> None:
    """pycocotools' own reader, on shapes and on polygons with fractions that leave the picture."""
    rng = np.random.default_rng(3)
    instances = [
        instance(
            PERSON,
            [rng.uniform(-2, 11, 2 * int(rng.integers(3, 9))).round(2).tolist() for _ in range(2)],
        )
        for _ in range(60)
    ]
    own = coco(tmp_path, {number: [one] for number, one in enumerate(instances)})
    drawn_by_us = shapes / "shapes/coco/annotations/instances_train2014.json"
    for name, root, path in (("coco14", tmp_path, own), ("shapes-coco", shapes, drawn_by_us)):
        reference, target = COCO(str(path)), open_target(name, root)
        truth = target.ground_truth("train")
        for instances in reference.imgToAnns.values():
            expected = np.any([reference.annToMask(one) for one in instances], axis=0)
            label = truth.read(TRAIN.format(instances[0]["image_id"]))
            assert np.array_equal(np.asarray(label) > 0, expected)


def test_masks_that_others_made_are_taken(tmp_path: Path) -> None:
    one = [instance(PERSON, box(0, 0, 9, 6))]
    coco(tmp_path, {9: one, 25: one})
    coco(tmp_path, {42: one}, part="val2014")
    places = {
        "SegmentationClass/train2014": palette_png,
        "SegmentationClass": grey_png,
        "mask": grey_png,
    }
    for folder, write in reversed(places.items()):  # the first is preferred
        write(tmp_path / "coco" / folder / f"{TRAIN.format(9)}.png", mask([1, 80, 255]))
        assert np.array_equal(drawn(tmp_path, TRAIN.format(9)), mask([1, 80, 255]))
        report = check("coco14", tmp_path)
        masks = finding(report, "train: masks")
        assert (masks.ok, masks.found, masks.expected) == (False, 1, 2)
        assert masks.path == str(tmp_path / "coco" / folder)
        with pytest.raises(HubError, match=r"000025\.png is not there, others are.*move it away"):
            drawn(tmp_path, TRAIN.format(25))
    assert finding(report, "val: masks").detail == "drawn from the instances"
    assert (drawn(tmp_path, VAL.format(42), "val") == 1).all()


def test_masks_of_another_numbering_are_found(tmp_path: Path) -> None:
    coco(tmp_path, {9: [instance(TOOTHBRUSH, WHOLE)], 25: [instance(BOWL, WHOLE)]})
    grey_png(tmp_path / f"coco/mask/{TRAIN.format(9)}.png", mask([90]))
    grey_png(tmp_path / f"coco/mask/{TRAIN.format(25)}.png", mask([51]))
    with pytest.raises(HubError, match="has the value 90; a label has 0 to 80"):
        drawn(tmp_path, TRAIN.format(9))
    report = check("coco14", tmp_path, deep=True)
    assert "has the value 90" in finding(report, "every mask opened").detail
    other = finding(report, "masks with a class that the instances lack")
    assert (other.ok, other.found) == (False, 1)
    assert "COCO's category ids" in other.detail


def test_a_mask_of_another_size_than_the_image(tmp_path: Path) -> None:
    coco(tmp_path, {9: [instance(PERSON, WHOLE)]})
    image(tmp_path / f"coco/train2014/{TRAIN.format(9)}.jpg", 6, 8)
    with pytest.raises(HubError, match="is 6 x 9 pixels, the image 6 x 8"):
        drawn(tmp_path, TRAIN.format(9))
    opened = finding(check("coco14", tmp_path, deep=True), "every image opened")
    assert "is 6 x 8 pixels, the annotations say 6 x 9" in opened.detail


@pytest.mark.parametrize("folder", ["coco", "COCO", "coco2014", "."])
def test_folders(tmp_path: Path, folder: str) -> None:
    assert not TARGETS["coco14"].is_there(tmp_path)
    coco(tmp_path, {9: [instance(PERSON, WHOLE)]}, folder=folder)
    assert TARGETS["coco14"].is_there(tmp_path)
    assert open_target("coco14", tmp_path).image_ids("train") == [TRAIN.format(9)]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"coco14 is not below.*instances_train2014\.json.*zips/"):
        open_target("coco14", tmp_path)
    where = [source.where for source in check("coco14", tmp_path).sources]
    assert where == [
        "http://images.cocodataset.org/zips/train2014.zip",
        "http://images.cocodataset.org/zips/val2014.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    ]
    coco(tmp_path, {9: [instance(PERSON, WHOLE)], 25: [instance(PERSON, WHOLE)], 3: []})
    remove(tmp_path / f"coco/train2014/{TRAIN.format(25)}.jpg")
    report = check("coco14", tmp_path)
    listed = finding(report, "train: list")
    assert (listed.ok, listed.found, listed.expected) == (False, 2, 82081)
    assert listed.detail == "not the published number"
    images = finding(report, "train: images")
    assert (images.ok, images.found, images.expected) == (False, 1, 2)
    assert images.detail == f"missing: {TRAIN.format(25)}"
    assert "instances_val2014.json cannot be read" in finding(report, "val: list").detail
    shapes = tmp_path / "shapes"
    names = TARGETS["shapes-coco"].classes
    coco(shapes, {1: [instance(1, WHOLE)], 2: []}, names=names, ids=range(1, 7))
    with pytest.raises(HubError, match=r"has not the 80 categories.*disc is another one"):
        open_target("coco14", shapes).image_ids("train")


def test_a_sound_copy_has_only_the_wrong_numbers(tmp_path: Path) -> None:
    for part in ("train2014", "val2014"):
        coco(tmp_path, {9: [instance(PERSON, WHOLE)], 3: []}, part=part)
    calls: list[tuple[int, int]] = []
    report = check("coco14", tmp_path, deep=True, progress=lambda *done: calls.append(done))
    wrong = {found.what for found in report.findings if not found.ok}
    assert wrong == {"train: list", "val: list"}  # too short, both of them
    assert calls == [(1, 2), (2, 2)]


def test_maps_are_checked_against_the_annotations_alone(tmp_path: Path) -> None:
    """Lists, sizes and classes need no images, which are thirteen gigabytes."""
    coco(tmp_path, {9: [instance(BOWL, WHOLE)], 25: [instance(PERSON, WHOLE)]})
    remove(tmp_path / "coco/train2014")
    goal = expectation_of("coco14", tmp_path)
    assert goal.checks == ["ids", "sizes", "classes"]
    assert goal.size(TRAIN.format(9)) == (HEIGHT, WIDTH)
    right: dict[str, list[int]] = {TRAIN.format(9): [45], TRAIN.format(25): [0]}
    assert check_lists(list(right), goal, right.__getitem__) == []
    wrong: dict[str, Any] = {TRAIN.format(9): [46], "2007_000032": [0]}
    said = [str(problem) for problem in check_lists(list(wrong), goal, wrong.__getitem__)]
    assert [line.split(":")[0] for line in said] == [
        "missing images of coco14 train",
        "images that coco14 does not have",
        "classes other than the image-level labels (they seem to be counted from 1, not from 0)",
    ]
