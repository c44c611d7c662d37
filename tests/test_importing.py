"""`wsssbed-hub import`: what is said of a stranger's maps, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tinyvoc
import typer
from killing import deaths
from samples import key_folder, noise, png
from typer.testing import CliRunner, Result

from wsssbed_hub.commands import contribute
from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.importing import Card, Import, parse_trained_on
from wsssbed_hub.keyfolder import read_manifest, verify_folder
from wsssbed_hub.manifest import Method
from wsssbed_hub.maps import open_artifact
from wsssbed_hub.registry import open_registry, pull
from wsssbed_hub.targets import TARGETS

S, A = tinyvoc.saliency(), tinyvoc.activations()
SHAPE = tinyvoc.SIZE
CARD = Card(Method(name="Mine"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tinyvoc.make_target(tmp_path / "data", TARGETS["shapes"].classes)


def problems(
    folder: Path, files: dict[str, bytes], data: Path, key: str = "sal/mine-duts"
) -> list[str]:
    path = tinyvoc.unpacked(files, folder / "given")
    found = Import(path, key, "shapes", data).problems()
    return [f"{problem.severity}: {problem}" for problem in found]


def test_nothing_is_wrong(tmp_path: Path, data: Path) -> None:
    assert problems(tmp_path, S, data) == []
    assert problems(tmp_path / "cam", A, data, "cam/mine") == []


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


FLAT = {name: png(np.full(SHAPE, 7, np.uint8)) for name in S}
INVERTED = np.full(SHAPE, 200, np.uint8)
INVERTED[1:-1, 1:-1] = 20


@pytest.mark.parametrize(
    ("key", "files", "expected"),
    [
        (
            "sal/x",
            without(S, "a1.png", "c3.png"),
            "error: missing images of shapes train_aug: a1, c3",
        ),
        ("sal/x", {**S, "zz.png": S["a1.png"]}, "error: images that shapes does not have: zz"),
        ("sal/x", {**S, "v9.png": S["a1.png"]}, "warning: images beyond train_aug: v9"),
        (
            "sal/x",
            {**S, "b2.png": png(noise(0, 8, 6))},
            "error: maps of another size than their image: b2",
        ),
        ("sal/x", {**S, "b2.png": FLAT["b2.png"]}, "warning: maps of one value only: b2"),
        (
            "sal/x",
            {name: png(noise(1, *SHAPE) // 128) for name in S},
            "error: no value above 1: written as 0..1 and not as 0..255?",
        ),
        (
            "sal/x",
            {name: png(INVERTED) for name in S},
            "warning: 3 of 3 maps are brighter at the border than inside: inverted?",
        ),
        (
            "cam/x",
            without(A, "a1_2.png"),
            "error: classes other than the image-level labels: a1",
        ),
        (
            "cam/x",
            {"a1_1.png": A["a1_0.png"], "a1_3.png": A["a1_2.png"], "b2_2.png": A["b2_1.png"]}
            | {"c3_5.png": A["c3_5.png"]},
            "error: classes other than the image-level labels (they seem to be counted from 1, not "
            "from 0): a1, b2",
        ),
        ("cam/x", {**A, "c3_6.png": A["c3_5.png"]}, "error: classes beyond the 6 of shapes: c3"),
    ],
)
def test_what_is_wrong(
    tmp_path: Path, data: Path, key: str, files: dict[str, bytes], expected: str
) -> None:
    assert expected in problems(tmp_path, files, data, key)


def test_every_damaged_map_is_named_and_one_reason(tmp_path: Path, data: Path) -> None:
    colour = png(noise(0, *SHAPE), "RGB")
    (found,) = problems(tmp_path, {**S, "a1.png": b"no", "b2.png": colour}, data)
    assert found.startswith("error: damaged maps (")
    assert "a1 is not a PNG" in found
    assert found.endswith("): a1, b2")


def test_errors_come_first(tmp_path: Path, data: Path) -> None:
    files = {**without(S, "a1.png"), "v9.png": FLAT["a1.png"]}
    kinds = [found.partition(":")[0] for found in problems(tmp_path, files, data)]
    assert kinds == ["error", "warning", "warning"]


def test_many_images_are_counted(tmp_path: Path, data: Path) -> None:
    files = {**S, **{f"x{number}.png": S["a1.png"] for number in range(8)}}
    (found,) = problems(tmp_path, files, data)
    assert found.endswith("x0, x1, x2, x3, x4 and 3 more")


def test_one_label_list_in_a_hundred_may_differ(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsssbed_hub.inspection.TOLERATED", 0.4)
    assert problems(tmp_path, without(A, "a1_2.png"), data, "cam/x") == [
        "warning: classes other than the image-level labels: a1"
    ]


def test_without_the_target_only_the_number_counts(tmp_path: Path) -> None:
    path = tinyvoc.unpacked(S, tmp_path / "given")
    (found,) = Import(path, "sal/x", "voc12", tmp_path / "none").problems()
    assert str(found) == "3 images; voc12 has 10,582"
    assert Import(path, "sal/x", "elsewhere", tmp_path / "none").problems() == []


def test_a_zip_becomes_a_key_folder(tmp_path: Path, data: Path) -> None:
    (tmp_path / "x.zip").write_bytes(tinyvoc.zipped(A, "MINE/"))
    incoming = Import(tmp_path / "x.zip", "cam/mine-vst-duts", "shapes", data)
    card = Card(
        Method(name="Mine", paper="https://example.org"),
        parse_trained_on(["shapes:image labels"]),
        ("sal/vst-duts",),
        "MIT",
    )
    manifest = incoming.write(tmp_path / "key", card)
    assert verify_folder(tmp_path / "key")[0].images == 3
    assert open_artifact(tmp_path / "key").digest() == incoming.maps.digest()
    assert manifest == read_manifest(tmp_path / "key")
    assert manifest.title == "Activation maps of Mine trained on shapes"
    assert (manifest.licence, manifest.trained_with) == ("MIT", ["sal/vst-duts"])
    open_registry(tmp_path / "r", create=True).publish(tmp_path / "key")
    assert len(open_artifact(pull("cam/mine-vst-duts", registry=tmp_path / "r"))) == 3


def test_other_maps_need_another_version(tmp_path: Path, data: Path) -> None:
    first = Import(tinyvoc.unpacked(S, tmp_path / "1"), "sal/x", "shapes", data)
    first.write(tmp_path / "key", CARD)
    first.write(tmp_path / "key", CARD)
    other = tinyvoc.unpacked({**S, "a1.png": S["b2.png"]}, tmp_path / "2")
    with pytest.raises(HubError, match="A version never changes"):
        Import(other, "sal/x", "shapes", data).write(tmp_path / "key", CARD)
    manifest = Import(other, "sal/x@1.0.1", "shapes", data).write(tmp_path / "key", CARD)
    assert list(manifest.versions) == ["1.0.0", "1.0.1"]


def test_killed_anywhere_it_goes_on(tmp_path: Path, data: Path) -> None:
    incoming = Import(tinyvoc.unpacked(S, tmp_path / "1"), "sal/x", "shapes", data)
    assert list(deaths(lambda: incoming.write(tmp_path / "key", CARD), step=4))
    assert verify_folder(tmp_path / "key")


@pytest.mark.parametrize("key", ["weights/x", "sal/X", "nonsense"])
def test_wrong_keys(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError):
        Import(tmp_path, key, "shapes", tmp_path)


def test_a_key_folder_is_pushed(tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    with pytest.raises(UsageError, match="push it as it is"):
        Import(tmp_path / "key", "sal/x", "shapes", tmp_path)


@pytest.mark.parametrize("text", ["duts", "duts:", "DUTS:pixel masks", "duts:magic"])
def test_trained_on(text: str) -> None:
    with pytest.raises(UsageError, match="dataset:supervision"):
        parse_trained_on([text])
    (item,) = parse_trained_on(["msra-hku:pixel masks"])
    assert (item.dataset, item.supervision) == ("msra-hku", "pixel masks")


def run(*arguments: object) -> Result:
    app = typer.Typer()
    contribute.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = tinyvoc.unpacked(S, tmp_path / "maps")
    asked = ("import", given, "sal/x-duts", "--target", "shapes", "--method", "X")
    asked += ("--trained-on", "duts:pixel masks", "--licence", "MIT", "--data-root", data)
    result = run(*asked, "--report-only")
    assert (result.exit_code, result.stdout) == (0, "nothing is wrong with it\n")
    assert not Path("sal-x-duts").exists()
    result = run(*asked)
    assert result.exit_code == 0
    assert "wsssbed-hub push sal-x-duts" in result.stdout
    assert verify_folder(tmp_path / "sal-x-duts")


def test_the_command_with_errors(tmp_path: Path, data: Path) -> None:
    given = tinyvoc.unpacked(without(S, "b2.png"), tmp_path / "maps")
    asked = ("import", given, "sal/x", "--target", "shapes", "--method", "X", "--to")
    result = run(*asked, tmp_path / "key", "--data-root", data, "--json")
    assert json.loads(result.stdout) == [
        {"severity": "error", "what": "missing images of shapes train_aug", "images": ["b2"]}
    ]
    assert isinstance(result.exception, HubError)
    assert "1 error: nothing was written" in str(result.exception)
    assert not (tmp_path / "key").exists()
    result = run(*asked, tmp_path / "key", "--data-root", tmp_path / "none")
    assert "nothing could be compared" in result.stderr
