"""Findings of `data check`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import annotation, finding, grey_png, mask, pairs, palette_png, remove, sbd, voc

from wsssbed_hub.datasets import SOD_DATASETS, TARGETS, check
from wsssbed_hub.utils.errors import UsageError


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    report = check("voc12", tmp_path)
    assert not report.ok
    (found,) = report.findings
    assert str(tmp_path / "VOC2012/JPEGImages") in found.detail
    where = [source.where for source in report.sources]
    assert any("host.robots.ox.ac.uk" in url for url in where)
    assert any("SBD" in url for url in where)


def test_a_whole_copy_with_other_than_the_published_numbers(tmp_path: Path) -> None:
    base = voc(tmp_path)
    folder = sbd(tmp_path)
    report = check("voc12", tmp_path)
    assert not report.ok
    for split, found, published in (("train_aug", 3, 10582), ("train", 2, 1464), ("val", 1, 1449)):
        listed = finding(report, f"{split}: list")
        assert (listed.ok, listed.found, listed.expected) == (False, found, published)
        for what in ("images", "annotations", "masks"):
            there = finding(report, f"{split}: {what}")
            assert (there.ok, there.found, there.expected) == (True, found, found)
    assert finding(report, "train_aug: list").path == str(folder)
    masks = finding(report, "train_aug: masks").detail
    assert f"2 from {base / 'SegmentationClass'}" in masks
    assert f"1 from {folder / 'cls'}" in masks


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    ids = [f"2007_{number:06d}" for number in range(1, 8)]
    base = voc(tmp_path, train=ids, val=["v"], further=[])
    sbd(tmp_path, train=[ids[0]], val=["v"])
    for image_id in ids[:5]:
        remove(base / f"JPEGImages/{image_id}.jpg")
    remove(base / "Annotations")
    report = check("voc12", tmp_path)
    images = finding(report, "train: images")
    assert (images.ok, images.found, images.expected) == (False, 2, 7)
    assert images.detail == "missing: 2007_000001, 2007_000002, 2007_000003 and 2 more"
    assert finding(report, "val: images").ok
    gone = finding(report, "val: annotations")
    assert (gone.found, gone.path) == (0, str(base / "Annotations"))


def test_lists_that_are_missing_do_not_hide_the_rest(tmp_path: Path) -> None:
    base = voc(tmp_path)
    remove(base / "ImageSets/Segmentation/train.txt")
    report = check("voc12", tmp_path)
    assert "train.txt is not there" in finding(report, "train: list").detail
    assert "trainaug.txt" in finding(report, "train_aug: list").detail
    assert finding(report, "val: masks").ok


def test_png_masks_are_preferred_and_said(tmp_path: Path) -> None:
    base = voc(tmp_path)
    sbd(tmp_path)
    for image_id in ("2007_000001", "2007_000003", "2008_000004"):
        grey_png(base / f"SegmentationClassAug/{image_id}.png", mask([1]))
    masks = finding(check("voc12", tmp_path), "train_aug: masks")
    assert (masks.path, masks.detail) == (str(base / "SegmentationClassAug"), "")


def test_deep_opens_every_file(tmp_path: Path) -> None:
    base = voc(tmp_path)
    sbd(tmp_path)
    (base / "JPEGImages/2007_000001.jpg").write_bytes(b"not a picture")
    palette_png(base / "SegmentationClass/2007_000002.png", mask(width=4))
    annotation(base / "Annotations/2008_000004.xml", [])
    annotation(base / "Annotations/2007_000003.xml", ["tvmonitor"])
    calls: list[tuple[int, int]] = []
    report = check("voc12", tmp_path, deep=True, progress=lambda *done: calls.append(done))
    assert "2007_000001.jpg" in finding(report, "every image opened").detail
    assert "is 6 x 4 pixels" in finding(report, "every mask opened").detail
    assert "2008_000004.xml names no object" in finding(report, "every annotation opened").detail
    odd = finding(report, "masks with a class that the annotation lacks")
    assert (odd.ok, odd.found) == (True, 1)
    assert odd.detail.startswith("2007_000003")
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_deep_on_a_sound_copy_finds_nothing(tmp_path: Path) -> None:
    voc(tmp_path)
    sbd(tmp_path)
    report = check("voc12", tmp_path, deep=True)
    wrong = {found.what for found in report.findings if not found.ok}
    assert wrong == {"train_aug: list", "train: list", "val: list"}  # too short, all of them


def test_sod_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOD_DATASETS, "ecssd", replace(SOD_DATASETS["ecssd"], count=10))
    images, masks = tmp_path / "ECSSD/images", tmp_path / "ECSSD/ground_truth_mask"
    pairs(images, masks, [f"{number:04d}" for number in range(1, 11)])
    assert check("ecssd", tmp_path, deep=True).ok
    remove(masks / "0007.png")
    grey_png(masks / "0008.png", mask(height=2))
    report = check("ecssd", tmp_path, deep=True)
    assert not report.ok
    lost = finding(report, "ecssd: masks")
    assert (lost.found, lost.expected, lost.detail) == (9, 10, "missing: 0007")
    assert finding(report, "ecssd: images").ok
    opened = finding(report, "ecssd: every mask opened")
    assert not opened.ok
    assert "0008.png is 2 x 9" in opened.detail


def test_a_joined_dataset_is_checked_part_by_part(tmp_path: Path) -> None:
    pairs(tmp_path / "MSRA-B", tmp_path / "MSRA-B", ["1"])
    report = check("msra-hku", tmp_path)
    msra = finding(report, "msra: images")
    assert (msra.ok, msra.found, msra.expected) == (False, 1, 5000)
    assert str(tmp_path / "HKU-IS/imgs") in finding(report, "hku-is: images").detail


def test_report_as_json(tmp_path: Path) -> None:
    data = json.loads(json.dumps(check("sod", tmp_path).as_dict()))
    assert data["name"] == "sod"
    assert data["ok"] is False
    assert data["findings"][0]["expected"] == 300
    assert data["sources"][0]["where"].startswith("https://")


def test_every_dataset_says_where_it_is_to_be_had(tmp_path: Path) -> None:
    for name in {*TARGETS, *SOD_DATASETS}:
        report = check(name, tmp_path)
        assert not report.ok
        assert report.sources, name
        assert report.licence, name


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'pascal-s'"):
        check("pascal", tmp_path)


def test_is_there(tmp_path: Path) -> None:
    specs = [TARGETS["voc12"], SOD_DATASETS["msra"], SOD_DATASETS["msra-hku"]]
    assert [spec.is_there(tmp_path) for spec in specs] == [False, False, False]
    voc(tmp_path)
    pairs(tmp_path / "MSRA-B", tmp_path / "MSRA-B", ["1"])
    assert [spec.is_there(tmp_path) for spec in specs] == [True, True, False]


def test_published_numbers_in_words() -> None:
    assert TARGETS["voc12"].published == "10,582 train_aug, 1,464 train, 1,449 val"
    assert SOD_DATASETS["duts"].published == "10,553"
    assert TARGETS["shapes"].published == SOD_DATASETS["shapes"].published == ""
