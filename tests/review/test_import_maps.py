"""`wsssbed-hub import`: what is said of a stranger's maps, and what becomes of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyvoc
import typer
from killing import deaths
from PIL import Image
from samples import key_folder, noise, png
from typer.testing import CliRunner, Result

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.key_folder import read_manifest, verify_folder
from wsssbed_hub.artifacts.manifest import MethodCitation
from wsssbed_hub.artifacts.png_layout import PngFolder
from wsssbed_hub.cli import contribute
from wsssbed_hub.datasets import TARGETS, make_shapes, open_target
from wsssbed_hub.evaluation.inspect import Problem
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import open_registry, pull
from wsssbed_hub.review.gallery import choose
from wsssbed_hub.review.import_maps import Card, Import, parse_trained_on
from wsssbed_hub.utils.errors import HubError, UsageError

S, A = tinyvoc.saliency(), tinyvoc.activations()
SHAPE = tinyvoc.SIZE
CARD = Card(MethodCitation(name="Mine"))


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
            "warning: 3 of 3 maps are brighter at the border than inside, inverted?: a1, b2, c3",
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
    monkeypatch.setattr("wsssbed_hub.evaluation.inspect.TOLERATED", 0.4)
    assert problems(tmp_path, without(A, "a1_2.png"), data, "cam/x") == [
        "warning: classes other than the image-level labels: a1"
    ]


def test_without_the_target_only_the_number_counts(tmp_path: Path) -> None:
    path = tinyvoc.unpacked(S, tmp_path / "given")
    (found,) = Import(path, "sal/x", "voc12", tmp_path / "none").problems()
    assert str(found) == "3 images; voc12 has 10,582"
    (found,) = Import(path, "sal/x", "coco14", tmp_path / "none").problems()
    assert str(found) == "3 images; coco14 has 82,081"
    assert Import(path, "sal/x", "elsewhere", tmp_path / "none").problems() == []


def test_a_zip_becomes_a_key_folder(tmp_path: Path, data: Path) -> None:
    (tmp_path / "x.zip").write_bytes(tinyvoc.zipped(A, "MINE/"))
    incoming = Import(tmp_path / "x.zip", "cam/mine-vst-duts", "shapes", data)
    card = Card(
        MethodCitation(name="Mine", paper="https://example.org"),
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


def test_other_facts_are_not_passed_over(tmp_path: Path, data: Path) -> None:
    incoming = Import(tinyvoc.unpacked(S, tmp_path / "1"), "sal/x", "shapes", data)
    incoming.write(tmp_path / "key", CARD)
    facts = {"licence": "MIT", "trained_on": parse_trained_on(["duts:pixel masks"])}
    with pytest.raises(HubError, match=r"with other title, trained_on, licence\. Mend"):
        incoming.write(tmp_path / "key", Card(CARD.method, **facts))
    assert read_manifest(tmp_path / "key").licence is None
    assert incoming.write(tmp_path / "new", Card(CARD.method, **facts)).licence == "MIT"


def test_two_targets_in_one_folder(tmp_path: Path, data: Path) -> None:
    given = tinyvoc.unpacked(S, tmp_path / "1")
    for target in ("shapes", "elsewhere", "shapes"):
        card = Card(CARD.method, parse_trained_on([f"{target}:image labels"]), title="T")
        made = Import(given, "sal/x", target, data).write(tmp_path / "key", card)
    assert [(item.dataset, item.target) for item in made.trained_on] == [
        ("shapes", "shapes"),
        ("elsewhere", "elsewhere"),
    ]


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
    result = run("import", given, "sal/x", "--target", "shpaes", "--method", "X", "--report-only")
    assert "No target 'shpaes' is known here" in result.stderr
    assert "Did you mean 'shapes'?" in result.stderr


L = {f"{i}.png": png(np.full(SHAPE, 1 + c[0], np.uint8), "P") for i, c in tinyvoc.IDS.items()}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("a1.png", 7, "error: values that are no class of shapes: a1"),
        ("b2.png", 5, "warning: classes that the image-level labels do not have: b2"),
        ("c3.png", 255, None),
        ("c3.png", 0, None),
    ],
)
def test_classes_of_labels(
    tmp_path: Path, data: Path, name: str, value: int, expected: str | None
) -> None:
    files = {**L, name: png(np.full(SHAPE, value, np.uint8), "P")}
    found = problems(tmp_path, files, data, "label/x")
    assert expected in found if expected else found == []


def sheet(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("there", [True, False])
def test_a_gallery_with_what_is_suspicious_first(tmp_path: Path, data: Path, there: bool) -> None:
    files = {**S, "c3.png": png(np.full((5, 8), 77, np.uint8)), "b2.png": b"no PNG"}
    root = data if there else tmp_path / "none"
    incoming = Import(tinyvoc.unpacked(files, tmp_path / "given"), "sal/x", "shapes", root)
    found = incoming.problems()
    incoming.draw(tmp_path / "gallery.png", found)
    picture = sheet(tmp_path / "gallery.png")
    assert picture.shape[1] == 2 * 170 + 10
    named = choose(incoming.maps, incoming.expected, found, 8)
    assert named[0] == "b2"
    if there:  # else nobody can say that the size is wrong
        assert named[1] == "c3"
    assert sorted(named) == ["a1", "b2", "c3"]
    # The flat map of another size is on the sheet as it is, below the one that cannot be read.
    assert (picture[:, 180:188] == 77).all(axis=-1).any()


def test_a_few_of_each_problem_come_before_many_of_one(tmp_path: Path, data: Path) -> None:
    incoming = Import(tinyvoc.unpacked(S, tmp_path / "given"), "sal/x", "shapes", data)
    found = [Problem("error", "a", tuple("pqrstu")), Problem("error", "b", ("v",))]
    assert choose(incoming.maps, incoming.expected, found, 5) == ["p", "q", "r", "v", "a1"]


def test_the_command_draws_the_gallery_also_with_errors(tmp_path: Path, data: Path) -> None:
    given = tinyvoc.unpacked(without(S, "b2.png"), tmp_path / "maps")
    asked = ("import", given, "sal/x", "--target", "shapes", "--method", "X", "--data-root", data)
    result = run(*asked, "--gallery", tmp_path / "new" / "g.png")
    assert isinstance(result.exception, HubError)
    assert sheet(tmp_path / "new" / "g.png").size
    assert f"thumbnails drawn in {tmp_path / 'new' / 'g.png'}" in result.stderr


def test_sixteen_bits_and_some_maps_as_floats(tmp_path: Path, data: Path) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full(SHAPE, 40000, np.uint16)).save(deep, "PNG")
    (found,) = problems(tmp_path / "1", {**S, "a1.png": deep.getvalue()}, data)
    assert found.startswith("error: damaged maps (")
    assert found.endswith("): a1")
    dark = {name: png(noise(1, *SHAPE) // 128) for name in S}
    found_too = problems(tmp_path / "2", {**dark, "a1.png": S["a1.png"]}, data)
    assert "warning: maps without a value above 1, written as 0..1?: b2, c3" in found_too


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    make_shapes(root, train=4, val=1, sod=1, sod_test=1, small=1)
    return root


def truth_of(drawn: Path, split: str) -> dict[str, np.ndarray]:
    truth = open_target("shapes", drawn).ground_truth(split)
    return {image_id: np.asarray(truth.read(image_id)) for image_id in truth.image_ids}


@pytest.mark.parametrize("kind", ["sal", "label"])
def test_what_the_maps_are_worth_goes_into_the_manifest(
    tmp_path: Path, drawn: Path, kind: str
) -> None:
    """Half of the truth is taken away: what is left of mIoU and MAE is counted here by hand."""
    maps, errors = {}, []
    for image_id, truth in truth_of(drawn, "train_aug").items():
        label = np.where(np.arange(truth.shape[1]) % 2, truth, 255).astype(np.uint8)
        grey = np.where((label > 0) & (label < 255), 255, 0).astype(np.uint8)
        maps[f"{image_id}.png"] = png(grey) if kind == "sal" else png(label, "P")
        errors.append(np.abs(grey / 255 - (truth > 0)).mean())
    given = tinyvoc.unpacked(maps, tmp_path / "maps")
    incoming = Import(given, f"{kind}/x", "shapes", drawn)
    found = {one.metric: one for one in incoming.measure("train_aug")}
    if kind == "sal":
        assert found["mae"].value == pytest.approx(float(np.mean(errors)), abs=5e-5)  # 4 digits
    else:
        assert found["coverage"].value == pytest.approx(0.5, abs=0.01)  # 255 counts nowhere
        assert found["mIoU"].value == pytest.approx(0.5, abs=0.05)  # of each class about half
    one = next(iter(found.values()))
    ids = sorted(truth_of(drawn, "train_aug"))
    assert (one.images, one.image_list, one.split) == (len(ids), list_digest(ids), "train_aug")
    manifest = incoming.write(tmp_path / "key", CARD, results=list(found.values()))
    assert manifest.entry("1.0.0", "shapes").results == list(found.values())
    incoming.write(tmp_path / "bare", CARD)
    with pytest.raises(HubError, match="with other results"):
        incoming.write(tmp_path / "bare", CARD, results=list(found.values()))


def test_activation_maps_are_not_measured_alone(tmp_path: Path, data: Path) -> None:
    given = tinyvoc.unpacked(A, tmp_path / "maps")
    with pytest.raises(UsageError, match="wsssbed-hub curve"):
        Import(given, "cam/x", "shapes", data).measure("train")
    given = tinyvoc.unpacked(S, tmp_path / "sal")
    with pytest.raises(HubError, match="shapes is not below"):
        Import(given, "sal/x", "shapes", tmp_path / "none").measure("train")


@pytest.fixture
def words(tmp_path: Path, data: Path) -> tuple[object, ...]:
    """An import of good maps into ``tmp_path / "out"``."""
    given = tinyvoc.unpacked(S, tmp_path / "maps")
    asked = ("import", given, "sal/x-duts", "--target", "shapes", "--method", "X")
    return (*asked, "--data-root", data, "--to", tmp_path / "out")


def test_each_map_is_decoded_twice(
    words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be looked at, and to be written."""
    read: list[str] = []
    original = PngFolder.read

    def counted(self: PngFolder, image_id: str) -> Any:
        read.append(image_id)
        return original(self, image_id)

    monkeypatch.setattr(PngFolder, "read", counted)
    assert run(*words).exit_code == 0
    assert sorted(read) == sorted([*tinyvoc.IDS] * 2)


def test_maps_that_change_meanwhile_are_an_error(
    words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Import.write

    def changed(self: Import, *arguments: Any, **more: Any) -> Any:
        (tmp_path / "maps" / "a1.png").write_bytes(S["b2.png"])
        return original(self, *arguments, **more)

    monkeypatch.setattr(Import, "write", changed)
    assert "changed while it was imported" in str(run(*words).exception)
    assert not list(tmp_path.rglob("manifest.yaml"))
