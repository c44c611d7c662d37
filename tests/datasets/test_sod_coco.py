"""COCO 2017 as a SOD dataset: what is a thing is salient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts import COCO_IDS, HEIGHT, WIDTH, box, coco, finding, image, instance, remove

from wsssbed_hub.datasets import (
    SOD_DATASETS,
    check,
    make_shapes,
    open_sod_dataset,
    open_target,
)
from wsssbed_hub.datasets.coco import COCO_CLASSES
from wsssbed_hub.datasets.voc import VOC_CLASSES
from wsssbed_hub.utils.errors import HubError

PERSON, TV, TRUCK, BOWL = 1, 72, 8, 51  # COCO's category ids; VOC has the first two
NINE, OTHER = "000000000009", "000000581921"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    coco(
        tmp_path,
        {
            581921: [instance(BOWL, box(1, 1, 3, 3))],
            10: [],
            9: [
                instance(TRUCK, box(0, 0, 2, 2)),
                instance(PERSON, box(1, 1, 4, 3)),
                instance(TV, {"size": [HEIGHT, WIDTH], "counts": [53, 1]}, crowd=1),
            ],
        },
        part="train2017",
        prefix="",
    )
    return tmp_path


def test_all_classes(root: Path) -> None:
    dataset = open_sod_dataset("coco", root)
    assert dataset.image_ids == [NINE, OTHER]
    assert len(dataset) == 2
    assert dataset.image_path(NINE) == root / "coco/train2017/000000000009.jpg"
    assert dataset.read_image(NINE).shape == (HEIGHT, WIDTH, 3)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[0:2, 0:2] = expected[1:3, 1:4] = expected[-1, -1] = 255
    found = dataset.read_mask(NINE)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_the_classes_of_voc(root: Path) -> None:
    dataset = open_sod_dataset("coco20", root)
    assert dataset.image_ids == [NINE]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[1:3, 1:4] = expected[-1, -1] = 255
    assert np.array_equal(dataset.read_mask(NINE), expected)


def test_coco20_are_the_classes_of_voc_by_other_names() -> None:
    layout = SOD_DATASETS["coco20"].instances
    assert layout is not None
    assert layout.classes is not None
    assert set(layout.classes) <= set(COCO_CLASSES)
    renamed = {
        "aeroplane": "airplane",
        "motorbike": "motorcycle",
        "diningtable": "dining table",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    assert set(layout.classes) == {renamed.get(name, name) for name in VOC_CLASSES}
    assert len(layout.classes) == 20


def test_the_number_of_images_is_not_known() -> None:
    assert SOD_DATASETS["coco"].count is SOD_DATASETS["coco20"].count is None
    assert SOD_DATASETS["coco"].published == ""


def test_what_is_missing(root: Path) -> None:
    report = check("coco", root, deep=True)
    assert report.ok
    assert finding(report, "coco: list").found == 2
    image(root / f"coco/train2017/{NINE}.jpg", 6, 8)
    opened = finding(check("coco", root, deep=True), "coco: every mask opened")
    assert f"the mask of {NINE} drawn from" in opened.detail
    assert "is 6 x 9 pixels" in opened.detail
    with pytest.raises(HubError, match=r"the mask of 000000000009 drawn from .* is 6 x 9 pixels"):
        open_sod_dataset("coco", root).read_mask(NINE)
    remove(root / f"coco/train2017/{NINE}.jpg")
    images = finding(check("coco", root, deep=True), "coco: images")
    assert (images.ok, images.found, images.expected) == (False, 1, 2)
    assert images.detail == f"missing: {NINE}"
    with pytest.raises(HubError, match=r"coco: 1 of 2 images are missing, .*000000000009\.jpg"):
        open_sod_dataset("coco", root)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert not SOD_DATASETS["coco20"].is_there(tmp_path)
    with pytest.raises(HubError, match=r"coco20 is not below.*instances_train2017.*train2017\.zip"):
        open_sod_dataset("coco20", tmp_path)
    found = finding(check("coco20", tmp_path), "coco20: images")
    assert "instances_train2017.json" in found.detail
    names = ["person", *COCO_CLASSES[1:-1], "comb"]
    coco(tmp_path, {9: []}, part="train2017", prefix="", names=names, ids=COCO_IDS)
    assert SOD_DATASETS["coco20"].is_there(tmp_path)
    report = check("coco", tmp_path)
    assert finding(report, "coco: list").detail == "no image has an instance"
    coco(tmp_path, {9: []}, part="train2017", prefix="", names=["comb"], ids=[1])
    with pytest.raises(HubError, match="has no category 'airplane', which coco20 needs"):
        open_sod_dataset("coco20", tmp_path)


def test_shapes_things_of_a_class(tmp_path: Path) -> None:
    """Against the labels that were painted, which also leave things of no class out."""
    make_shapes(tmp_path, train=6, val=1, sod=1, sod_test=1, small=1)
    painted = open_target("shapes", tmp_path)
    dataset = open_sod_dataset("shapes-coco", tmp_path)
    ids = painted.image_ids("train_aug")
    assert len(dataset) == len(ids) == 6
    for image_id, other in zip(dataset.image_ids, ids, strict=True):
        label = np.asarray(painted.ground_truth("train_aug").read(other))
        known = label != 255
        mask = dataset.read_mask(image_id)
        assert np.array_equal(mask[known], np.where(label > 0, 255, 0)[known])
