"""The stage ``ssnet``: its artifacts, its settings, its mistakes."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ssnet_bench import MADE, SMALL, Bench

from stages.__main__ import main
from stages.ops.densecrf import SSNET
from stages.runtime.method import Image
from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import read_manifest, verify_folder
from wsssbed_hub.artifacts.manifest import Entry, Result
from wsssbed_hub.datasets import SOD_DATASETS, open_sod_dataset, open_target
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.evaluation.score import score_saliency
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError, UsageError


def roles(entry: Entry) -> list[str]:
    assert entry.provenance is not None
    return [item.role for item in entry.provenance.made_from]


def stated(entry: Entry) -> set[tuple[str, str, bool]]:
    found = {(r.metric, r.split, r.crf) for r in entry.results}
    return {one for one in found if not one[0].startswith("IoU ")}


def result(entry: Entry, metric: str, *, crf: bool = False) -> Result:
    return next(r for r in entry.results if r.metric == metric and r.crf == crf)


def test_the_main_setting_makes_three_artifacts_that_verify(mm: Bench) -> None:
    assert mm.made() == set(MADE)
    for key in MADE:
        verify_folder(mm.out / key)
    target = open_target("shapes", mm.data_root)
    for key in MADE[:2]:
        maps = open_artifact(mm.out / key, "shapes")
        assert list(maps.image_ids) == target.image_ids("train_aug")
        assert all(np.asarray(m).shape == target.size(i) for i, m in maps)


def test_provenance_names_all_that_the_maps_come_from(mm: Bench) -> None:
    label, sal, weights = map(mm.entry, MADE)
    assert roles(label) == ["weights", "training-list", "sod-list"]
    assert roles(sal) == ["weights", "training-list", "sod-list", "label", "target-list"]
    lists = ["training-list", "sod-list", "label", "val-list", "benchmark-list"]
    assert roles(weights) == ["weights", *lists]
    for entry, setting in ((label, "M"), (sal, "MM"), (weights, "MM")):
        made = entry.provenance
        assert made is not None
        assert (made.stage, made.seed, made.selection) == ("ssnet", 0, "last iteration")
        assert made.recipe["setting"] == setting
        assert made.recipe["recipe"]["steps"] == SMALL["steps"]
        digest = file_digest(mm.training(setting) / "weights.safetensors")
        assert made.made_from[0].digest == digest
    for entry in (sal, weights):
        used = entry.provenance.made_from[3]  # type: ignore[union-attr]
        assert (used.key, used.digest) == ("label/ssnet-shapes@1.0.0", label.content)
    for key in MADE:
        trained_on = read_manifest(mm.out / key).trained_on
        assert [(t.dataset, t.images, t.supervision) for t in trained_on] == [
            ("shapes", 8, "image labels"),
            ("shapes", 6, "pixel masks"),
        ]


def test_the_maps_are_those_of_the_two_networks(mm: Bench) -> None:
    target = open_target("shapes", mm.data_root)
    label, sal = (open_artifact(mm.out / key, "shapes") for key in MADE[:2])
    one, two = mm.network("M"), mm.network("MM")
    for image_id in target.image_ids("train_aug"):
        classes = target.image_labels(image_id)
        image = Image(image_id, target.read_image(image_id), np.array(classes))
        found = np.asarray(label.read(image_id))
        assert {*np.unique(found)} <= {0, *(c + 1 for c in classes)}
        np.testing.assert_array_equal(found, one[0].pseudo_label(one[1], image))
        np.testing.assert_array_equal(sal.read(image_id), two[0].saliency(two[1], image, None))


def test_the_measures_are_those_of_the_network(mm: Bench) -> None:
    entry = mm.entry("weights/ssnet-shapes")
    saliency = {("MAE", "shapes-te"), ("max F", "shapes-te")}
    wanted = {("mIoU", "val", False)} | {(*s, crf) for s in saliency for crf in (True, False)}
    assert stated(entry) == wanted
    method, network = mm.network("MM")
    target = open_target("shapes", mm.data_root)
    truth = target.ground_truth("val")
    score = SegmentationMetrics(6)
    for image_id in target.image_ids("val"):
        image = Image(image_id, target.read_image(image_id))
        predicted = method.segmentation(network, image)
        score.add(predicted, np.asarray(truth.read(image_id)), image_id)
    miou = result(entry, "mIoU")
    assert (miou.value, miou.images, miou.seeds) == (score.mean_iou(), 4, [0])
    assert miou.initial_weights == "random"
    benchmark = open_sod_dataset("shapes-te", mm.data_root)

    class Maps:
        image_ids = benchmark.image_ids

        def __init__(self, crf: Any) -> None:
            self.crf = crf

        def read(self, image_id: str) -> np.ndarray:
            image = Image(image_id, benchmark.read_image(image_id))
            return method.saliency(network, image, self.crf)

    class Masks:
        image_ids, read = benchmark.image_ids, staticmethod(benchmark.read_mask)

    for crf in (None, SSNET):
        expected = score_saliency(Maps(crf), Masks(), protocol="ssnet")  # type: ignore[arg-type]
        for metric, name in (("MAE", "mae"), ("max F", "max_f")):
            found = result(entry, metric, crf=crf is not None)
            assert found.value == pytest.approx(expected[name], rel=1e-12)  # sums, in one order
            assert found.images == 2


def test_the_same_command_twice_gives_the_same_content(mm: Bench, bench: Bench) -> None:
    bench.run()
    assert bench.contents() == mm.contents()
    other = Bench(bench.data_root, bench.out / "other")
    other.run(seed=1)
    assert all(other.contents()[key] != content for key, content in mm.contents().items())


def test_a_finished_command_says_so_and_does_nothing(
    copied: Bench, capsys: pytest.CaptureFixture
) -> None:
    files = {p: p.stat().st_mtime_ns for p in copied.out.rglob("*") if p.is_file()}
    copied.run()
    said = capsys.readouterr().err
    assert all(f"{key}@1.0.0 over shapes is finished" in said for key in MADE)
    assert {p: p.stat().st_mtime_ns for p in copied.out.rglob("*") if p.is_file()} == files


def test_other_settings_share_the_trainings_and_have_keys_of_their_own(
    copied: Bench, capsys: pytest.CaptureFixture
) -> None:
    before = file_digest(copied.training("M") / "weights.safetensors")

    def made_by(setting: str) -> tuple[set[str], list[str]]:
        known = copied.made()
        capsys.readouterr()
        copied.run(setting)
        said = capsys.readouterr().err
        trained = [Path(x.split()[-1]).name for x in said.splitlines() if "training in" in x]
        return copied.made() - known, trained

    assert made_by("M") == ({"sal/ssnet-m-shapes", "weights/ssnet-m-shapes"}, [])
    assert made_by("MS") == ({"weights/ssnet-ms-shapes"}, ["MS"])
    assert made_by("SS") == ({"label/ssnet-s", "weights/ssnet-ss"}, ["S", "SS"])
    assert made_by("S") == ({"weights/ssnet-s"}, [])
    assert made_by("2S") == ({"sal/ssnet-2s-shapes", "weights/ssnet-2s-shapes"}, ["2S"])
    assert file_digest(copied.training("M") / "weights.safetensors") == before
    for key in copied.made():
        verify_folder(copied.out / key)
    both = {("MAE", "shapes-te", False), ("MAE", "shapes-te", True)}
    both |= {("max F", "shapes-te", False), ("max F", "shapes-te", True)}
    miou = {("mIoU", "val", False)}
    assert stated(copied.entry("weights/ssnet-m-shapes")) == miou | both
    assert stated(copied.entry("weights/ssnet-2s-shapes")) == both
    assert all(stated(copied.entry(f"weights/ssnet-{s}")) == miou for s in ("s", "ss", "ms-shapes"))
    supervision = {
        key: [t.supervision for t in read_manifest(copied.out / key).trained_on]
        for key in ("weights/ssnet-ss", "weights/ssnet-ms-shapes", "weights/ssnet-2s-shapes")
    }
    assert list(supervision.values()) == [
        ["image labels"],
        ["image labels", "pixel masks"],
        ["pixel masks"],
    ]
    assert roles(copied.entry("weights/ssnet-2s-shapes"))[1] == "sod-list"


def test_seeds_make_artifacts_each_and_the_mean(
    copied: Bench, capsys: pytest.CaptureFixture
) -> None:
    copied.run(seeds="0,3")
    assert "(2 seeds) on shapes val" in capsys.readouterr().err
    assert copied.made() == {*MADE, *(f"{key}-seed{seed}" for key in MADE for seed in (0, 3))}
    assert copied.entry("sal/ssnet-shapes-seed0").content == copied.entry(MADE[1]).content
    kept = {p.parent.name for p in copied.training("M", 0).glob("label/*/manifest.yaml")}
    assert kept == {"ssnet-shapes"}  # those of the command before, which had one seed
    for metric, crf in (("mIoU", False), ("MAE", True)):
        values = []
        for seed in (0, 3):
            entry = copied.entry(f"weights/ssnet-shapes-seed{seed}")
            mean, own = (r for r in entry.results if (r.metric, r.crf) == (metric, crf))
            assert (mean.seeds, own.seeds) == ([0, 3], [seed])
            values.append(own.value)
        assert mean.value == pytest.approx(statistics.fmean(values))
        assert mean.standard_error == pytest.approx(statistics.stdev(values) / 2**0.5)


@pytest.mark.parametrize("asked", ["ssnet", None])
def test_a_crf_refines_the_saliency_maps_unless_it_is_left_out(
    copied: Bench, asked: str | None
) -> None:
    with pytest.raises(HubError, match=r"made with other settings.*saliency_crf: null there"):
        copied.run(saliency_crf=asked)
    copied.run(saliency_crf=asked, version="1.1.0")
    refined = copied.entry(MADE[1], "1.1.0")
    assert refined.content != copied.entry(MADE[1]).content
    assert copied.entry(MADE[0], "1.1.0").content == copied.entry(MADE[0]).content
    assert refined.provenance is not None
    assert refined.provenance.recipe["saliency_crf"] == asdict(SSNET)
    target = open_target("shapes", copied.data_root)
    method, network = copied.network("MM")
    maps = open_artifact(copied.out / MADE[1], "shapes")  # the highest version
    for image_id in target.image_ids("train_aug")[:3]:
        expected = method.saliency(network, Image(image_id, target.read_image(image_id)), SSNET)
        np.testing.assert_array_equal(maps.read(image_id), expected)


def test_given_weights_make_maps_and_measures_alone(mm: Bench, bench: Bench) -> None:
    weights = mm.out / "weights/ssnet-shapes/shapes/1.0.0/model.safetensors"
    bench.run(weights=weights, data="duts")
    assert bench.made() == {"sal/ssnet-duts", "weights/ssnet-duts"}
    sal, again = bench.entry("sal/ssnet-duts"), bench.entry("weights/ssnet-duts")
    assert sal.content == mm.entry(MADE[1]).content
    assert again.content == mm.entry(MADE[2]).content
    assert roles(sal) == ["weights", "target-list"]
    assert roles(again) == ["weights", "val-list", "benchmark-list"]
    assert sal.provenance is not None
    assert (sal.provenance.seed, sal.provenance.selection) == (None, None)
    values = [r.value for r in again.results]
    assert values == [r.value for r in mm.entry(MADE[2]).results]
    assert not any(r.seeds for r in again.results)
    with pytest.raises(HubError, match=r"unknown: head\.branches"):
        bench.run("M", weights=weights, data="duts")


def test_given_weights_of_the_first_network_make_labels(mm: Bench, bench: Bench) -> None:
    weights = mm.training("M") / "weights.safetensors"
    bench.run("M", weights=weights, data="duts")
    assert bench.made() == {"label/ssnet-duts", "sal/ssnet-m-duts", "weights/ssnet-m-duts"}
    assert bench.entry("label/ssnet-duts").content == mm.entry(MADE[0]).content


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"setting": "Ms"}, UsageError, "no such setting. Did you mean 'MS'"),
        ({"setting": "mm"}, UsageError, "Did you mean 'MM'"),
        ({"setting": "MS", "data": None}, UsageError, "Name the SOD dataset with --data"),
        ({"setting": "all", "data": None}, UsageError, "Name the SOD dataset with --data"),
        ({"setting": "SS", "data": "duts"}, UsageError, "leave --data out"),
        ({"setting": "MS", "saliency_crf": "none"}, UsageError, "leave --saliency-crf out"),
        ({"setting": "all", "saliency_crf": "none"}, UsageError, "leave --saliency-crf out"),
        ({"data": "shape"}, UsageError, "Did you mean 'shapes'"),
        ({"data": "duts"}, HubError, "duts is not below .* Where to get it"),
        ({"seeds": "1,1"}, UsageError, "distinct numbers"),
        ({"weights": Path("x"), "setting": "all"}, UsageError, "the tables compare trainings"),
        ({"weights": Path("x"), "seeds": "0,1"}, UsageError, "leave --seeds out"),
        ({"weights": Path("nowhere")}, HubError, "no such file"),
        ({"batch_size": 3}, UsageError, "even --batch-size"),
        ({"epochs": 3}, UsageError, "this recipe has no epochs"),
    ],
)
def test_mistakes_are_told(
    bench: Bench, options: dict[str, Any], error: type[HubError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        bench.run(**options)
    assert type(caught.value) is error or error is HubError
    assert bench.made() == set()


def test_numbers_that_are_not_the_published_ones_are_errors(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOD_DATASETS["shapes"].__dict__, "count", 9)
    with pytest.raises(HubError, match=r"shapes has 9 images, and here are 6\."):
        bench.run()
    monkeypatch.setitem(SOD_DATASETS["shapes"].__dict__, "count", 6)
    monkeypatch.setitem(SOD_DATASETS["shapes-te"].__dict__, "count", 3)
    with pytest.raises(HubError, match=r"shapes-te has 3 images, and here are 2\."):
        bench.run()


def test_other_settings_in_the_same_place_are_refused(copied: Bench) -> None:
    with pytest.raises(HubError, match=r"made with other settings.*seed: 0 there, 1 now"):
        copied.run(seed=1)
    with pytest.raises(HubError, match=r"other settings:\n  recipe.steps: 2 there, 3 now"):
        copied.run(steps=3, version="1.1.0")
    with pytest.raises(HubError, match="a version never changes"):
        copied.run(fresh=True)


def test_fresh_trains_everything_once_more(copied: Bench, capsys: pytest.CaptureFixture) -> None:
    copied.run(steps=3, version="1.1.0", fresh=True)
    said = capsys.readouterr().err
    assert said.count("training in") == 2
    assert all(copied.entry(k, "1.1.0").content != copied.entry(k).content for k in MADE)


def test_benchmarks_that_are_not_there_are_named(
    mm: Bench, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    shutil.rmtree(root / "shapes/DUTS-TE")
    bench = Bench(root, tmp_path / "out")
    weights = mm.training("MM") / "weights.safetensors"
    bench.run(weights=weights)
    assert "shapes-te is not measured: it is not below" in capsys.readouterr().err
    assert stated(bench.entry(MADE[2])) == {("mIoU", "val", False)}
    seen = Bench(shapes, tmp_path / "seen")
    seen.run(weights=weights, data="shapes-te")
    assert "shapes-te is not measured: the training sees it" in capsys.readouterr().err
    assert stated(seen.entry("weights/ssnet-shapes-te")) == {("mIoU", "val", False)}


def test_limit_holds_for_all_lists_of_the_target(bench: Bench) -> None:
    bench.run(limit=5)
    label, sal, weights = map(bench.entry, MADE)
    assert (label.images, sal.images) == (5, 5)
    assert result(weights, "mIoU").images == 4
    assert weights.provenance is not None
    assert weights.provenance.recipe["limit"] == 5
    assert weights.provenance.made_from[1].file == "shapes train_aug, 5 images"


def test_help_tells_settings_and_recipes(capsys: pytest.CaptureFixture) -> None:
    assert main(["ssnet", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "S, M, SS, MS, MM or 2S" in said
    assert "--saliency-crf" in said
    assert "Recipe published:" in said
    assert "backbone=densenet169" in said
