"""coco14, with its 80 classes, in the commands that take a target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import HEIGHT, WIDTH, box, coco, instance
from PIL import Image
from samples import Hub

from wsssbed_hub.evaluation.inspect import expectation_of, gather_statistics
from wsssbed_hub.registry.open_artifact import open_artifact

PERSON, BOWL, TOOTHBRUSH = 1, 51, 90
IDS = [f"COCO_train2014_{number:012d}" for number in (9, 25, 30)]
CLASSES = {IDS[0]: (0, 79), IDS[1]: (45,), IDS[2]: (0, 45, 79)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images: toothbrushes in front of a person and beside a bowl."""
    person, bowl = instance(PERSON, box(0, 0, 5, 6), area=30), instance(BOWL, box(6, 0, 9, 6))
    brush = instance(TOOTHBRUSH, box(1, 1, 3, 2), area=2)
    coco(tmp_path, {9: [person, brush], 25: [bowl], 30: [brush, bowl, person]})
    return tmp_path


@pytest.fixture
def maps(root: Path) -> Path:
    """Folders `sal` and `cam` as the release has them: bright where the classes are."""
    truth = {image_id: np.zeros((HEIGHT, WIDTH), np.uint8) for image_id in IDS}
    for image_id, classes in CLASSES.items():
        if 0 in classes:
            truth[image_id][:, :5] = 1
            truth[image_id][1, 1:3] = 80
        if 45 in classes:
            truth[image_id][:, 6:] = 46
    for image_id, label in truth.items():
        for kind, name, bright in (
            ("sal", image_id, label > 0),
            *(("cam", f"{image_id}_{c}", label == c + 1) for c in CLASSES[image_id]),
        ):
            (root / kind).mkdir(exist_ok=True)
            pixels = np.where(bright, 200, 10).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{name}.png")
    return root


def test_label_eval_and_curve(command: Hub, maps: Path) -> None:
    rooted = ["--target", "coco14", "--data-root", maps]
    given = ["--cam", maps / "cam", "--sal", maps / "sal"]
    made = command("label", *given, "--tau", "0.3", "--to", maps / "labels", *rooted)
    assert made.code == 0, made.err
    with Image.open(maps / f"labels/{IDS[0]}.png") as picture:
        assert picture.mode == "P"
        assert set(np.unique(picture)) == {0, 1, 80}
    split = ["--split", "train", "--json"]
    score = json.loads(command("eval", "labels", maps / "labels", *rooted, *split).out)
    assert len(score["class_iou"]) == 81
    known = [index for index, value in enumerate(score["class_iou"]) if value is not None]
    assert known == [0, 1, 46, 80]
    assert [score["class_iou"][index] for index in known] == [1, 1, 1, 1]
    (curve,) = json.loads(command("curve", *given, *rooted, *split).out).values()
    values = np.array(curve["miou_ignored_missed"])
    # Classes have the value 200: below it all labels are right, from it on all are lost.
    assert (values[:200] == 1).all()
    assert values[200] < 0.5
    measures = json.loads(command("eval", "saliency", maps / "sal", *rooted, *split).out)
    assert {row["measure"] for row in measures} >= {"mae"}


def test_maps_of_the_release_are_checked(maps: Path) -> None:
    goal = expectation_of("coco14", maps)
    assert goal.ids == tuple(IDS)
    cam = open_artifact(maps / "cam", kind="cam")
    assert list(cam.image_ids) == IDS
    seen = gather_statistics(cam, goal)
    assert seen.classes == {image_id: list(classes) for image_id, classes in CLASSES.items()}
    assert seen.sizes == seen.damaged == []


def test_data_commands(command: Hub, root: Path) -> None:
    rows = json.loads(command("data", "list", "--json", "--data-root", root).out)
    there = {(row["name"], row["used as"]): row["there"] for row in rows}
    assert there["coco14", "target"] == "yes"
    assert there["coco20", "SOD dataset"] == "no"
    checked = command("data", "check", "coco14", "--data-root", root)
    assert checked.code == 1
    assert "3 of 82,081" in checked.out
    assert "drawn from the instances" in checked.out
    assert "http://images.cocodataset.org/zips/val2014.zip" in checked.out
    assert "Paper to cite: https://arxiv.org/abs/1405.0312" in checked.out
