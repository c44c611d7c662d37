"""The Markdown of `check --report`: claims, scores, galleries, and strangers' words as words."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from hubserver import HubServer
from PIL import Image
from proofs import index_manifest, release_files, stated
from rangeserver import RangeServer
from typer.testing import CliRunner, Result

from wsssbed_hub.artifacts.key_folder import complete, read_manifest
from wsssbed_hub.artifacts.manifest import HubSource, Manifest, MethodCitation
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.cli import contribute
from wsssbed_hub.datasets import Target, make_shapes
from wsssbed_hub.registry.hub.registry import HubRegistry
from wsssbed_hub.review.check_manifest import read


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=4, val=2, sod=1, sod_test=1, small=1)
    return root


def truth_of(target: Target) -> dict[str, np.ndarray]:
    truth = target.ground_truth("train_aug")
    return {image_id: np.asarray(truth.read(image_id)) for image_id in truth.image_ids}


def sal_of(target: Target) -> dict[str, np.ndarray]:
    return {i: np.where(t > 0, 220, 10).astype(np.uint8) for i, t in truth_of(target).items()}


def cam_of(target: Target) -> dict[str, dict[int, np.ndarray]]:
    return {
        i: {c: np.where(t == c + 1, 200, 60).astype(np.uint8) for c in target.image_labels(i)}
        for i, t in truth_of(target).items()
    }


def check(*arguments: object) -> Result:
    app = typer.Typer()
    contribute.register(app)
    return CliRunner().invoke(app, ["check", *(str(argument) for argument in arguments)])


def report(folder: Path, data: Path, *manifests: Path) -> tuple[Result, str]:
    path = folder / "out" / "report.md"
    result = check(*manifests, "--fetch", "--data-root", data, "--report", path)
    # Word joiners are not to be seen; they keep words from meaning something to GitHub.
    return result, path.read_text().replace("\u2060", "")


def picture(folder: Path, text: str, what: str) -> np.ndarray:
    """The picture that the report shows: a file beside it, named without any folder."""
    (name,) = re.findall(rf"!\[{what}\]\(([a-z0-9.-]+\.png)\)", text)
    return np.asarray(Image.open(io.BytesIO((folder / "out" / name).read_bytes())))


def test_saliency_maps(tmp_path: Path, server: RangeServer, target: Target, data: Path) -> None:
    results = [stated(target, "train", "MAE", 0.0), stated(target, "train", "MAE", 0.4)]
    files = release_files("sal", sal_of(target))
    path = index_manifest(tmp_path, server, "sal/x", files, results=results)
    result, text = report(tmp_path, data, path)
    assert result.exit_code == 1
    assert text.startswith("**1 manifest checked, 1 error.**")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[2] == "| MAE 0.4 on train | **FAILED** | 0.4 is stated, 0 was found |"
    assert "| maps have the size of their images | proved |  |" in rows
    assert "| MAE 0.0 on train | proved | 0 was found |" in rows
    images = len(target.image_ids("train"))
    assert f"Against the objects of shapes train, {images} images: mae 0.0000; max\\_f" in text
    assert picture(tmp_path, text, "gallery").shape[1] == 2 * 170 + 10


def test_activation_maps_with_the_saliency_of_their_training(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    index_manifest(tmp_path, server, "sal/x", release_files("sal", sal_of(target)))
    other = {"role": "sal", "key": "sal/none", "digest": "sha256:" + "0" * 64}
    tau = {"tau": 0.5, "origin": "given"}
    results = [stated(target, "train", "mIoU", 0.5, saliency=other, threshold=tau)]
    files = release_files("cam", cam_of(target))
    path = index_manifest(tmp_path, server, "cam/y-x", files, results=results)
    text = path.read_text()
    path.write_text(text.replace('"licence"', '"trained_with": ["sal/x"], "licence"'))
    result, text = report(tmp_path, data, path)
    assert result.exit_code == 0, result.stdout
    # These maps are the truth itself: at the best tau nothing is wrong.
    assert re.search(r"\| `sal/x@1\.0\.0` \|.*100\.0", text)
    assert "No curve: sal/none is not to be had" in text
    assert picture(tmp_path, text, "curve").size
    assert picture(tmp_path, text, "gallery").size


def test_labels(tmp_path: Path, server: RangeServer, target: Target, data: Path) -> None:
    files = release_files("label", truth_of(target))
    path = index_manifest(tmp_path, server, "label/x", files)
    result, text = report(tmp_path, data, path)
    assert result.exit_code == 0, result.stdout
    assert re.search(r"mIoU on shapes train, \d+ images: 100\.0 %; coverage", text)
    assert f"| background | {' | '.join(target.classes)} |" in text


def test_without_the_target(tmp_path: Path, server: RangeServer, target: Target) -> None:
    path = index_manifest(tmp_path, server, "sal/x", release_files("sal", sal_of(target)))
    result, text = report(tmp_path, tmp_path / "none", path)
    assert result.exit_code == 0
    assert "1 manifest checked, no errors, 2 claims not checked" in result.stdout
    assert "note: " in result.stdout
    assert "| images are those of the target | not checked |" in text
    assert "No scores: shapes is not at hand" in text
    assert "(the images of the target are not at hand)" in text
    assert picture(tmp_path, text, "gallery").size


def test_what_is_wrong_with_the_manifest_itself(tmp_path: Path, data: Path) -> None:
    (tmp_path / "sal").mkdir()
    path = tmp_path / "sal" / "x.yaml"
    path.write_text("key: [")
    result, text = report(tmp_path, data, path)
    assert result.exit_code == 1
    assert "- error: " in text
    assert "is not YAML" in text


def test_words_of_strangers_stay_words(
    tmp_path: Path, server: RangeServer, target: Target, data: Path
) -> None:
    nasty = "@maintainer <img src=x> [x](https://evil.example) | `a` \u202eabc #1"
    results = [stated(target, "train", nasty, 0.5)]
    files = release_files("sal", sal_of(target))
    path = index_manifest(tmp_path, server, "sal/x", files, results=results)
    report(tmp_path, data, path)
    text = (tmp_path / "out" / "report.md").read_text()
    (row,) = (line for line in text.splitlines() if "maintainer" in line)
    assert "@maintainer" not in row
    assert "<img" not in row
    assert "https://evil" not in row
    assert r"\[x\](" in row
    assert "\u202e" not in row
    assert row.replace("\\|", "").count("|") == 4


def test_weights_are_said_not_to_be_measured(
    tmp_path: Path, target: Target, data: Path, hub: HubServer, token: str
) -> None:
    folder = tmp_path / "key"
    tensor = np.zeros(3, np.float32)
    complete(
        folder,
        write_weights(folder, {"w": tensor}, {}, settings={}),
        key="weights/x",
        target="shapes",
        version="1.0.0",
        title="For a test",
        method=MethodCitation(name="Test"),
        licence="MIT",
    )
    registry = HubRegistry("alice")
    registry.publish(folder)
    source = HubSource(repo="alice/weights-x", commit=registry.repository(_key(folder)).head())
    data_ = read_manifest(folder).model_dump(mode="json")
    entry = data_["versions"]["1.0.0"]["shapes"]
    entry["source"] = source.model_dump()
    entry["results"] = [stated(target, "val", "mIoU", 0.5)]
    path = tmp_path / "weights" / "x.yaml"
    path.parent.mkdir()
    path.write_text(Manifest.model_validate(data_).dump())
    assert read(path).entry("1.0.0", "shapes").results
    result, text = report(tmp_path, data, path)
    assert result.exit_code == 0, result.stdout
    assert "mIoU 0.5 on val: not recomputed, because the mIoU of a network takes" in result.stdout
    assert "| mIoU 0.5 on val | not checked |" in text


def _key(folder: Path):
    return read_manifest(folder).parsed_key
