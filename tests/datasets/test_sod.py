"""SOD datasets in the folders in which they are distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts import grey_png, image, mask, pairs, remove
from PIL import Image

from wsssbed_hub.datasets import SOD_DATASETS, open_sod_dataset
from wsssbed_hub.utils.errors import HubError, UsageError

AS_DISTRIBUTED = {
    "duts": ("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask", ".jpg"),
    "duts-te": ("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask", ".jpg"),
    "msra": ("MSRA-B", "MSRA-B", ".jpg"),
    "hku-is": ("HKU-IS/imgs", "HKU-IS/gt", ".png"),
    "ecssd": ("ECSSD/images", "ECSSD/ground_truth_mask", ".jpg"),
    "pascal-s": ("datasets/imgs/pascal", "datasets/masks/pascal", ".jpg"),
    "sod": ("SOD/Imgs", "SOD/Imgs", ".jpg"),
    "shapes-te": ("shapes/DUTS-TE/DUTS-TE-Image", "shapes/DUTS-TE/DUTS-TE-Mask", ".jpg"),
}
COPIES = [
    ("duts", "DUTS/DUTS-TR/DUTS-TR-Image", "DUTS/DUTS-TR/DUTS-TR-Mask"),
    ("duts-te", "DUTS-TE/Imgs", "DUTS-TE/Imgs"),
    ("msra", "MSRA-B/imgs", "MSRA-B/gt"),
    ("msra", "MSRA-B/image", "MSRA-B/annotation"),
    ("pascal-s", "PASCAL-S/datasets/imgs/pascal", "PASCAL-S/datasets/masks/pascal"),
    ("pascal-s", "PASCALS/Imgs", "PASCALS/Imgs"),
    ("hku-is", "HKU-IS/Imgs", "HKU-IS/Imgs"),
]


@pytest.mark.parametrize("name", AS_DISTRIBUTED)
def test_layout_as_distributed(tmp_path: Path, name: str) -> None:
    images, masks, suffix = AS_DISTRIBUTED[name]
    pairs(tmp_path / images, tmp_path / masks, ["b_2", "a1"], suffix=suffix)
    (tmp_path / images / "Thumbs.db").write_bytes(b"x")
    (tmp_path / masks / "._a1.png").write_bytes(b"left by another system")
    dataset = open_sod_dataset(name, tmp_path)
    assert dataset.image_ids == ["a1", "b_2"]
    assert len(dataset) == 2
    assert dataset.image_path("a1") == tmp_path / images / f"a1{suffix}"
    grey_png(tmp_path / masks / "a1.png", mask([7, 255]))
    assert np.array_equal(dataset.read_mask("a1"), mask([7, 255]))
    assert dataset.read_image("a1").shape == (6, 9, 3)
    assert np.array_equal(dataset.read_mask("b_2"), mask([255]))


@pytest.mark.parametrize(("name", "images", "masks"), COPIES)
def test_copies_in_other_folders(tmp_path: Path, name: str, images: str, masks: str) -> None:
    pairs(tmp_path / images, tmp_path / masks, ["a"])
    assert open_sod_dataset(name, tmp_path).image_ids == ["a"]


def test_published_counts() -> None:
    counts = {name: spec.count for name, spec in SOD_DATASETS.items() if spec.count}
    assert counts == {
        "duts": 10553, "duts-te": 5019, "msra": 5000, "hku-is": 4447, "msra-hku": 9447,
        "ecssd": 1000, "pascal-s": 850, "sod": 300,
    }  # fmt: skip


def test_joined_datasets_keep_their_ids_apart(tmp_path: Path) -> None:
    pairs(tmp_path / "MSRA-B", tmp_path / "MSRA-B", ["1", "2"])
    pairs(tmp_path / "HKU-IS/imgs", tmp_path / "HKU-IS/gt", ["1"], suffix=".png")
    dataset = open_sod_dataset("msra-hku", tmp_path)
    assert dataset.image_ids == ["hku-is-1", "msra-1", "msra-2"]
    assert dataset.image_path("hku-is-1") == tmp_path / "HKU-IS/imgs/1.png"
    grey_png(tmp_path / "MSRA-B/1.png", mask([9]))
    assert np.array_equal(dataset.read_mask("msra-1"), mask([9]))


def test_a_joined_dataset_lacks_a_part(tmp_path: Path) -> None:
    pairs(tmp_path / "MSRA-B", tmp_path / "MSRA-B", ["1"])
    with pytest.raises(HubError, match=r"hku-is is not below.*HKU-IS/imgs.*deep_saliency"):
        open_sod_dataset("msra-hku", tmp_path)


@pytest.mark.parametrize("images", ["DUTS-TR/DUTS-TR-Image", "DUTS-TR/Imgs"])
def test_images_without_mask_and_masks_without_image(tmp_path: Path, images: str) -> None:
    masks = images.replace("Image", "Mask")
    pairs(tmp_path / images, tmp_path / masks, ["a", "b", "c", "d", "e", "f"])
    for stem in "bcdef":
        remove(tmp_path / masks / f"{stem}.png")
    with pytest.raises(HubError, match=r"duts: no mask for .*b\.jpg.* and 2 more \(5 in all\)"):
        open_sod_dataset("duts", tmp_path)
    for stem in "bcdef":
        remove(tmp_path / images / f"{stem}.jpg")
    grey_png(tmp_path / masks / "z.png", mask())
    with pytest.raises(HubError, match=r"duts: no image for .*z\.png \(1 in all\)"):
        open_sod_dataset("duts", tmp_path)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    pairs(tmp_path / "HKU-IS/imgs", tmp_path / "HKU-IS/gt", ["a"])
    image(tmp_path / "HKU-IS/imgs/a.png")
    with pytest.raises(HubError, match="two pictures of one name"):
        open_sod_dataset("hku-is", tmp_path)


def test_a_pair_of_unequal_sizes_is_named(tmp_path: Path) -> None:
    images, masks, _ = AS_DISTRIBUTED["ecssd"]
    pairs(tmp_path / images, tmp_path / masks, ["0001"])
    grey_png(tmp_path / masks / "0001.png", mask(width=8))
    with pytest.raises(HubError, match=r"0001\.png is 6 x 8 .*0001\.jpg is 6 x 9"):
        open_sod_dataset("ecssd", tmp_path).read_mask("0001")


def test_masks_in_other_modes_become_grey(tmp_path: Path) -> None:
    images, masks, _ = AS_DISTRIBUTED["ecssd"]
    grey = np.array([[0, 40], [200, 255]], np.uint8)
    for stem, mode in (("a", "L"), ("b", "RGB"), ("c", "RGBA"), ("d", "P"), ("e", "LA")):
        image(tmp_path / images / f"{stem}.jpg", 2, 2)
        (tmp_path / masks).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).convert(mode).save(tmp_path / masks / f"{stem}.png")
    image(tmp_path / images / "f.jpg", 2, 2)
    Image.fromarray(grey > 100).save(tmp_path / masks / "f.png")
    dataset = open_sod_dataset("ecssd", tmp_path)
    for stem in "abcde":
        assert np.array_equal(dataset.read_mask(stem), grey), stem
    assert np.array_equal(dataset.read_mask("f"), [[0, 0], [255, 255]])


def test_names_that_are_no_ids(tmp_path: Path) -> None:
    images, masks, _ = AS_DISTRIBUTED["ecssd"]
    pairs(tmp_path / images, tmp_path / masks, ["a b"])
    with pytest.raises(HubError, match="'a b' is not an image id"):
        open_sod_dataset("ecssd", tmp_path)


def test_unknown_datasets_and_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'ecssd'"):
        open_sod_dataset("ecsd", tmp_path)
    images, masks, _ = AS_DISTRIBUTED["ecssd"]
    pairs(tmp_path / images, tmp_path / masks, ["a"])
    dataset = open_sod_dataset("ecssd", tmp_path)
    with pytest.raises(HubError, match=r"ecssd has no image '\.\./a'"):
        dataset.read_image("../a")


def test_an_empty_folder_is_no_dataset(tmp_path: Path) -> None:
    for folder in AS_DISTRIBUTED["duts"][:2]:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(HubError, match=r"duts is not below.*saliencydetection\.net/duts"):
        open_sod_dataset("duts", tmp_path)
