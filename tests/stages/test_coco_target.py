"""Every family of stages over a target in the layout of COCO, whose training split is train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from toy_methods import ToyCam, ToySeg, ToySod

from stages import cam, pseudo, seg, sod
from wsssbed_hub.artifacts.key_folder import read_manifest, verify_folder
from wsssbed_hub.datasets import open_target
from wsssbed_hub.registry.open_artifact import open_artifact

TARGET = "shapes-coco"


def test_from_images_to_miou(shapes: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"target": TARGET, "data_root": shapes, "out": tmp_path}
    train: dict[str, Any] = common | {"device": "cpu", "workers": 0, "recipe": "shapes"}
    sod.run("sod-toy", ToySod, sod.Options(data="shapes-coco", **train))
    cam.run("cam-toy", ToyCam, cam.Options(**train))
    maps = {"cam": str(tmp_path / "cam/toy"), "sal": str(tmp_path / "sal/toy-shapes-coco")}
    pseudo.run("pseudo", pseudo.Options(**common, **maps, tau_from="curve:train"))
    labels = tmp_path / "label/toy-toy-shapes-coco"
    seg.run("seg-toy", ToySeg, seg.Options(labels=str(labels), **train))
    seg.run("seg-toy", ToySeg, seg.Options(labels="ground-truth", **train))

    target = open_target(TARGET, shapes)
    ids = target.image_ids("train")
    assert ids == [f"COCO_train2014_{number:012d}" for number in range(1, 9)]
    for key in ("sal/toy-shapes-coco", "cam/toy", "label/toy-toy-shapes-coco"):
        verify_folder(tmp_path / key)
        made = open_artifact(tmp_path / key, TARGET)
        assert list(made.image_ids) == ids
        entry = read_manifest(tmp_path / key).entry("1.0.0", TARGET)
        assert entry.provenance is not None
        lists = [one for one in entry.provenance.made_from if one.role == "target-list"]
        assert [one.file for one in lists] == ["shapes-coco train, 8 images"]
    for image_id, activations in open_artifact(tmp_path / "cam/toy", TARGET):
        assert tuple(activations[1]) == target.image_labels(image_id)
    for image_id, label in open_artifact(labels, TARGET):
        assert np.asarray(label).shape == target.size(image_id)
    for name in ("toy-toy-shapes-coco", "ground-truth"):
        entry = read_manifest(tmp_path / f"weights/seg-toy-{name}").entry("1.0.0", TARGET)
        assert (entry.results[0].metric, entry.results[0].images) == ("mIoU", 4)
