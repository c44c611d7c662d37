"""Every family of stages over targets whose training split is train: COCO's, and a person's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy_methods import ToyCam, ToySeg, ToySod

from stages import cam, pseudo, seg, sod
from wsssbed_hub.artifacts.key_folder import read_manifest, verify_folder
from wsssbed_hub.datasets import TARGETS, open_target
from wsssbed_hub.registry.open_artifact import open_artifact

VOC = "shapes/VOCdevkit/VOC2012"
COCO_IDS = [f"COCO_train2014_{number:012d}" for number in range(1, 9)]
OWN_IDS = [f"train_{number:04d}" for number in range(8)]


@pytest.fixture
def root(shapes: Path, tmp_path: Path) -> Path:
    """The data root, with a description of the same pictures as a target of one's own."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "shapes").symlink_to(shapes / "shapes")
    lists = {"train": "train_aug", "val": "val"}
    description = {
        "name": "mine",
        "title": "Shapes of my own",
        "classes": list(TARGETS["shapes"].classes),
        "images": f"{VOC}/JPEGImages",
        "lists": {one: f"{VOC}/ImageSets/Segmentation/{name}.txt" for one, name in lists.items()},
        "masks": {"train": f"{VOC}/SegmentationClassAug", "val": f"{VOC}/SegmentationClass"},
    }
    (root / "mine.yaml").write_text(yaml.safe_dump(description))
    return root


@pytest.mark.parametrize(
    ("name", "expected_ids"), [("shapes-coco", COCO_IDS), ("mine", OWN_IDS)], ids=["coco", "own"]
)
def test_from_images_to_miou(
    root: Path, tmp_path: Path, name: str, expected_ids: list[str]
) -> None:
    common: dict[str, Any] = {"target": name, "data_root": root, "out": tmp_path}
    train: dict[str, Any] = common | {"device": "cpu", "workers": 0, "recipe": "shapes"}
    sod.run("sod-toy", ToySod, sod.Options(data="shapes-coco", **train))
    cam.run("cam-toy", ToyCam, cam.Options(**train))
    maps = {"cam": str(tmp_path / "cam/toy"), "sal": str(tmp_path / "sal/toy-shapes-coco")}
    pseudo.run("pseudo", pseudo.Options(**common, **maps, tau_from="curve:train"))
    labels = tmp_path / "label/toy-toy-shapes-coco"
    seg.run("seg-toy", ToySeg, seg.Options(labels=str(labels), **train))
    seg.run("seg-toy", ToySeg, seg.Options(labels="ground-truth", **train))

    target = open_target(name, root)
    ids = target.image_ids("train")
    assert ids == expected_ids
    for key in ("sal/toy-shapes-coco", "cam/toy", "label/toy-toy-shapes-coco"):
        verify_folder(tmp_path / key)
        made = open_artifact(tmp_path / key, name)
        assert list(made.image_ids) == ids
        entry = read_manifest(tmp_path / key).entry("1.0.0", name)
        assert entry.provenance is not None
        lists = [one for one in entry.provenance.made_from if one.role == "target-list"]
        assert [one.file for one in lists] == [f"{name} train, 8 images"]
    for image_id, activations in open_artifact(tmp_path / "cam/toy", name):
        assert tuple(activations[1]) == target.image_labels(image_id)
    for image_id, label in open_artifact(labels, name):
        assert np.asarray(label).shape == target.size(image_id)
    for labelled in ("toy-toy-shapes-coco", "ground-truth"):
        entry = read_manifest(tmp_path / f"weights/seg-toy-{labelled}").entry("1.0.0", name)
        assert (entry.results[0].metric, entry.results[0].images) == ("mIoU", 4)
