"""The synthetic dataset: what is drawn, where it lies, and that it is whole or not there."""

from __future__ import annotations

import hashlib
import os
import signal
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import exit_code, in_child
from PIL import Image
from samples import leftovers

from wsssbed_hub.datasets import check, make_shapes, open_sod_dataset, open_target
from wsssbed_hub.datasets.shapes.objects import CLASSES, OTHERS, Placement, cover
from wsssbed_hub.datasets.shapes.scenes import draw_plain_scene, draw_scene
from wsssbed_hub.datasets.shapes.textures import CONTEXTS
from wsssbed_hub.datasets.shapes.write import with_void
from wsssbed_hub.utils.errors import HubError, UsageError

FEW: dict[str, Any] = {"train": 12, "val": 6, "sod": 4, "sod_test": 2, "small": 3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    make_shapes(root, **FEW)
    return root


def digests(root: Path) -> dict[str, str]:
    """Every file below ``root``, with the digest of its bytes."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_lists(drawn: Path) -> None:
    target = open_target("shapes", drawn)
    assert target.num_classes == len(CLASSES) == len(CONTEXTS)
    assert target.image_ids("train_aug") == [f"train_{i:04d}" for i in range(12)]
    assert target.image_ids("train") == [f"train_{i:04d}" for i in range(4)]
    assert target.image_ids("val") == [f"val_{i:04d}" for i in range(6)]
    lists = drawn / "shapes/VOCdevkit/VOC2012/ImageSets/Segmentation"
    trainval = (lists / "trainval.txt").read_text().split()
    assert trainval == target.image_ids("train") + target.image_ids("val")


def test_labels_agree_with_masks_and_sizes(drawn: Path) -> None:
    report = check("shapes", drawn, deep=True)
    assert report.ok, report
    target = open_target("shapes", drawn)
    for split in target.splits:
        for image_id, label in target.ground_truth(split):
            seen = set(np.unique(label).tolist()) - {0, 255}
            assert seen == {c + 1 for c in target.image_labels(image_id)}
            height, width = target.size(image_id)
            assert min(height, width) >= 113
            assert max(height, width) <= 144
    for name in ("shapes", "shapes-te", "shapes-small"):
        assert check(name, drawn, deep=True).ok


def test_void_is_a_thin_border_and_the_augmented_masks_have_none(drawn: Path) -> None:
    target = open_target("shapes", drawn)
    fine, aug = target.ground_truth("train"), target.ground_truth("train_aug")
    for image_id in fine.image_ids:
        with_border, plain = fine.read(image_id), aug.read(image_id)
        assert 255 in with_border
        assert 255 not in plain
        assert np.array_equal(with_border[with_border != 255], plain[with_border != 255])


def test_with_void_by_hand() -> None:
    label = np.zeros((5, 7), np.uint8)
    label[1:4, 1:4] = 1
    label[1:4, 4:6] = 2
    expected = label.copy()
    expected[1:4, 1:6] = 255
    expected[2, 2] = 1  # all four neighbours are of its class
    assert np.array_equal(with_void(label), expected)


def test_annotations_have_the_boxes_of_the_objects(drawn: Path) -> None:
    target = open_target("shapes", drawn)
    folder = drawn / "shapes/VOCdevkit/VOC2012/Annotations"
    for image_id, label in target.ground_truth("train_aug"):
        root = ElementTree.parse(folder / f"{image_id}.xml").getroot()
        inside = np.zeros(label.shape, bool)
        for node in root.iter("object"):
            box = {side.tag: int(side.text or "") for side in node.find("bndbox") or ()}
            rows = slice(box["ymin"] - 1, box["ymax"])
            columns = slice(box["xmin"] - 1, box["xmax"])
            class_id = target.classes.index(node.findtext("name") or "")
            part = label[rows, columns] == class_id + 1
            assert part.any(axis=1)[[0, -1]].all()
            assert part.any(axis=0)[[0, -1]].all()
            inside[rows, columns] = True
        assert not (label[~inside] > 0).any()


def test_saliency_masks_are_binary_and_of_one_size(drawn: Path) -> None:
    for name, count in (("shapes", 4), ("shapes-te", 2), ("shapes-small", 3)):
        dataset = open_sod_dataset(name, drawn)
        assert len(dataset) == count
        for image_id in dataset.image_ids:
            values = np.unique(dataset.read_mask(image_id))
            assert values.tolist() == [0, 255]
            assert dataset.read_image(image_id).shape == (128, 128, 3)


def test_masks_are_palette_pngs_in_the_colours_of_voc(drawn: Path) -> None:
    folder = drawn / "shapes/VOCdevkit/VOC2012/SegmentationClass"
    with Image.open(folder / "val_0000.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]


def test_the_same_seed_gives_the_same_bytes_and_more_images_leave_the_first_ones(
    drawn: Path, tmp_path: Path
) -> None:
    make_shapes(tmp_path / "again", **FEW)
    assert digests(tmp_path / "again") == digests(drawn)
    make_shapes(tmp_path / "fewer", **(FEW | {"val": 2, "sod": 1, "train": 3}))
    pictures = {n: d for n, d in digests(tmp_path / "fewer").items() if n.endswith(("jpg", "png"))}
    assert pictures.items() <= digests(drawn).items()
    make_shapes(tmp_path / "other", 1, **FEW)
    ours, others = digests(drawn), digests(tmp_path / "other")
    assert ours.keys() == others.keys()
    assert not [name for name in ours if name.endswith(".jpg") and ours[name] == others[name]]


def test_a_second_call_changes_nothing(drawn: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    make_shapes(drawn, **FEW)
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


def test_other_settings_and_changed_files_are_errors(tmp_path: Path) -> None:
    few = {"train": 3, "val": 1, "sod": 1, "sod_test": 1, "small": 1}
    make_shapes(tmp_path, **few)
    with pytest.raises(HubError, match=r"other settings.*Remove .* or choose another data root"):
        make_shapes(tmp_path, **(few | {"val": 2}))
    with pytest.raises(HubError, match="other settings"):
        make_shapes(tmp_path, 7, **few)
    (tmp_path / "shapes/VOCdevkit/VOC2012/JPEGImages/val_0000.jpg").unlink()
    with pytest.raises(HubError, match="was changed since it was drawn"):
        make_shapes(tmp_path, **few)
    (tmp_path / "shapes/shapes.json").write_text("[]")
    with pytest.raises(HubError, match="was not drawn by this program"):
        make_shapes(tmp_path, **few)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"train": 2}, {"val": 0}, {"small": -1}, {"seed": -1}])
def test_numbers_that_make_no_dataset(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        make_shapes(tmp_path, **(FEW | wrong))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_all_pictures(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    make_shapes(tmp_path, **FEW, progress=lambda *done: calls.append(done))
    assert calls == [(number, 27) for number in range(1, 28)]


@pytest.mark.parametrize("step", [2, 9, 27])
def test_killed_and_run_again(drawn: Path, tmp_path: Path, step: int) -> None:
    def die(done: int, total: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = in_child(lambda: make_shapes(tmp_path, **FEW, progress=die))
    assert exit_code(pid) == -signal.SIGKILL
    assert not (tmp_path / "shapes").exists()
    make_shapes(tmp_path, **FEW)
    assert digests(tmp_path) == digests(drawn)
    assert leftovers(tmp_path) == []


def test_two_at_once(drawn: Path, tmp_path: Path) -> None:
    pids = [in_child(lambda: make_shapes(tmp_path, **FEW)) for _ in range(2)]
    assert [exit_code(pid) for pid in pids] == [0, 0]
    assert digests(tmp_path) == digests(drawn)
    assert leftovers(tmp_path) == []


def test_full_disk(small_disk: Any) -> None:
    root, resize = small_disk
    resize(64 << 10)
    with pytest.raises(HubError, match="disk is full"):
        make_shapes(root, **FEW)
    assert not (root / "shapes").exists()
    assert leftovers(root) == []
    resize(4 << 20)
    make_shapes(root, **FEW)
    assert check("shapes", root, deep=True).ok


@pytest.mark.parametrize("kind", [*CLASSES, *OTHERS], ids=lambda kind: kind.name)
def test_outlines_lie_within_their_radius(kind: Any) -> None:
    placement = Placement(60, 50, 30, 0.07, 1.0)
    alpha = cover(kind, placement, 100, 120)
    y, x = np.mgrid[0:100, 0:120]
    distance = np.hypot(x - 60, y - 50)
    # The corners of the cross reach 1.05; a pixel more for the edge.
    assert alpha[distance > 30 * 1.06 + 1].max() == 0
    share = alpha.sum() / (np.pi * 30**2)
    assert 0.2 < share <= 1
    assert set(np.unique(alpha[distance < 4])) in ({0.0}, {1.0})  # filled, or a hole in the middle


def test_scenes_show_enough_of_everything() -> None:
    seen: dict[int | None, int] = {}
    for index in range(40):
        rng = np.random.default_rng([5, index])
        scene = draw_scene(rng, 120, 130, index % len(CLASSES), others=0.3)
        assert scene.image.shape == (120, 130, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.things) <= 3
        for thing in scene.things:
            seen[thing.class_id] = seen.get(thing.class_id, 0) + 1
            assert thing.mask.sum() > 60  # never too small to be seen
        label = scene.label()
        assert index % len(CLASSES) + 1 in label
        assert not label[scene.salient() == 0].any()
    assert set(seen) == {None, *range(len(CLASSES))}


def test_plain_scenes_have_one_thing_near_the_middle() -> None:
    for index in range(10):
        scene = draw_plain_scene(np.random.default_rng(index), 128)
        rows, columns = np.nonzero(scene.salient())
        assert len(scene.things) == 1
        assert abs(rows.mean() - 64) < 20
        assert abs(columns.mean() - 64) < 20
