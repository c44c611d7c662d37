"""The families' programs, with methods as small as they can be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_methods import ToyCam, ToyCamWithSaliency, ToySeg, ToySod

from stages import cam, pseudo, seg, sod
from stages.runtime.errors import Interruption
from stages.runtime.method import Image
from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import read_manifest, verify_folder
from wsssbed_hub.artifacts.manifest import Entry
from wsssbed_hub.datasets import open_target
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError, UsageError


class Bench:
    """Runs stages on the small data, into one folder."""

    def __init__(self, data_root: Path, out: Path) -> None:
        self.common: dict[str, Any] = {
            "target": "shapes",
            "data_root": data_root,
            "out": out,
            "device": "cpu",
            "workers": 0,
        }
        self.out = out

    def train(self, recipe: str = "shapes", **options: Any) -> dict[str, Any]:
        return self.common | {"recipe": recipe} | options

    def sod(self, method: type = ToySod, data: str = "shapes-small", **options: Any) -> None:
        sod.run("sod-toy", method, sod.Options(data=data, **self.train(**options)))

    def cam(self, method: type = ToyCam, **options: Any) -> None:
        cam.run("cam-toy", method, cam.Options(**self.train(**options)))

    def seg(self, labels: str = "ground-truth", **options: Any) -> None:
        seg.run("seg-toy", ToySeg, seg.Options(labels=labels, **self.train(**options)))

    def pseudo(self, **options: Any) -> None:
        wanted = {"cam": str(self.out / "cam/toy"), "sal": str(self.out / "sal/toy-shapes-small")}
        options = self.common | wanted | {"tau": 0.3} | options
        for name in ("device", "workers"):
            options.pop(name)
        pseudo.run("pseudo", pseudo.Options(**options))

    def entry(self, key: str, version: str = "1.0.0") -> Entry:
        return read_manifest(self.out / key).entry(version, "shapes")


@pytest.fixture
def bench(shapes: Path, tmp_path: Path) -> Bench:
    return Bench(shapes, tmp_path / "out")


def roles(entry: Entry) -> list[str]:
    assert entry.provenance is not None
    return [item.role for item in entry.provenance.made_from]


def test_sod_trains_and_writes_an_artifact_that_verifies(bench: Bench) -> None:
    bench.sod()
    folder = bench.out / "sal/toy-shapes-small"
    verify_folder(folder)
    maps = open_artifact(folder, "shapes")
    target = open_target("shapes", bench.common["data_root"])
    assert list(maps.image_ids) == target.image_ids("train_aug")
    assert all(np.asarray(m).shape == target.size(i) for i, m in maps)
    entry = bench.entry("sal/toy-shapes-small")
    assert roles(entry) == ["weights", "training-list", "target-list"]
    made = entry.provenance
    assert made is not None
    assert (made.stage, made.seed, made.selection) == ("sod-toy", 0, "last iteration")
    assert made.recipe["recipe"]["steps"] == 3
    assert made.recipe["initial"] == "random"
    assert made.environment.torch == torch.__version__
    weights = bench.out / "runs/sod-toy-shapes-small/weights.safetensors"
    assert made.made_from[0].digest == file_digest(weights)
    trained_on = read_manifest(folder).trained_on
    assert [(t.dataset, t.images, t.supervision) for t in trained_on] == [
        ("shapes-small", 4, "pixel masks")
    ]


def test_the_same_command_twice_gives_the_same_content(bench: Bench, tmp_path: Path) -> None:
    bench.sod()
    other = Bench(bench.common["data_root"], tmp_path / "other")
    other.sod()
    key = "sal/toy-shapes-small"
    assert bench.entry(key).content == other.entry(key).content
    another = Bench(bench.common["data_root"], tmp_path / "another")
    another.sod(seed=1)
    assert bench.entry(key).content != another.entry(key).content


def test_a_finished_stage_says_so_and_does_nothing(bench: Bench, capsys: Any) -> None:
    bench.sod()
    before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*") if path.is_file()}
    capsys.readouterr()
    bench.sod()
    assert "sal/toy-shapes-small@1.0.0 over shapes is finished" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in bench.out.rglob("*") if p.is_file()} == before


def test_other_maps_of_the_same_training_take_its_weights(bench: Bench, capsys: Any) -> None:
    bench.sod()
    capsys.readouterr()
    bench.sod(split="val", version="1.1.0")
    assert "trained before" in capsys.readouterr().err
    one, two = (bench.entry("sal/toy-shapes-small", v).provenance for v in ("1.0.0", "1.1.0"))
    assert one is not None
    assert two is not None
    assert one.made_from[0] == two.made_from[0]
    assert bench.entry("sal/toy-shapes-small", "1.1.0").images == 4


def test_other_settings_in_the_same_place_are_refused(bench: Bench) -> None:
    bench.sod()
    with pytest.raises(HubError, match=r"made with other settings.*seed"):
        bench.sod(seed=1)
    with pytest.raises(HubError, match=r"other settings:\n  seed: 0 there, 1 now"):
        bench.sod(seed=1, version="1.1.0")
    with pytest.raises(HubError, match="a version never changes"):
        bench.sod(fresh=True)
    bench.sod(seed=1, version="1.1.0", fresh=True)
    assert bench.entry("sal/toy-shapes-small", "1.1.0").provenance.seed == 1  # type: ignore[union-attr]
    verify_folder(bench.out / "sal/toy-shapes-small")


def test_limit_is_recorded(bench: Bench) -> None:
    bench.sod(limit=3)
    entry = bench.entry("sal/toy-shapes-small")
    assert entry.images == 3
    assert entry.provenance.recipe["limit"] == 3  # type: ignore[union-attr]


def test_needed_initial_weights_are_asked_for_by_name(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"toy\.pth \(https://example\.org/toy\.pth\).*--init"):
        bench.sod(recipe="published")
    with pytest.raises(HubError, match=r"--init nowhere\.pth: there is no such file"):
        bench.sod(recipe="published", init=["nowhere.pth"])
    with pytest.raises(UsageError, match="timm has no initial weights for Toy"):
        bench.sod(recipe="published", init=["timm"])
    assert not (bench.out / "sal").exists()


def test_initial_weights_are_used_and_recorded(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "toy.pth"
    torch.save({"weight": torch.zeros(4, 3, 3, 3), "bias": torch.zeros(4)}, path)
    bench.sod(init=[str(path)])
    entry = bench.entry("sal/toy-shapes-small")
    assert roles(entry)[:2] == ["initial-weights", "weights"]
    made = entry.provenance
    assert made is not None
    assert made.recipe["initial"] == made.made_from[0].digest == file_digest(path)
    # With a dead trunk every pixel of every image gets the same value.
    assert all(
        np.ptp(np.asarray(m)) == 0 for _, m in open_artifact(bench.out / "sal/toy-shapes-small")
    )


def test_given_weights_are_not_trained(bench: Bench, tmp_path: Path) -> None:
    state = {f"theirs.{k}": v for k, v in ToySod(None, tmp_path).build().state_dict().items()}
    path = tmp_path / "authors.pth"
    torch.save({"state_dict": state}, path)
    bench.sod(data="duts", weights=path)
    entry = bench.entry("sal/toy-duts")
    assert roles(entry) == ["weights", "target-list"]
    made = entry.provenance
    assert made is not None
    assert (made.seed, made.selection, made.made_from[0].file) == (None, None, "authors.pth")
    assert "steps" not in made.recipe["recipe"]
    with pytest.raises(UsageError, match="nothing is trained; leave --init out"):
        bench.sod(data="duts", weights=path, init=["random"])
    with pytest.raises(HubError, match="there is no such file"):
        bench.sod(data="duts", weights=tmp_path / "nowhere")


def test_a_missing_image_and_a_missing_dataset_are_errors(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(bench.common["data_root"], root)
    target = open_target("shapes", root)
    target.image_path(target.image_ids("train_aug")[2]).unlink()
    with pytest.raises(HubError, match="1 of the 8 images of shapes train_aug are missing"):
        bench.sod(data_root=root)
    with pytest.raises(HubError, match="duts is not below"):
        bench.sod(data="duts")
    with pytest.raises(UsageError, match="Did you mean 'shapes'"):
        bench.sod(target="shape")


def test_a_list_that_is_shorter_than_published_is_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = open_target("shapes", bench.common["data_root"])
    monkeypatch.setitem(target.spec.__dict__, "counts", {"train_aug": 9})
    with pytest.raises(HubError, match=r"train_aug has 9 images, and here are 8\. .*data check"):
        bench.sod()


def stop_at(count: int, name: str) -> Callable[[type], type]:
    """A method that asks its own process to end when ``name`` is called for the n-th time."""

    def derived(method: type) -> type:
        calls = [0]

        def called(self: Any, *arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == count:
                os.kill(os.getpid(), signal.SIGTERM)
            return getattr(method, name)(self, *arguments)

        return type("Stopped", (method,), {name: called})

    return derived


@pytest.mark.parametrize(("name", "count"), [("loss", 2), ("saliency", 5)])
def test_a_stage_that_was_stopped_goes_on_to_the_same_content(
    bench: Bench, tmp_path: Path, name: str, count: int
) -> None:
    from stages.runtime.errors import signals_raise

    with signals_raise(), pytest.raises(Interruption):
        bench.sod(method=stop_at(count, name)(ToySod))
    assert not (bench.out / "sal/toy-shapes-small/manifest.yaml").exists()
    bench.sod()
    whole = Bench(bench.common["data_root"], tmp_path / "whole")
    whole.sod()
    key = "sal/toy-shapes-small"
    assert bench.entry(key).content == whole.entry(key).content
    assert not (bench.out / key / ".partial").exists()


def test_cam_writes_the_present_classes(bench: Bench) -> None:
    bench.cam()
    verify_folder(bench.out / "cam/toy")
    target = open_target("shapes", bench.common["data_root"])
    for image_id, (maps, class_ids) in open_artifact(bench.out / "cam/toy"):  # type: ignore[misc]
        assert tuple(class_ids) == target.image_labels(image_id)
        assert maps.shape == (len(class_ids), *target.size(image_id))


def test_cam_methods_with_saliency_name_it_in_the_key(bench: Bench) -> None:
    bench.sod()
    with pytest.raises(UsageError, match="trained without saliency maps; leave --sal out"):
        bench.cam(sal=str(bench.out / "sal/toy-shapes-small"))
    with pytest.raises(UsageError, match=r"trained with saliency maps\. Name them with --sal"):
        bench.cam(method=ToyCamWithSaliency)
    bench.cam(method=ToyCamWithSaliency, sal=str(bench.out / "sal/toy-shapes-small"))
    entry = bench.entry("cam/toy-toy-shapes-small")
    assert entry.provenance is not None
    assert entry.provenance.made_from[-1].key == "sal/toy-shapes-small@1.0.0"


def test_pseudo_labels_come_from_both_maps(bench: Bench, capsys: Any) -> None:
    bench.sod()
    bench.cam()
    bench.pseudo()
    key = "label/toy-toy-shapes-small"
    verify_folder(bench.out / key)
    entry = bench.entry(key)
    assert roles(entry) == ["cam", "sal", "target-list"]
    assert entry.provenance.recipe["tau"] == 0.3  # type: ignore[union-attr]
    bench.pseudo(tau=None, tau_from="curve:train_aug", version="1.1.0")
    recipe = bench.entry(key, "1.1.0").provenance.recipe  # type: ignore[union-attr]
    assert (recipe["tau_origin"], recipe["tau_split"]) == ("curve", "train_aug")
    with pytest.raises(HubError, match=r"other settings.*tau: 0.3 there, 0.4 now"):
        bench.pseudo(tau=0.4)
    with pytest.raises(UsageError, match="published"):
        bench.pseudo(tau=None)  # nothing was published for "toy"
    capsys.readouterr()
    bench.pseudo()
    assert "is finished" in capsys.readouterr().err


def test_labels_that_lack_an_image_are_an_error(bench: Bench) -> None:
    bench.sod(limit=5)
    bench.cam(limit=5)
    with pytest.raises(HubError, match="3 of 8 images have no activation maps"):
        bench.pseudo()
    bench.pseudo(limit=5)
    with pytest.raises(HubError, match="3 of 8 images have no labels"):
        bench.seg(labels=str(bench.out / "label/toy-toy-shapes-small"))


def test_seg_measures_every_seed_and_keeps_all_weights(bench: Bench) -> None:
    bench.seg(seeds="0,2")
    result = json.loads((bench.out / "runs/seg-toy-shapes-ground-truth/result.json").read_text())
    values = [result["seeds"][seed]["miou"] for seed in ("0", "2")]
    assert result["miou"]["mean"] == pytest.approx(sum(values) / 2)
    error = statistics.stdev(values) / 2**0.5
    assert result["miou"]["standard_error"] == pytest.approx(error)
    for seed, value in zip((0, 2), values, strict=True):
        key = f"weights/seg-toy-ground-truth-seed{seed}"
        verify_folder(bench.out / key)
        entry = bench.entry(key)
        mean, own, background, *_ = entry.results
        assert (mean.metric, mean.seeds, mean.split) == ("mIoU", [0, 2], "val")
        assert (mean.value, mean.images) == (pytest.approx(sum(values) / 2), 4)
        assert (own.value, own.seeds) == (pytest.approx(value), [seed])
        assert background.metric == "IoU background"
        assert entry.provenance.seed == seed  # type: ignore[union-attr]
        assert roles(entry) == ["weights", "training-list", "label", "val-list"]


def test_the_measured_iou_is_that_of_the_weights(bench: Bench, tmp_path: Path) -> None:
    bench.seg()
    folder = bench.out / "weights/seg-toy-ground-truth"
    method = ToySeg(None, tmp_path, 6)
    network = method.build()
    from safetensors.torch import load_file

    network.load_state_dict(load_file(folder / "shapes/1.0.0/model.safetensors"))
    target = open_target("shapes", bench.common["data_root"])
    truth = target.ground_truth("val")
    score = SegmentationMetrics(6)
    for image_id in target.image_ids("val"):
        logits = method.logits(network, Image(image_id, target.read_image(image_id)))
        score.add(logits.argmax(0).numpy().astype(np.uint8), truth.read(image_id), image_id)
    assert bench.entry("weights/seg-toy-ground-truth").results[0].value == score.mean_iou()


def test_seg_trains_on_pseudo_labels_and_on_given_weights(bench: Bench, tmp_path: Path) -> None:
    bench.sod()
    bench.cam()
    bench.pseudo(name="mine")
    bench.seg(labels=str(bench.out / "label/mine"))
    entry = bench.entry("weights/seg-toy-mine")
    assert entry.provenance is not None
    assert entry.provenance.made_from[2].key == "label/mine@1.0.0"
    path = bench.out / "weights/seg-toy-mine/shapes/1.0.0/model.safetensors"
    other = Bench(bench.common["data_root"], tmp_path / "other")
    other.seg(labels=str(bench.out / "label/mine"), weights=path)
    again = other.entry("weights/seg-toy-mine")
    assert again.content == entry.content
    assert again.results[0].value == entry.results[0].value
    assert again.results[0].seeds == []
    with pytest.raises(UsageError, match="leave --seeds out"):
        other.seg(weights=path, seeds="0,1")


@pytest.mark.parametrize("seeds", ["", "0,0", "0,x", "-1"])
def test_seeds_are_distinct_numbers(bench: Bench, seeds: str) -> None:
    with pytest.raises(UsageError, match="distinct numbers"):
        bench.seg(seeds=seeds)
