"""The command line as people meet it: what it prints, its exit codes, its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import Hub, flip, key_folder, maps_of

from wsssbed_hub.datasets import make_shapes, open_target
from wsssbed_hub.registry.open_artifact import open_artifact


@pytest.fixture
def hub(command: Hub) -> Hub:
    return command


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=12, val=4, sod=2, sod_test=1, small=1)
    return root


@pytest.fixture
def maps(data: Path, tmp_path: Path) -> Path:
    """Folders `sal` and `cam` in the release layout, made from the truth itself."""
    target = open_target("shapes", data)
    truth = target.ground_truth("train_aug")
    for name in ("sal", "cam"):
        (tmp_path / name).mkdir()
    for image_id, label in truth:
        Image.fromarray(np.where(label > 0, 255, 0).astype(np.uint8)).save(
            tmp_path / "sal" / f"{image_id}.png"
        )
        for class_id in target.image_labels(image_id):
            grey = np.where(label == class_id + 1, 128, 20).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "cam" / f"{image_id}_{class_id}.png")
    return tmp_path


HELP = """
import sys
import typer
from typer.main import get_command

def ask(command, call, words):
    sys.argv = ["wsssbed-hub", *words, "--help"]
    try:
        call()
    except SystemExit as end:
        assert not end.code, words
    for name, below in getattr(command, "commands", {}).items():
        ask(below, call, [*words, name])

small = typer.Typer()
small.command("one")(lambda number: None)
small.command("two")(lambda number: None)
ask(get_command(small), small, [])
before = set(sys.modules)
from wsssbed_hub.cli import app as cli

ask(get_command(cli.app), cli.main, [])
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """0.3 s is the promise. What is imported beside typer decides it; a clock would measure what
    else runs on the machine."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split()) - sys.stdlib_module_names
    assert loaded <= {"wsssbed_hub", "platformdirs"}


def test_push_list_show_pull_verify(hub: Hub, tmp_path: Path) -> None:
    key_folder(tmp_path / "made")
    assert hub("push", tmp_path / "made").out.startswith("sal/test@1.0.0 is in")
    (row,) = json.loads(hub("list", "--method", "test", "--json").out)
    assert (row["key"], row["version"], row["target"]) == ("sal/test", "1.0.0", "shapes")
    assert json.loads(hub("list", "--kind", "weights", "--json").out) == []
    assert "version 1.0.0" in hub("show", "sal/test").out
    assert json.loads(hub("show", "sal/test", "--json").out)["key"] == "sal/test"
    pulled = Path(hub("pull", "sal/test").out.strip())
    assert open_artifact(pulled).digest() == open_artifact(tmp_path / "made").digest()
    assert hub("verify", "sal/test").out.startswith("ok  sal/test@1.0.0 over shapes: 3 images")


def test_pull_as_png(hub: Hub, tmp_path: Path) -> None:
    key_folder(tmp_path / "made", "cam")
    hub("push", tmp_path / "made")
    goal = tmp_path / "png"
    assert hub("pull", "cam/test", "--as", "png", "--to", goal).out.strip() == str(goal)
    assert open_artifact(goal).digest() == open_artifact(tmp_path / "made").digest()
    refused = hub("pull", "cam/test", "--as", "png")
    assert refused.code == 2
    assert "--to" in refused.err


def test_push_under_another_version(hub: Hub, tmp_path: Path) -> None:
    key_folder(tmp_path / "one")
    key_folder(tmp_path / "two", maps=maps_of("sal", ["other_000001"]))
    hub("push", tmp_path / "one")
    refused = hub("push", tmp_path / "two")
    assert refused.code == 1
    assert "Traceback" not in refused.err
    assert hub("push", tmp_path / "two", "--version", "1.1.0").code == 0
    assert hub("pull", "sal/test@1.1.0").code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["pull", "sal/tets"], 2, "sal/test"),
        (["pull", "Sal/VST"], 2, "not a key"),
        (["pull", "sal/test@2.0.0"], 2, "1.0.0"),
        (["pull", "sal/test", "--target", "voc12"], 2, "shapes"),
        (["verify", "nowhere/at/all"], 2, "neither"),
        (["push", "nowhere"], 1, "manifest"),
        (["list", "--kind", "maps"], 2, "sal"),
        (["list", "--registry", "hf://datasets/x"], 2, "hf:NAMESPACE"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_mistakes_are_said_in_words(
    hub: Hub, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    key_folder(tmp_path / "made")
    hub("push", tmp_path / "made")
    outcome = hub(*words)
    assert outcome.code == code
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_flipped_bit_is_found_by_pull(hub: Hub, tmp_path: Path) -> None:
    manifest = key_folder(tmp_path / "made")
    hub("push", tmp_path / "made")
    (chosen,) = manifest.entries()
    stored = tmp_path / "registry" / "wsssbed" / "sal-test" / chosen.entry.files[0].path
    flip(stored, 100)
    outcome = hub("pull", "sal/test")
    assert outcome.code == 1
    assert chosen.entry.files[0].sha256 in outcome.err


def test_label_records_its_settings(hub: Hub, data: Path, maps: Path) -> None:
    words = ["label", "--cam", maps / "cam", "--sal", maps / "sal", "--target", "shapes"]
    words += ["--to", maps / "labels", "--data-root", data]
    assert hub(*words, "--tau", "0.3").code == 0
    settings = json.loads((maps / "labels" / "settings.json").read_text())["settings"]
    assert (settings["tau"], settings["tau_origin"]) == (0.3, "given")
    assert hub(*words, "--tau", "0.3").code == 0
    other = hub(*words, "--tau", "0.4")
    assert other.code == 1
    assert "0.3 there, 0.4 now" in other.err
    # Maps without a key have no method, so nothing published either.
    assert hub(*words).code == 2


def test_eval_of_labels_made_from_the_truth(hub: Hub, data: Path, maps: Path) -> None:
    rooted = ["--target", "shapes", "--data-root", data]
    given = ["--cam", maps / "cam", "--sal", maps / "sal", "--tau", "0.3"]
    hub("label", *given, "--to", maps / "labels", *rooted)
    split = ["--split", "train_aug"]
    score = json.loads(hub("eval", "labels", maps / "labels", *split, *rooted, "--json").out)
    # Made from the truth itself; only objects beside the classes are salient without a label.
    assert score["coverage"] <= 1
    assert min(value for value in score["class_iou"] if value is not None) == 1
    table = hub("eval", "labels", maps / "labels", *split, *rooted)
    assert "mean (mIoU)" in table.out
    refused = hub("eval", "labels", maps / "sal", *split, *rooted)
    assert refused.code == 2
    measures = hub("eval", "saliency", maps / "sal", *split, *rooted, "--json").out
    by_name = {row["measure"]: row["value"] for row in json.loads(measures)}
    assert by_name["mae"] == 0


def test_curve_knows_which_thresholds_are_right(hub: Hub, data: Path, maps: Path) -> None:
    words = ["curve", "--cam", maps / "cam", "--sal", maps / "sal", "--target", "shapes"]
    words += ["--split", "train_aug", "--data-root", data]
    (curve,) = json.loads(hub(*words, "--json").out).values()
    values = np.array(curve["miou_ignored_missed"])
    # Objects have the value 128: below it all labels are right, from it on all are lost.
    assert (values[:128] == 1).all()
    assert values[128] < 0.5
    outcome = hub(*words, "--plot", maps / "curve.png")
    assert outcome.code == 0
    with Image.open(maps / "curve.png") as picture:
        assert picture.format == "PNG"


def test_data_commands(hub: Hub, data: Path, tmp_path: Path) -> None:
    there = {
        row["name"]: row["there"]
        for row in json.loads(hub("data", "list", "--json", "--data-root", data).out)
    }
    assert there["shapes"] == "yes"
    assert there["voc12"] == "no"
    assert hub("data", "check", "shapes", "--data-root", data).code == 0
    missing = hub("data", "check", "voc12", "--data-root", tmp_path)
    assert missing.code == 1
    assert "host.robots.ox.ac.uk" in missing.out
    wrong = hub("data", "check", "voc21")
    assert wrong.code == 2
    assert "voc12" in wrong.err


def test_report_compares_saliency_maps(hub: Hub, data: Path, maps: Path) -> None:
    words = ["report", "--cam", maps / "cam", "--sal", maps / "sal", "--target", "shapes"]
    words += ["--split", "train_aug", "--data-root", data, "--images", "2"]
    outcome = hub(*words, "--to", maps / "report.html")
    assert outcome.code == 0, outcome.err
    assert "<!doctype html>" in (maps / "report.html").read_text().lower()


def test_a_full_disk_is_an_error_with_advice(
    hub: Hub, tmp_path: Path, small_disk: tuple[Path, Callable[[int], None]]
) -> None:
    folder, resize = small_disk
    big = {
        f"shapes_{n:06d}": np.random.default_rng(n).integers(0, 256, (400, 400), np.uint8)
        for n in range(12)
    }
    key_folder(tmp_path / "made", maps=big)
    hub("push", tmp_path / "made")
    outcome = hub("pull", "sal/test", "--to", folder / "maps")
    assert outcome.code == 1
    assert "full" in outcome.err or "room" in outcome.err
    assert not (folder / "maps").exists()
    resize(8 << 20)
    assert hub("pull", "sal/test", "--to", folder / "maps").code == 0
