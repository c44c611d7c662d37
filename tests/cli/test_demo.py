"""The demo is a list of commands; here, that they fit together. CI runs them."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reports import full_report
from samples import Hub, key_folder, provenance

from stages.seg._crf import scores_over_seeds
from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import MethodCitation
from wsssbed_hub.artifacts.shard_writer import write_maps
from wsssbed_hub.cli import demo, demo_plan, demo_results
from wsssbed_hub.cli.demo_plan import ActivationMethod, Demo, SaliencyModel, Step
from wsssbed_hub.datasets import make_shapes, open_target
from wsssbed_hub.evaluation.curves import threshold_curve
from wsssbed_hub.registry.open_artifact import Activations, open_artifact
from wsssbed_hub.report.summary import Summary
from wsssbed_hub.utils.errors import HubError, UsageError

OUT = Path("out")
VST = SaliencyModel("sod-vst", "sal/vst-{data}")
MOVE = SaliencyModel("sod-move", "sal/move")
DRS = ActivationMethod("cam-drs", "cam/drs")
EPS = ActivationMethod("cam-eps", "cam/eps-{sal}")
PLAIN = Demo(OUT)
WHOLE = Demo(OUT, models=(VST, MOVE), ssnet=True)
ZOO = Demo(
    OUT,
    models=(VST, MOVE),
    methods=(DRS, EPS),
    networks=("seg-knet",),
    seeds=(0, 1),
    labels_of=("sal/poolnet-shapes", "sal/move"),
)
MAPS = Demo(OUT, models=(VST, MOVE), methods=(EPS,), segmentation=False)


def lines(todo: Demo) -> list[str]:
    return [step.line for step in todo.steps()]


@pytest.mark.parametrize("todo", [PLAIN, WHOLE, ZOO, MAPS])
def test_nothing_is_used_before_it_is_made(todo: Demo) -> None:
    """Every key that is pulled was pushed, every activation map that is measured was trained."""
    pushed: set[str] = set()
    pulled: set[str] = set()
    trained: set[str] = set()
    for step in todo.steps():
        words = list(step.words)
        if words[0].startswith("cam-"):
            sal = f"-{Path(words[words.index('--sal') + 1]).name}" if "--sal" in words else ""
            trained.add(f"out/artifacts/cam/{words[0].removeprefix('cam-')}{sal}")
        if words[0] == "curve":
            assert words[words.index("--cam") + 1] in trained
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
    kinds = {"sal", "cam"} if todo is MAPS else {"sal", "cam", "label", "weights"}
    assert {key.split("/")[0] for key in pushed} == kinds


def test_quick_trains_less_but_runs_the_same_steps() -> None:
    quick = Demo(OUT, demo_plan.QUICK, models=(VST, MOVE), ssnet=True)
    assert [step.title for step in quick.steps()] == [step.title for step in WHOLE.steps()]
    assert all("--steps 20" in line for line in lines(quick) if "--recipe shapes" in line)


@pytest.mark.parametrize(
    "more",
    [
        Demo(OUT, models=(VST, MOVE)),
        Demo(OUT, ssnet=True),
        Demo(OUT, methods=(DRS, EPS)),
        Demo(OUT, networks=("seg-knet",)),
        WHOLE,
    ],
)
def test_other_methods_come_on_top(more: Demo) -> None:
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
    assert not [line for line in lines(MAPS) if "pseudo" in line or "seg-" in line]


def words_of(todo: Demo, first: str) -> list[tuple[str, ...]]:
    return [step.words for step in todo.steps() if step.words[0] == first]


def test_each_activation_map_is_measured_with_each_saliency_map() -> None:
    """EPS learns from the maps of each model that saw the larger dataset, and is labelled without
    any; the others are labelled with all maps."""
    with_eps = ["poolnet-shapes", "vst-shapes", "move"]
    taught = [words[words.index("--sal") + 1] for words in words_of(ZOO, "cam-eps")]
    assert taught == [f"out/pulled/sal/{name}" for name in with_eps]
    measured = {
        Path(words[words.index("--cam") + 1]).name: [
            Path(words[i + 1]).name for i, word in enumerate(words) if word == "--sal"
        ]
        for words in words_of(ZOO, "curve")
    }
    every = ["poolnet-shapes-small", "poolnet-shapes", "vst-shapes-small", "vst-shapes", "move"]
    assert measured == {"cam": every, "drs": every} | {f"eps-{name}": [] for name in with_eps}


def test_each_network_is_trained_on_each_set_of_labels_with_each_seed() -> None:
    for network in ("seg-deeplabv2", "seg-knet"):
        found = words_of(ZOO, network)
        labels = [Path(words[words.index("--labels") + 1]).name for words in found]
        assert sorted(labels) == ["cam-move", "cam-poolnet-shapes", "ground-truth"]
        assert all("--seeds 0,1" in " ".join(words) and "--seed" not in words for words in found)
    (report,) = words_of(ZOO, "report")
    assert "weights/seg-deeplabv2-cam-move-seed0" in report


def test_the_stages_say_what_they_make() -> None:
    """Here their program runs, and with it torch; `--all` takes what it says, but what is there."""
    stages = demo.more_stages([], all_of_them=True)
    assert {"sod-vst": VST.key, "sod-move": MOVE.key}.items() <= stages.items()
    assert {"cam-drs": DRS.key, "cam-eps": EPS.key}.items() <= stages.items()
    assert not {*demo.ALWAYS, "ssnet", "pseudo"} & stages.keys()
    todo = demo.plan(OUT, {name: stages[name] for name in ("sod-vst", "cam-eps", "seg-segformer")})
    assert (todo.models, todo.methods) == ([VST], [EPS])
    assert todo.networks == ["seg-segformer"]


def test_no_program_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.subprocess, "run", None)
    assert demo.more_stages([], all_of_them=False) == {}
    with pytest.raises(UsageError, match="a part of every demo"):
        demo.more_stages(["sod-poolnet"], all_of_them=False)


def test_a_failing_step_says_which_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Step("fail on purpose", "hub", ("pull", "no-key"))
    never = Step("never reached", "hub", ("list",))
    monkeypatch.setattr(Demo, "steps", lambda _: [failing, never])
    said: list[str] = []
    with pytest.raises(HubError, match=r"fail on purpose.* exit code 2.*run the demo again"):
        demo.run(Demo(tmp_path), said.append)
    assert "wsssbed-hub pull no-key" in said[0]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("--with sssnet", "'ssnet'"),
        ("--with pseudo", "no stage that can be added"),
        ("--with cam-cam", "every demo"),
        ("--with sod-poolnet", "every demo"),
        ("--labels-of sal/vst-shapes", "no such maps are made"),
        ("--seeds 0,x", "separated by commas"),
        ("--seeds 0,0", "different numbers"),
        ("--without-segmentation --seeds 0,1", "leave --seeds out"),
        ("--without-segmentation --labels-of sal/poolnet-shapes", "leave --labels-of out"),
    ],
)
def test_what_cannot_be_added_is_refused(
    name: str, message: str, command: Hub, tmp_path: Path
) -> None:
    done = command("demo", *name.split(), "--to", tmp_path / "demo")
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
    for name in demo_plan.SOD_DATASETS:
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
    key_folder(folder / "artifacts" / demo_plan.CAM, "cam", name="cam")
    return folder


def test_summary_and_picture_lie_beside_the_report(
    command: Hub, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the steps are one, which prints the report that the others would lead to."""
    report = full_report()
    rows = [report.rows[0].model_copy(update={"name": "sal/poolnet-shapes@1.0.0"})]
    (tmp_path / "report").write_text(report.model_copy(update={"rows": rows}).dump())
    show = f"import pathlib; print(pathlib.Path({str(tmp_path / 'report')!r}).read_text())"

    class Print(Step):
        argv = [sys.executable, "-c", show]  # noqa: RUF012

    printing = Print("compare", "hub", ("report",), ended / "report.json")
    monkeypatch.setattr(Demo, "steps", lambda _: [printing])
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


def drawn(folder: Path, key: str, seed: int) -> Path:
    """An artifact of random maps over the drawn training images."""
    target = open_target("shapes", folder / "data")
    rng = np.random.default_rng(seed)
    kind = key.split("/")[0]
    ids = target.image_ids("train_aug")

    def read(image_id: str) -> Any:
        shape = target.size(image_id)
        if kind == "sal":
            return rng.integers(0, 256, shape, np.uint8)
        classes = np.array(target.image_labels(image_id))
        return Activations(rng.integers(0, 256, (len(classes), *shape), np.uint8), classes)

    complete(
        folder / key,
        write_maps(folder / key, kind, ids, read, settings={}),
        key=key,
        target="shapes",
        version="1.0.0",
        title="For a test",
        method=MethodCitation(name="Test"),
        provenance=provenance(),
    )
    return folder / key


def test_the_matrix_is_read_from_what_curve_prints(command: Hub, tmp_path: Path) -> None:
    make_shapes(tmp_path / "data", train=4, val=1, sod=2, sod_test=1, small=1)
    sals = [drawn(tmp_path, f"sal/{name}", seed) for seed, name in enumerate(("a", "b"))]
    todo = Demo(tmp_path, methods=(EPS, DRS))  # the table has them in the benchmark's order
    over = ("--target", "shapes", "--data-root", tmp_path / "data", "--json")
    (tmp_path / "curves").mkdir()
    for number, (method, sal, file) in enumerate(todo.curves()):
        maps = drawn(tmp_path, method.key_with(sal or ""), 10 + number)
        words = () if sal else [word for one in sals for word in ("--sal", one)]
        file.write_text(command("curve", "--cam", maps, *words, *over).out)
    cells = {(cell.method, cell.saliency): cell for cell in demo_results.matrix(todo)}
    assert list(cells) == [
        *(("cam", f"sal/{name}") for name in "ab"),
        *(("drs", f"sal/{name}") for name in "ab"),
        ("eps", "sal/poolnet-shapes"),
    ]
    target = open_target("shapes", tmp_path / "data")
    for (method, sal), cell in cells.items():
        key = f"cam/{method}" if cell.at_label_time else f"cam/eps-{Path(sal).name}"
        curve = threshold_curve(
            open_artifact(tmp_path / key, "shapes"),
            target.ground_truth("train"),
            open_artifact(tmp_path / sal, "shapes") if cell.at_label_time else None,
            num_classes=target.num_classes,
        )
        tau = {"cam": 0.1, "drs": 0.5, "eps": 0.2}[method]
        for score, at in ((cell.published, tau), (cell.best, curve.best_tau())):
            assert score is not None
            row = curve.row(at)
            found = (score.tau, score.miou, score.coverage)
            assert found == (at, row["miou_ignored_missed"], row["coverage"])
    assert not cells["eps", "sal/poolnet-shapes"].at_label_time


def test_the_networks_are_read_from_what_their_stage_wrote(tmp_path: Path) -> None:
    """``scores_over_seeds`` is what the stage writes."""
    todo = Demo(tmp_path, networks=("seg-knet",), seeds=(0, 1))
    mious = {}
    for number, network in enumerate(("seg-deeplabv2", "seg-knet")):
        for labels in ("cam-poolnet-shapes-small", "cam-poolnet-shapes", "ground-truth"):
            values = [0.1 * len(mious), 0.1 * len(mious) + 0.04]
            scores = {seed: {"miou": v, "class_iou": [v]} for seed, v in enumerate(values)}
            folder = todo.run_folder(network, labels)
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(scores_over_seeds(scores, [], None)))
            mious[labels, number] = values
    cells = list(demo_results.networks(todo))
    assert [(cell.labels, cell.network) for cell in cells] == [
        (labels, network)
        for labels in ("sal/poolnet-shapes-small", "sal/poolnet-shapes", "ground truth")
        for network in ("seg-deeplabv2", "seg-knet")
    ]
    for cell, values in zip(
        cells,
        [
            mious[labels, number]
            for labels in ("cam-poolnet-shapes-small", "cam-poolnet-shapes", "ground-truth")
            for number in (0, 1)
        ],
        strict=True,
    ):
        assert cell.miou == pytest.approx(sum(values) / 2)
        assert cell.standard_error == pytest.approx(0.02)  # of two values that differ by 0.04
        assert cell.seeds == 2
