"""VOC 2012 and SBD as distributed: lists, image-level labels, masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts import (
    annotation,
    grey_png,
    id_list,
    image,
    mask,
    palette_png,
    remove,
    sbd,
    voc,
)
from PIL import Image

from wsssbed_hub.artifacts.maps import Maps
from wsssbed_hub.datasets import open_target
from wsssbed_hub.utils.errors import HubError, UsageError


def test_classes_and_splits_of_voc12(tmp_path: Path) -> None:
    voc(tmp_path)
    target = open_target("voc12", tmp_path)
    assert (target.name, target.num_classes) == ("voc12", 20)
    assert target.splits == ("train_aug", "train", "val")
    assert [target.classes[i] for i in (0, 14, 18, 19)] == [
        "aeroplane", "person", "train", "tvmonitor",
    ]  # fmt: skip
    assert list(target.classes) == sorted(target.classes)  # VOC's order is the alphabet's


def test_train_aug_is_sbd_and_voc_train_without_voc_val(tmp_path: Path) -> None:
    voc(tmp_path, train=["b", "a"], val=["v", "w"], further=["s", "t"])
    sbd(tmp_path, train=["s", "a", "v"], val=["t", "w"])
    target = open_target("voc12", tmp_path)
    assert target.image_ids("train_aug") == ["a", "b", "s", "t"]
    assert target.image_ids("train") == ["a", "b"]
    assert target.image_ids("val") == ["v", "w"]


def test_published_size_of_train_aug(tmp_path: Path) -> None:
    """With lists as long and as overlapping as the real ones the count is the published one."""
    # 11,355 images of SBD; 10,582 are 11,355 + 1,464 - 1,449 and what both of them count.
    names = [f"2009_{number:06d}" for number in range(12031)]
    val, train = names[:1449], names[1449 : 1449 + 1464]
    in_sbd = [*val[:1124], *names[1449 + 351 :]]
    assert len(in_sbd) == 11355
    base = tmp_path / "VOCdevkit/VOC2012"
    (base / "JPEGImages").mkdir(parents=True)
    id_list(base / "ImageSets/Segmentation/train.txt", train)
    id_list(base / "ImageSets/Segmentation/val.txt", val)
    id_list(tmp_path / "SBD/train.txt", in_sbd[:8498])
    id_list(tmp_path / "SBD/val.txt", in_sbd[8498:])
    assert len(open_target("voc12", tmp_path).image_ids("train_aug")) == 10582


@pytest.mark.parametrize("name", ["train_aug.txt", "trainaug.txt"])
def test_a_list_stands_in_for_sbds_lists(tmp_path: Path, name: str) -> None:
    base = voc(tmp_path)
    id_list(base / "ImageSets/Segmentation" / name, ["2008_000004", "2007_000001"])
    ids = open_target("voc12", tmp_path).image_ids("train_aug")
    assert ids == ["2007_000001", "2008_000004"]


def test_a_list_of_train_aug_with_images_of_val_is_refused(tmp_path: Path) -> None:
    base = voc(tmp_path)
    id_list(base / "ImageSets/Segmentation/trainaug.txt", ["2008_000004", "2007_000002"])
    with pytest.raises(HubError, match="lists images of val: 2007_000002"):
        open_target("voc12", tmp_path).image_ids("train_aug")


def test_without_any_list_of_train_aug(tmp_path: Path) -> None:
    voc(tmp_path)
    target = open_target("voc12", tmp_path)
    with pytest.raises(HubError, match=r"train_aug\.txt.*data check voc12"):
        target.image_ids("train_aug")
    assert target.image_ids("train")  # the rest is of use all the same


@pytest.mark.parametrize("folder", ["VOCdevkit/VOC2012", "VOC2012"])
@pytest.mark.parametrize("further", ["benchmark_RELEASE/dataset", "SBD"])
def test_folders_that_are_accepted(tmp_path: Path, folder: str, further: str) -> None:
    base = voc(tmp_path, folder=folder)
    sbd(tmp_path, folder=further)
    target = open_target("voc12", tmp_path)
    assert target.image_path("2007_000001") == base / "JPEGImages/2007_000001.jpg"
    assert len(target.image_ids("train_aug")) == 3
    assert np.array_equal(target.ground_truth("train_aug").read("2008_000004"), mask([1]))


def test_image_size_and_labels(tmp_path: Path) -> None:
    base = voc(tmp_path)
    image(base / "JPEGImages/2007_000001.jpg", 5, 7, value=200)
    target = open_target("voc12", tmp_path)
    pixels = target.read_image("2007_000001")
    assert (pixels.shape, pixels.dtype) == ((5, 7, 3), np.uint8)
    assert abs(int(pixels[0, 0, 0]) - 200) <= 2  # JPEG is not exact
    assert target.size("2007_000001") == (5, 7)
    assert target.image_labels("2007_000001") == (0, 19)  # once each, ascending, no "head"


def test_a_grey_jpeg_is_read_as_rgb(tmp_path: Path) -> None:
    base = voc(tmp_path)
    Image.fromarray(np.full((4, 3), 7, np.uint8)).save(base / "JPEGImages/2007_000001.jpg")
    assert open_target("voc12", tmp_path).read_image("2007_000001").shape == (4, 3, 3)


def test_ground_truth_reads_palette_indices_and_keeps_void(tmp_path: Path) -> None:
    base = voc(tmp_path)
    palette_png(base / "SegmentationClass/2007_000002.png", mask([5, 20, 255]))
    truth = open_target("voc12", tmp_path).ground_truth("val")
    assert isinstance(truth, Maps)
    assert (truth.kind, truth.image_ids, len(truth)) == ("label", ["2007_000002"], 1)
    assert "val" in truth.name
    ((image_id, label),) = list(truth)
    assert image_id == "2007_000002"
    assert label.dtype == np.uint8
    assert np.array_equal(label, mask([5, 20, 255]))


def test_augmented_masks_in_the_order_png_voc_sbd(tmp_path: Path) -> None:
    base = voc(tmp_path)
    folder = sbd(tmp_path)
    aug = base / "SegmentationClassAug/2007_000001.png"
    grey_png(aug, mask([7]))  # the copy that circulates is grey
    truth = open_target("voc12", tmp_path).ground_truth("train_aug")
    assert truth.read("2007_000001")[0, 0] == 7
    remove(aug)
    assert list(truth.read("2007_000001")[0, :3]) == [1, 20, 255]
    assert list(truth.read("2008_000004")[0, :2]) == [1, 0]
    remove(folder / "cls/2008_000004.mat")
    with pytest.raises(HubError, match=r"no mask of image 2008_000004.*cls/2008_000004\.mat"):
        truth.read("2008_000004")


def test_train_and_val_never_use_the_augmented_masks(tmp_path: Path) -> None:
    base = voc(tmp_path)
    for image_id in ("2007_000001", "2007_000002"):
        grey_png(base / f"SegmentationClassAug/{image_id}.png", mask([7]))
    target = open_target("voc12", tmp_path)
    assert target.ground_truth("train").read("2007_000001")[0, 0] == 1
    assert target.ground_truth("val").read("2007_000002")[0, 0] == 1


def test_a_mask_of_another_size_than_its_image(tmp_path: Path) -> None:
    base = voc(tmp_path)
    palette_png(base / "SegmentationClass/2007_000002.png", mask(height=5))
    with pytest.raises(HubError, match=r"2007_000002\.png is 5 x 9.* is 6 x 9"):
        open_target("voc12", tmp_path).ground_truth("val").read("2007_000002")


def test_an_image_that_is_not_in_the_split(tmp_path: Path) -> None:
    voc(tmp_path)
    with pytest.raises(HubError, match="val has no image '2007_000001'"):
        open_target("voc12", tmp_path).ground_truth("val").read("2007_000001")


def test_unknown_names_suggest_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'voc12'"):
        open_target("voc2012", tmp_path)
    voc(tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'train_aug'"):
        open_target("voc12", tmp_path).image_ids("trainaug")


def test_a_target_that_is_not_there_says_what_was_looked_for_and_where_to_get_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(HubError) as caught:
        open_target("voc12", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "VOCdevkit/VOC2012/JPEGImages") in message
    assert "host.robots.ox.ac.uk" in message


def test_a_missing_image_and_a_class_that_is_none(tmp_path: Path) -> None:
    base = voc(tmp_path)
    remove(base / "JPEGImages/2007_000001.jpg")
    annotation(base / "Annotations/2007_000001.xml", ["unicorn"])
    target = open_target("voc12", tmp_path)
    with pytest.raises(HubError, match=r"2007_000001\.jpg is not there"):
        target.read_image("2007_000001")
    with pytest.raises(HubError, match="'unicorn', which is no class of voc12"):
        target.image_labels("2007_000001")
