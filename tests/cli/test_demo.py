"""The demo is a list of commands; here, that they fit together. CI runs them."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reports import full_report
from samples import Hub, key_folder, provenance

from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import MethodCitation
from wsssbed_hub.artifacts.shard_writer import write_maps
from wsssbed_hub.cli import demo
from wsssbed_hub.datasets import make_shapes, open_target
from wsssbed_hub.report.summary import Summary
from wsssbed_hub.utils.errors import HubError, UsageError

OUT = Path("out")
VST = demo.SaliencyModel("sod-vst", "sal/vst-{data}")
MOVE = demo.SaliencyModel("sod-move", "sal/move")
PLAIN = demo.Demo(OUT)
WHOLE = demo.Demo(OUT, models=(VST, MOVE), ssnet=True)
ZOO = demo.Demo(OUT, models=(VST, MOVE), segmentation=False)


def lines(todo: demo.Demo) -> list[str]:
    return [step.line for step in todo.steps()]


@pytest.mark.parametrize("todo", [PLAIN, WHOLE, ZOO])
def test_nothing_is_used_before_it_is_made(todo: demo.Demo) -> None:
    """Every key that is pulled was pushed, every folder that is pushed was made by a stage."""
    pushed: set[str] = set()
    pulled: set[str] = set()
    for step in todo.steps():
        words = list(step.words)
        if words[0] == "push":
            pushed.add(words[1].removeprefix("out/artifacts/"))
        if words[0] == "pull":
            assert words[1] in pushed
            pulled.add(f"out/pulled/{words[1]}")
        for word in words[1:]:
            if word.startswith("out/pulled/") and words[0] != "pull":
                assert word in pulled
        if words[0] == "report":
            kinds = ("sal/", "cam/", "label/", "weights/")
            named = {word for word in words if word.startswith(kinds)}
            assert named <= pushed
            # What one method makes is shown wherever it can be.
            assert {k for k in pushed if "ssnet" in k or k.startswith("sal/")} <= named
    assert all(Key.parse(key) for key in pushed)
    kinds = {"sal", "cam"} if todo is ZOO else {"sal", "cam", "label", "weights"}
    assert {key.split("/")[0] for key in pushed} == kinds


def test_quick_trains_less_but_runs_the_same_steps() -> None:
    quick = demo.Demo(OUT, demo.QUICK, models=(VST, MOVE), ssnet=True)
    assert [step.title for step in quick.steps()] == [step.title for step in WHOLE.steps()]
    assert all("--steps 20" in line for line in lines(quick) if "--recipe shapes" in line)


@pytest.mark.parametrize(
    "more", [demo.Demo(OUT, models=(VST, MOVE)), demo.Demo(OUT, ssnet=True), WHOLE]
)
def test_other_methods_come_on_top(more: demo.Demo) -> None:
    """What the demo does without them is done in the same way, so that they can be added later."""
    plain = lines(PLAIN)[:-1]
    assert lines(more)[: len(plain)] == plain
    assert len(lines(more)) > len(plain) + 1


def test_a_model_is_trained_on_each_dataset_that_its_key_can_name() -> None:
    trained = [step.words[:3] for step in ZOO.steps() if step.words[0].startswith("sod-")]
    assert trained == [
        ("sod-poolnet", "--data", "shapes-small"),
        ("sod-poolnet", "--data", "shapes"),
        ("sod-vst", "--data", "shapes-small"),
        ("sod-vst", "--data", "shapes"),
        ("sod-move", "--data", "shapes"),
    ]


def test_without_segmentation_nothing_is_trained_on_labels() -> None:
    assert not [line for line in lines(ZOO) if "pseudo" in line or "seg-deeplabv2" in line]


def test_the_stages_say_which_maps_they_make() -> None:
    """Here their program runs, and with it torch."""
    assert demo.saliency_models(["sod-vst", "sod-move"]) == [VST, MOVE]


def test_no_program_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.subprocess, "run", None)
    assert demo.saliency_models([]) == []
    with pytest.raises(UsageError, match="a part of every demo"):
        demo.saliency_models(["sod-poolnet"])


def test_a_failing_step_says_which_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = demo.Step("fail on purpose", "hub", ("pull", "no-key"))
    never = demo.Step("never reached", "hub", ("list",))
    monkeypatch.setattr(demo.Demo, "steps", lambda _: [failing, never])
    said: list[str] = []
    with pytest.raises(HubError, match=r"fail on purpose.* exit code 2.*run the demo again"):
        demo.run(demo.Demo(tmp_path), said.append)
    assert "wsssbed-hub pull no-key" in said[0]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("sssnet", "'ssnet'"), ("cam-cam", "no saliency model"), ("sod-poolnet", "every demo")],
)
def test_what_is_no_other_model_is_refused(
    name: str, message: str, command: Hub, tmp_path: Path
) -> None:
    done = command("demo", "--with", name, "--to", tmp_path / "demo")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "demo").exists()


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """The folder of a demo whose steps are done: data, maps of PoolNet, the trainings' records."""
    folder = tmp_path / "demo"
    make_shapes(folder / "data", train=4, val=1, sod=2, sod_test=1, small=1)
    target = open_target("shapes", folder / "data")
    ids = target.image_ids("train_aug")
    maps = {i: np.zeros(target.size(i), np.uint8) for i in ids}
    for name in demo.SOD_DATASETS:
        complete(
            folder / "pulled/sal" / f"poolnet-{name}",
            write_maps(
                folder / "pulled/sal" / f"poolnet-{name}", "sal", ids, maps.__getitem__, settings={}
            ),
            key=f"sal/poolnet-{name}",
            target="shapes",
            version="1.0.0",
            title="For a test",
            method=MethodCitation(name="Test"),
            provenance=provenance(),
        )
        run = folder / "artifacts/runs" / f"sod-poolnet-{name}"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"seconds": 90.0}))
    key_folder(folder / "artifacts" / demo.CAM, "cam", name="cam")
    return folder


def test_summary_and_picture_lie_beside_the_report(
    command: Hub, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the steps are one, which prints the report that the others would lead to."""
    report = full_report()
    rows = [report.rows[0].model_copy(update={"name": "sal/poolnet-shapes@1.0.0"})]
    (tmp_path / "report").write_text(report.model_copy(update={"rows": rows}).dump())
    show = f"import pathlib; print(pathlib.Path({str(tmp_path / 'report')!r}).read_text())"

    class Print(demo.Step):
        argv = [sys.executable, "-c", show]  # noqa: RUF012

    printing = Print("compare", "hub", ("report",), ended / "report.json")
    monkeypatch.setattr(demo.Demo, "steps", lambda _: [printing])
    done = command("demo", "--to", ended, "--seed", "3", "--quick", "--without-segmentation")
    assert done.code == 0, done.err
    assert "sal/poolnet-shapes" in done.out
    summary = Summary.model_validate_json((ended / "summary.json").read_text())
    assert summary.command == "wsssbed-hub demo --seed 3 --quick --without-segmentation"
    assert summary.minutes is None  # the folder was there before
    assert [row.name for row in summary.rows] == ["sal/poolnet-shapes", "mean of the masks"]
    assert summary.rows[0].minutes == 1.5
    assert summary.rows[1].mae is not None
    assert summary.rows[1].s_measure is not None
    picture = Image.open(BytesIO((ended / "maps.png").read_bytes()))
    columns = 4  # the image, two trainings of PoolNet, the ground truth
    assert picture.width // columns > 100
