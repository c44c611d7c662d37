"""Predicted label maps of segmentation stages, as people ask for them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file, save_file
from small_stages import BASES, TOYS, enter, run_words
from typer.testing import CliRunner

from wsssbed_hub.cli.app import app
from wsssbed_hub.datasets import open_target
from wsssbed_hub.utils.errors import HubError

BASE = BASES["seg"]
ALONE = "seg-toy --target shapes --data-root DATA --out out --device cpu --workers 0"
COMP6 = "results/VOC2012/Segmentation/comp6_test_cls"
Run = Callable[[str], int]


@pytest.fixture
def run(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a stage in a folder of its own."""
    enter(tmp_path, monkeypatch)
    return lambda words: run_words(words, shapes)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all images that networks are asked about, in order."""
    asked: list[str] = []
    logits = TOYS["seg-toy"].logits

    def asking(self: Any, network: Any, image: Any) -> Any:
        asked.append(image.id)
        return logits(self, network, image)

    monkeypatch.setattr(TOYS["seg-toy"], "logits", asking)
    return asked


def miou_of(maps: Path, shapes: Path) -> float:
    """By the hub's own command."""
    words = ["eval", "segmentation", str(maps), "--target", "shapes", "--data-root", str(shapes)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)["miou"]


def stated() -> Any:
    return json.loads(Path("out/runs/seg-toy-shapes-ground-truth/result.json").read_text())


def files(folder: str | Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_folder_of_predictions_scores_what_the_stage_stated(
    run: Run, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two seeds, without and with a CRF; and what is stated where none are written. The toy
    takes an image's colours for classes here, as it learns nothing that would show."""

    def colours(self: Any, network: Any, image: Any) -> torch.Tensor:
        levels = torch.from_numpy(image.rgb.sum(2) % 256 / 40) + network.trunk.bias[0]
        return -(levels - torch.arange(7)[:, None, None]).abs().float()

    monkeypatch.setattr(TOYS["seg-toy"], "logits", colours)
    words = f"{BASE} --seeds 0,1 --crf deeplab"
    assert run(f"{words} --predictions p") == 0
    found = stated()["seeds"]
    scores = {
        (seed, kind): miou_of(Path(f"p/seed{seed}/{kind}"), shapes)
        for seed in "01"
        for kind in ("raw", "crf")
    }
    for seed in "01":
        assert scores[seed, "raw"] == found[seed]["miou"]
        assert scores[seed, "crf"] == found[seed]["crf"]["miou"]
    assert len({*scores.values()}) == 4
    shutil.rmtree("out")
    assert run(words) == 0
    assert stated()["seeds"] == found


def test_label_maps_are_palette_pngs_of_the_size_of_their_images(run: Run, shapes: Path) -> None:
    assert run(f"{BASE} --predictions a/new/p") == 0
    target = open_target("shapes", shapes)
    ids = target.image_ids("val")
    folder = Path("a/new/p")
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [f"{i}.png" for i in ids]
    for image_id in ids:
        with PilImage.open(folder / f"{image_id}.png") as picture:
            assert picture.mode == "P"
            assert picture.size == target.size(image_id)[::-1]
            assert picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert [p.name for p in folder.parent.iterdir()] == ["p"]


def test_the_voc_server_gets_its_layout_and_a_zip(run: Run, shapes: Path) -> None:
    assert run(f"{BASE} --predictions p --server voc") == 0
    ids = open_target("shapes", shapes).image_ids("val")
    with zipfile.ZipFile("p/results.zip") as archive:
        assert archive.namelist() == [f"{COMP6}/{image_id}.png" for image_id in ids]
    miou = stated()["seeds"]["0"]["miou"]
    assert miou_of(Path("p") / COMP6, shapes) == miou
    assert miou_of(Path("p/results.zip"), shapes) == miou
    assert run(f"{BASE} --predictions q --server voc") == 0
    assert files("q") == files("p")


def test_images_alone_are_enough_with_weights(
    run: Run, shapes: Path, made: Path, tmp_path: Path
) -> None:
    """Neither the dataset nor labels are there; the maps are those of the same images in val."""
    target = open_target("shapes", shapes)
    photos = tmp_path / "photos"
    photos.mkdir()
    for image_id in target.image_ids("val"):
        shutil.copy(target.image_path(image_id), photos / f"mine-{image_id}.jpg")
    (photos / ".hidden.jpg").write_bytes(b"")
    (photos / "notes.txt").write_text("not an image")
    weights = f"--weights {made}/seg.safetensors"
    nowhere = ALONE.replace("DATA", str(tmp_path / "nothing"))
    assert run(f"{nowhere} {weights} --predictions p --predictions-of ./photos") == 0
    assert [path.name for path in tmp_path.iterdir() if path.name[0] in "po"] == [
        "photos",
        "p",
    ] or (not Path("out").exists())
    assert run(f"{ALONE} {weights} --predictions q") == 0
    mine, val = ({k: v for k, v in files(f).items() if k.endswith("png")} for f in ("p", "q"))
    assert {f"mine-{name}": data for name, data in val.items()} == mine
    assert len({*val.values()}) > 1
    assert not list(tmp_path.rglob("manifest.yaml"))


def test_predictions_of_given_weights_score_what_is_stated(
    run: Run, shapes: Path, made: Path
) -> None:
    base = BASE.replace("--init random", f"--weights {made}/seg.safetensors")
    assert run(f"{base} --predictions p") == 0
    assert stated()["miou"]["mean"] == miou_of(Path("p"), shapes)


def test_a_checkpoint_of_mmsegmentation_predicts_the_same(
    run: Run, made: Path, tmp_path: Path
) -> None:
    state = load_file(made / "seg.safetensors")
    wrapped = {"meta": {"epoch": 1}, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(wrapped, tmp_path / "iter.pth")
    assert run(f"{ALONE} --weights {made}/seg.safetensors --predictions p") == 0
    assert run(f"{ALONE} --weights iter.pth --predictions q") == 0
    p, q = ({k: v for k, v in files(f).items() if k.endswith("png")} for f in "pq")
    assert p == q


def test_other_splits_and_lists_without_masks(
    run: Run, shapes: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """VOC's test comes as a list and images; here it is a list that no split is made of."""
    data = shutil.copytree(shapes, tmp_path / "data")
    target = open_target("shapes", data)
    train, val = target.image_ids("train_aug"), target.image_ids("val")
    lists = data / "shapes/VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "test.txt").write_text(f"{val[1]}\n{train[0]}\n")
    shutil.rmtree(lists.parents[1] / "SegmentationClass")
    words = f"{ALONE.replace('DATA', str(data))} --weights {made}/seg.safetensors"
    assert run(f"{words} --predictions p --predictions-of test") == 0
    assert {n for n in files("p") if n.endswith("png")} == {f"{val[1]}.png", f"{train[0]}.png"}
    assert run(f"{words} --predictions q --predictions-of train_aug --limit 3") == 0
    assert {n for n in files("q") if n.endswith("png")} == {f"{i}.png" for i in train[:3]}
    assert run(f"{words} --predictions r --predictions-of tset") == 2
    assert "no split 'tset'" in capsys.readouterr().err
    target.image_path(val[1]).unlink()
    assert run(f"{words} --predictions r --predictions-of test") == 1
    assert f"{val[1]}.jpg" in capsys.readouterr().err
    assert not Path("r").exists()


def test_stopped_in_the_middle_it_goes_on_and_nothing_is_half_there(
    run: Run, predicted: list[str], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"{ALONE} --weights {made}/seg.safetensors --predictions"
    assert run(f"{words} whole") == 0
    ids = list(predicted)
    assert len(ids) == 4
    predicted.clear()
    going = TOYS["seg-toy"].logits

    def stopping(self: Any, network: Any, image: Any) -> Any:
        if image.id == ids[2]:
            raise HubError("stopped")
        return going(self, network, image)

    with monkeypatch.context() as patched:
        patched.setattr(TOYS["seg-toy"], "logits", stopping)
        assert run(f"{words} p") == 1
    assert not Path("p").exists()
    assert predicted == ids[:2]
    partial = Path(".p.partial")
    (partial / f"{ids[0]}.png").write_bytes((partial / f"{ids[0]}.png").read_bytes()[:-9])
    predicted.clear()
    assert run(f"{words} p") == 0
    assert predicted == [ids[0], *ids[2:]]
    assert files("p") == files("whole")
    assert not partial.exists()
    predicted.clear()
    assert run(f"{words} p") == 0
    assert predicted == []


def test_what_was_begun_with_other_weights_is_begun_again(
    run: Run, predicted: list[str], made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {k: v + 0.1 for k, v in load_file(made / "seg.safetensors").items()}
    save_file(other, "other.safetensors")
    going = TOYS["seg-toy"].logits

    def stopping(self: Any, network: Any, image: Any) -> Any:
        if len(predicted) == 2:
            raise HubError("stopped")
        return going(self, network, image)

    with monkeypatch.context() as patched:
        patched.setattr(TOYS["seg-toy"], "logits", stopping)
        assert run(f"{ALONE} --weights other.safetensors --predictions p") == 1
    predicted.clear()
    assert run(f"{ALONE} --weights {made}/seg.safetensors --predictions p") == 0
    assert len(predicted) == 4


def test_a_folder_that_holds_something_else_is_left_alone(
    run: Run, made: Path, capsys: pytest.CaptureFixture
) -> None:
    """And that is said before anything is trained."""
    Path("p").mkdir()
    Path("p/thesis.txt").write_text("years of work")
    for more in ("", "--fresh"):
        assert run(f"{BASE} --predictions p {more}") == 1
        assert "is there and no folder of predictions" in capsys.readouterr().err
    assert files("p") == {"thesis.txt": b"years of work"}
    assert not list(Path("out").rglob("log.jsonl"))
    Path("p/thesis.txt").unlink()
    assert run(f"{BASE} --predictions p") == 0
    assert run(f"{BASE} --predictions p/inside") == 1
    assert "holds other predictions" in capsys.readouterr().err


def test_predictions_of_other_settings_are_kept_unless_discarded(
    run: Run, made: Path, capsys: pytest.CaptureFixture
) -> None:
    words = f"{ALONE} --weights {made}/seg.safetensors --predictions p"
    assert run(words) == 0
    before = files("p")
    assert run(f"{words} --crf deeplab") == 1
    said = capsys.readouterr().err
    assert 'crf: null there, "deeplab" now' in said
    assert "--fresh" in said
    assert files("p") == before
    assert run(f"{words} --crf deeplab --fresh") == 0
    assert {name.split("/")[0] for name in files("p")} == {".predictions.json", "raw", "crf"}


def test_a_finished_training_predicts_without_training_again(
    run: Run, predicted: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert run(BASE) == 0
    (log,) = Path("out").rglob("log.jsonl")
    trained = log.stat().st_mtime_ns
    predicted.clear()
    assert run(f"{BASE} --predictions p") == 0
    assert len(predicted) == 4
    assert log.stat().st_mtime_ns == trained
    predicted.clear()
    assert run(f"{BASE} --predictions p") == 0
    assert predicted == []
    shutil.rmtree("out/runs")
    capsys.readouterr()
    assert run(f"{BASE} --predictions q") == 1
    said = capsys.readouterr().err
    assert "model.safetensors below out/weights/seg-toy-ground-truth" in said
    (weights,) = Path("out/weights").rglob("model.safetensors")
    assert run(f"{ALONE} --weights {weights} --predictions q") == 0
    p, q = ({k: v for k, v in files(f).items() if k.endswith("png")} for f in "pq")
    assert p == q


def test_predictions_of_a_network_that_was_trained_again_are_not_taken_for_its_own(
    run: Run, capsys: pytest.CaptureFixture
) -> None:
    """The settings are equal, the weights are not."""
    assert run(f"{BASE} --predictions p") == 0
    shutil.rmtree("out")
    record = Path("p/.predictions.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weights": "sha256:other"}))
    assert run(f"{BASE} --predictions p") == 1
    assert "weights: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (f"{BASE} --server voc", 2, "leave --server out"),
        (f"{BASE} --predictions-of train", 2, "leave --predictions-of out"),
        (f"{BASE} --predictions p --server coco", 2, "Choose voc"),
        (f"{BASE} --predictions p --predictions-of ./none", 1, "there is no such folder"),
        (f"{BASE} --predictions p --predictions-of ./empty", 1, "holds no images"),
        (f"{BASE} --predictions p --predictions-of ./twice", 1, "a.jpg and a.png: one id, twice"),
        (
            f"{BASE} --predictions p --predictions-of ./odd",
            1,
            "odd/a b.jpg: 'a b' is not an image id",
        ),
        (f"{BASE} --predictions p --predictions-of odd", 2, "with a slash: ./odd"),
        (ALONE, 2, "Name the labels"),
        (f"{ALONE} --predictions p", 2, "Name the labels"),
        (f"{ALONE} --weights w.pth --predictions p --version 1.1.0", 2, "leave --version out"),
        (f"{ALONE} --weights page.pth --predictions p", 1, "is a web page"),
    ],
)
def test_requests_that_cannot_be_met(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture, words: str, code: int, says: str
) -> None:
    for name in ("empty/x.txt", "twice/a.jpg", "twice/a.png", "odd/a b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    Path("page.pth").write_text("<html><title>Sign in</title></html>")
    assert run(words) == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not Path("p").exists()
    assert not list(Path().rglob("log.jsonl"))


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_left(
    run: Run, made: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("photos").mkdir()
    PilImage.fromarray(np.zeros((8, 9, 3), np.uint8)).save("photos/a.png")
    Path("photos/b.jpg").write_bytes(b"no picture")
    words = f"{ALONE} --weights {made}/seg.safetensors --predictions p --predictions-of ./photos"
    assert run(words) == 1
    assert "photos/b.jpg is not a whole PNG or JPEG" in capsys.readouterr().err
    assert not Path("p").exists()


@pytest.mark.parametrize(("side", "named"), [(1, True), (40, False)])
def test_an_image_that_is_too_small_is_named(
    run: Run,
    made: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    side: int,
    named: bool,
) -> None:
    """What a network says of a larger one is a mistake of ours."""

    def halved(self: Any, network: Any, image: Any) -> torch.Tensor:
        raise RuntimeError("output sizes should be greater than 0")

    monkeypatch.setattr(TOYS["seg-toy"], "logits", halved)
    Path("photos").mkdir()
    PilImage.fromarray(np.zeros((side, 50, 3), np.uint8)).save("photos/a.png")
    words = f"{ALONE} --weights {made}/seg.safetensors --predictions p --predictions-of ./photos"
    assert run(words) == 1
    said = capsys.readouterr().err
    assert (f"The image a is too small for this network, with {side} x 50" in said) == named
    assert ("Traceback" in said) != named
    assert not Path("p").exists()


@pytest.mark.slow
def test_two_processes_write_the_same_predictions(shapes: Path, tmp_path: Path) -> None:
    common = [
        "seg-deeplabv2",
        "--target",
        "shapes",
        "--data-root",
        str(shapes),
        "--recipe",
        "shapes",
    ]
    common += ["--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    train = ["--labels", "ground-truth", "--steps", "2", "--batch-size", "2"]
    one = [sys.executable, "-m", "stages", *common, *train, "--predictions", str(tmp_path / "p")]
    subprocess.run(one, check=True, capture_output=True, timeout=600)
    (weights,) = (tmp_path / "out" / "runs").rglob("weights.safetensors")
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two += [
        "-m",
        "stages",
        *common,
        "--weights",
        str(weights),
        "--predictions",
        str(tmp_path / "q"),
    ]
    done = subprocess.run(two, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    p, q = ({k: v for k, v in files(tmp_path / f).items() if k.endswith("png")} for f in "pq")
    assert p
    assert p == q
