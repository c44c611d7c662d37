"""The whole stage ``ssnet``: its own network, smaller and shorter trained than any that learns."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import deaths, exit_code, in_child

from stages import ssnet
from stages.__main__ import main
from stages.runtime.checkpoint import load_weights
from stages.runtime.densecrf import SSNET
from stages.runtime.interruption import Interruption, raising
from stages.ssnet import Method
from stages.ssnet._ssnet import RECIPES, SETTINGS
from wsssbed_hub.digests import file_digest
from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.evaluation import score_saliency
from wsssbed_hub.keyfolder import MANIFEST, read_manifest, verify_folder
from wsssbed_hub.manifest import Entry, Result
from wsssbed_hub.maps import open_artifact
from wsssbed_hub.metrics import SegmentationScore
from wsssbed_hub.targets import SOD_DATASETS, open_sod_dataset, open_target

SMALL = {"size": 32, "steps": 2, "batch_size": 4}
MADE = ("label/ssnet-shapes", "sal/ssnet-shapes", "weights/ssnet-shapes")


class Bench:
    """Runs the stage on the small data, into one folder."""

    def __init__(self, data_root: Path, out: Path) -> None:
        self.data_root, self.out = data_root, out

    def options(self, setting: str = "MM", **changes: Any) -> dict[str, Any]:
        options = {
            "target": "shapes",
            "data_root": self.data_root,
            "out": self.out,
            "device": "cpu",
            "workers": 0,
            "recipe": "shapes",
            # The paper's CRF would make one colour of pictures as small as these.
            "set": [f"size={SMALL['size']}", "crf=deeplab"],
            "saliency_crf": "none" if setting in ("M", "MM", "2S") else None,
            "setting": setting,
            "data": None if setting in ("S", "SS") else "shapes",
        }
        if changes.get("weights") is None:
            options |= {"steps": SMALL["steps"], "batch_size": SMALL["batch_size"]}
        return options | changes

    def run(self, setting: str = "MM", method: type[Method] = Method, **changes: Any) -> None:
        ssnet.run("ssnet", method, ssnet.Options(**self.options(setting, **changes)))

    def entry(self, key: str, version: str = "1.0.0") -> Entry:
        return read_manifest(self.out / key).entry(version, "shapes")

    def made(self) -> set[str]:
        return {
            str(p.parent.relative_to(self.out))
            for kind in ("sal", "cam", "label", "weights")
            for p in self.out.glob(f"{kind}/*/{MANIFEST}")
        }

    def contents(self) -> dict[str, str | None]:
        return {key: self.entry(key).content for key in self.made()}

    def network(self, setting: str) -> tuple[Method, Any]:
        """The network that a setting's weights are of, read from its run folder."""
        recipe = replace(RECIPES["shapes"], size=SMALL["size"], crf="deeplab")
        method = Method(recipe, self.out, 6, SETTINGS[setting])
        network = method.build()
        load_weights(network, self.training(setting) / "weights.safetensors")
        return method, network.eval().requires_grad_(False)

    def training(self, setting: str, seed: int = 0) -> Path:
        data = "" if setting in ("S", "SS") else "-shapes"
        return self.out / "runs" / f"ssnet-shapes{data}" / f"seed{seed}" / setting


@pytest.fixture
def bench(shapes: Path, tmp_path: Path) -> Bench:
    return Bench(shapes, tmp_path / "out")


@pytest.fixture(scope="module")
def mm(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The main setting, trained and written; tests only read it."""
    bench = Bench(shapes, tmp_path_factory.mktemp("mm"))
    bench.run()
    return bench


@pytest.fixture
def copied(mm: Bench, tmp_path: Path) -> Bench:
    """The same, for tests that go on from there."""
    shutil.copytree(mm.out, tmp_path / "out")
    return Bench(mm.data_root, tmp_path / "out")


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
        rgb, classes = target.read_image(image_id), target.image_labels(image_id)
        found = np.asarray(label.read(image_id))
        assert {*np.unique(found)} <= {0, *(c + 1 for c in classes)}
        np.testing.assert_array_equal(found, one[0].pseudo_label(one[1], rgb, classes))
        np.testing.assert_array_equal(sal.read(image_id), two[0].saliency(two[1], rgb, None))


def test_the_measures_are_those_of_the_network(mm: Bench) -> None:
    entry = mm.entry("weights/ssnet-shapes")
    saliency = {("MAE", "shapes-te"), ("max F", "shapes-te")}
    wanted = {("mIoU", "val", False)} | {(*s, crf) for s in saliency for crf in (True, False)}
    assert stated(entry) == wanted
    method, network = mm.network("MM")
    target = open_target("shapes", mm.data_root)
    truth = target.ground_truth("val")
    score = SegmentationScore(6)
    for image_id in target.image_ids("val"):
        predicted = method.segmentation(network, target.read_image(image_id))
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
            return method.saliency(network, benchmark.read_image(image_id), self.crf)

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
        expected = method.saliency(network, target.read_image(image_id), SSNET)
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


PAPER = {"S": 33.1, "M": 57.1, "SS": 47.1, "MS": 62.7, "MM": 63.3}  # Table 5
PAPER_SALIENCY = {  # Table 6: MAE, max F
    ("2S", False): (0.046, 0.899),
    ("MM", False): (0.047, 0.912),
    ("MM", True): (0.045, 0.919),
}


def scores(bench: Bench, setting: str, seed: int) -> dict[str, Any]:
    return json.loads((bench.training(setting, seed) / "score.json").read_text())


def test_all_settings_make_the_tables(copied: Bench, capsys: pytest.CaptureFixture) -> None:
    keys = copied.made()
    copied.run("all", seeds="0,1")
    printed = capsys.readouterr()
    assert printed.err.count("training in") == 10  # of 12: M and MM with seed 0 are there
    assert copied.made() == keys
    folder = copied.out / "runs/ssnet-shapes-shapes"
    tables = json.loads((folder / "tables.json").read_text())
    table5 = {row["setting"]: row for row in tables["table5"]}
    assert {name: row["paper"]["miou"] for name, row in table5.items()} == {
        name: pytest.approx(value / 100) for name, value in PAPER.items()
    }
    for name, row in table5.items():
        values = [scores(copied, name, s)["segmentation"]["score"]["miou"] for s in (0, 1)]
        assert row["miou"]["mean"] == pytest.approx(statistics.fmean(values))
        error = statistics.stdev(values) / 2**0.5
        assert row["miou"]["standard_error"] == pytest.approx(error)
    table6 = {(row["setting"], row["crf"]): row for row in tables["table6"]}
    assert {
        key: tuple(row["paper"]["ecssd"].values()) for key, row in table6.items()
    } == PAPER_SALIENCY
    for (name, crf), row in table6.items():
        found = [scores(copied, name, s)["saliency shapes-te"]["score"] for s in (0, 1)]
        maes = [score["crf" if crf else "raw"]["mae"] for score in found]
        assert row["measured"]["shapes-te"]["mae"]["mean"] == pytest.approx(statistics.fmean(maes))
    markdown = (folder / "tables.md").read_text()
    miou = table5["MM"]["miou"]
    text = f"{100 * miou['mean']:.1f} ± {100 * miou['standard_error']:.1f}"
    row = f"| MM | SSNet-2 | saliency + segmentation | M | {text} | 63.3 |"
    assert row in markdown
    assert text in printed.out
    assert "0.919" in printed.out
    assert "0.919" in markdown


def test_finished_tables_are_printed_again_and_their_trainings_taken(
    bench: Bench, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["stages", "ssnet", "--setting", "all"])
    bench.run("all")
    first = capsys.readouterr()
    files = {p: p.stat().st_mtime_ns for p in bench.out.rglob("*") if p.is_file()}
    bench.run("all")
    second = capsys.readouterr()
    assert "The tables are finished" in second.err
    assert second.out == first.out
    assert "±" not in first.out  # one seed has no standard error
    assert {p: p.stat().st_mtime_ns for p in bench.out.rglob("*") if p.is_file()} == files
    monkeypatch.setattr(sys, "argv", ["stages", "ssnet"])
    bench.run()
    said = capsys.readouterr().err
    assert "training in" not in said
    assert "measuring" not in said
    assert bench.made() == set(MADE)
    for entry in map(bench.entry, MADE):  # the command that makes the artifact, not the tables
        assert entry.provenance is not None
        assert entry.provenance.command[3:] == ["ssnet"]


def mortal(name: str, count: int, number: signal.Signals) -> type[Method]:
    """A method whose process gets a signal when ``name`` is called for the n-th time."""
    calls = [0]

    def called(self: Any, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), number)
        return getattr(Method, name)(self, *arguments)

    return type("Mortal", (Method,), {name: called})


# In M's second step, M's labels, MM's training, the two measurements, the saliency maps. A step
# has two losses. The measurement of two images makes four saliency maps.
PARTS = [
    ("_loss", 3),
    ("pseudo_label", 4),
    ("_loss", 7),
    ("segmentation", 3),
    ("saliency", 3),
    ("saliency", 8),
]


@pytest.mark.parametrize(("name", "count"), PARTS)
def test_killed_in_any_part_the_command_goes_on_to_the_same_content(
    mm: Bench, bench: Bench, name: str, count: int
) -> None:
    method = mortal(name, count, signal.SIGKILL)
    child = in_child(lambda: bench.run(method=method, checkpoint_every=0))
    assert exit_code(child) == -signal.SIGKILL
    assert MADE[2] not in bench.made()
    bench.run()
    assert bench.contents() == mm.contents()
    assert not list(bench.out.rglob(".partial"))


@pytest.mark.parametrize(("name", "count"), [("_loss", 7), ("saliency", 8)])
def test_asked_to_end_it_goes_on_to_the_same_content(
    mm: Bench, bench: Bench, name: str, count: int
) -> None:
    with raising(), pytest.raises(Interruption):
        bench.run(method=mortal(name, count, signal.SIGTERM))
    assert MADE[2] not in bench.made()
    bench.run()
    assert bench.contents() == mm.contents()


@pytest.mark.slow
def test_killed_at_many_changes_of_the_disk(mm: Bench, bench: Bench) -> None:
    killed = list(deaths(lambda: bench.run(checkpoint_every=0), step=23))
    assert len(killed) >= 5
    assert bench.contents() == mm.contents()


@pytest.mark.slow
def test_killed_tables_go_on_to_the_same_tables(bench: Bench, tmp_path: Path) -> None:
    bench.run("all", seeds="0,1")
    other = Bench(bench.data_root, tmp_path / "other")
    counts: Iterator[int] = iter((5, 9, 13))
    for count in counts:
        method = mortal("_loss", count, signal.SIGKILL)
        child = in_child(lambda method=method: other.run("all", method=method, seeds="0,1"))
        assert exit_code(child) == -signal.SIGKILL
    other.run("all", seeds="0,1")
    for name in ("tables.json", "tables.md"):
        one, two = (b.out / "runs/ssnet-shapes-shapes" / name for b in (bench, other))
        assert one.read_bytes() == two.read_bytes()


def words(options: dict[str, Any]) -> list[str]:
    """Options as a command line has them."""
    found = ["ssnet"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                found += ["--" + name.replace("_", "-"), str(one)]
    return found


def test_help_tells_settings_and_recipes(capsys: pytest.CaptureFixture) -> None:
    assert main(["ssnet", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "S, M, SS, MS, MM or 2S" in said
    assert "--saliency-crf" in said
    assert "Recipe published:" in said
    assert "backbone=densenet169" in said


@pytest.mark.slow
def test_two_processes_make_the_same_of_given_weights(mm: Bench, bench: Bench) -> None:
    options = bench.options("MM", weights=mm.training("MM") / "weights.safetensors")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "stages", *words(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for key in MADE[1:]:
        assert bench.entry(key).content == mm.entry(key).content
    one, two = mm.entry(MADE[2]).results, bench.entry(MADE[2]).results
    # The sum of two processes' sums is another order of adding: the last bits differ.
    assert [r.value for r in two] == pytest.approx([r.value for r in one], rel=1e-12)
    assert [r.images for r in two] == [r.images for r in one]


@pytest.mark.slow
def test_two_processes_train_and_make_the_tables(bench: Bench) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "stages", *words(bench.options("all"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Table 5") == 1
    tables = json.loads((bench.out / "runs/ssnet-shapes-shapes/tables.json").read_text())
    assert tables["settings"]["processes"] == 2
    assert all(row["miou"]["mean"] is not None for row in tables["table5"])
