"""What every method has to keep, whoever adds one: this file needs no change for a new method.

Methods are found in the file tree. Each runs as people run it, with the arguments of
``small_runs``, on two images.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.__main__ import run_stage
from stages.runtime import study, training
from stages.runtime.catalogue import Stage, all_stages
from stages.runtime.method import Image
from stages.runtime.options import follow_target
from stages.runtime.trainer import Trainer
from stages.seg import SegMethod
from stages.small_runs import Made, made_in, small_run
from stages.sod import SodMethod
from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.datasets import make_shapes, open_target
from wsssbed_hub.evaluation.published import PUBLISHED
from wsssbed_hub.registry.open_artifact import open_artifact

TESTS = Path(__file__).parents[1]
STAGES = [stage for stage in all_stages().values() if stage.load()[1] is not None]
OVERFIT_STEPS = 120
# Terms that nothing brings near 0, so that they only have to fall. Where saliency and the local
# network disagree L2G's target is 0 for the classes and the background; probabilities sum to 1.
FLOORED = {"cam-l2g": {"transfer"}}
ODD = (61, 38)  # height and width of one of the images


@dataclass(frozen=True)
class Material:
    """Two images with all that a method may be trained on."""

    root: Path
    made: Made


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=3, val=2, sod=2, sod_test=1, small=2)
    target = open_target("shapes", root)
    truth = target.ground_truth("train_aug")
    for found in root.rglob(f"{truth.image_ids[0]}.*"):
        if found.suffix in (".jpg", ".png"):
            picture = PilImage.open(found)
            picture.crop((20, 20, 20 + ODD[1], 20 + ODD[0])).save(found)
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("sal", "label")}
    for image_id in truth.image_ids:
        label = np.asarray(truth.read(image_id))
        PilImage.fromarray(label).save(made["label"] / f"{image_id}.png")
        salient = np.where((label > 0) & (label < 255), 255, 0).astype(np.uint8)
        PilImage.fromarray(salient).save(made["sal"] / f"{image_id}.png")
    return Material(root, made)


@dataclass
class Watched:
    """A network that was trained while a test looked on."""

    network: nn.Module
    before: dict[str, Tensor]
    wants_gradient: set[str]
    reached: set[str]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Every network that stages train."""
    found: list[Watched] = []

    class WatchingTrainer(Trainer):
        def __init__(self, network: nn.Module, folder: Path, config: Any) -> None:
            super().__init__(network, folder, config)
            reached: set[str] = set()
            parameters = dict(network.named_parameters())
            for name, parameter in parameters.items():
                if parameter.requires_grad:
                    parameter.register_hook(
                        lambda grad, name=name: reached.add(name) if grad.any() else None
                    )
            before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            wants = {name for name, parameter in parameters.items() if parameter.requires_grad}
            found.append(Watched(network, before, wants, reached))

    monkeypatch.setattr(training, "Trainer", WatchingTrainer)
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, nn.Module, Any]]:
    """Method, network and data of every training."""
    found: list[tuple[Any, nn.Module, Any]] = []
    whole = training.trained_network

    def keeping(session: Any, make: Any, data: Any, *rest: Any, **options: Any) -> Any:
        result = whole(session, make, data, *rest, **options)
        found.append((result.method, result.network, data))
        return result

    monkeypatch.setattr(study, "trained_network", keeping)
    return found


@pytest.fixture(params=STAGES, ids=lambda stage: stage.name)
def stage(request: pytest.FixtureRequest) -> Stage:
    return request.param


def run(stage: Stage, material: Material, out: Path, *more: str, trains: bool = True) -> int:
    """The exit code of the stage, run on two images; ``more`` arguments come last and count."""
    arguments = [*small_run(stage, material.made).arguments]
    if not trains:
        arguments = [
            word
            for pair in zip(arguments[::2], arguments[1::2], strict=True)
            if not is_of_training(stage, *pair)
            for word in pair
        ]
    places = ["--data-root", str(material.root), "--out", str(out)]
    common = ["--limit", "2", "--workers", "0", "--device", "cpu"]
    return run_stage(stage, [*arguments, *places, *common, *more])


def is_of_training(stage: Stage, option: str, value: str) -> bool:
    """Whether ``--weights`` refuses it; the helpers that maps need stay."""
    initial = stage.load()[1].initial
    if option == "--init":
        name = value.partition("=")[0] if len(initial) > 1 else next(iter(initial), "")
        return name not in initial or not initial[name].frozen
    return option in ("--steps", "--batch-size")


def weights_below(out: Path) -> list[Path]:
    """Those of every training, the last one last."""
    return sorted(out.rglob("weights.safetensors"), key=lambda path: path.stat().st_mtime_ns)


def test_ssnet_and_all_families_are_among_them() -> None:
    names = {stage.name for stage in STAGES}
    assert {"ssnet", "sod-poolnet", "cam-cam", "seg-deeplabv2"} <= names


def test_activation_methods_have_their_published_labels() -> None:
    """A method's file comes with its row in the table that label, curve and list read."""
    methods = {stage.name.removeprefix("cam-") for stage in STAGES if stage.family == "stages.cam"}
    assert methods <= PUBLISHED.keys(), "add a row to wsssbed_hub/evaluation/published.py"


def test_the_recipes(stage: Stage) -> None:
    _, method = stage.load()
    published = {
        follow_target(method.recipes, "published", target)[0]
        for target in ("voc12", "coco14", "shapes")
    }
    assert published | {"shapes"} <= method.recipes.keys()
    kinds = {type(recipe) for recipe in method.recipes.values()}
    (kind,) = kinds
    assert dataclasses.is_dataclass(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.recipes["shapes"].batch_size = 1
    names = {field.name for field in dataclasses.fields(kind)}
    assert "batch_size" in names
    assert names & {"steps", "epochs"}
    assert method.card.name
    assert method.card.paper


@pytest.mark.slow
def test_its_reference_cases_notice_weights_that_are_loaded_wrongly(stage: Stage) -> None:
    """The tests of the stage's cases, run with one tensor of the checkpoint a tenth too large."""
    name = stage.name.replace("-", "_")
    tests = sorted(map(str, (TESTS / "stages").glob(f"test_conformance_{name}*.py")))
    assert tests
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "sabotage", "-p", "no:xdist", *tests],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS / "helpers"), *sys.path])},
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert " failed" in done.stdout
    assert "error" not in done.stdout.splitlines()[-1]  # they fail, and are not merely broken


def test_a_run_leaves_maps_of_the_sizes_of_the_images(
    stage: Stage, material: Material, tmp_path: Path
) -> None:
    assert run(stage, material, tmp_path, "--steps", "1") == 0
    target = open_target("shapes", material.root)
    sizes = [target.size(image_id) for image_id in target.image_ids("train_aug")[:2]]
    assert ODD in sizes
    for key, entry in made_in(tmp_path).items():
        verify_folder(tmp_path / key)
        if entry.images is None:
            continue
        maps = open_artifact(tmp_path / key, "shapes")
        found = [np.asarray(getattr(m, "activations", m)).shape[-2:] for _, m in maps]
        assert found == sizes


def test_gradients_reach_every_trained_parameter(
    stage: Stage, material: Material, watched: list[Watched], tmp_path: Path
) -> None:
    assert run(stage, material, tmp_path, "--steps", "2") == 0
    assert watched
    for one in watched:
        for name, parameter in one.network.named_parameters():
            assert (name in one.wants_gradient) == (name in one.reached), name
            moved = not torch.equal(parameter, one.before[name])
            assert moved == (name in one.wants_gradient), name
            assert parameter.isfinite().all(), name


def test_the_same_seed_gives_the_same_bytes(
    stage: Stage, material: Material, tmp_path: Path
) -> None:
    made = []
    for number, seed in enumerate(("5", "5", "6")):
        out = tmp_path / str(number)
        assert run(stage, material, out, "--steps", "2", "--seed", seed) == 0
        weights = [path.read_bytes() for path in weights_below(out)]
        made.append((weights, {key: entry.content for key, entry in made_in(out).items()}))
    assert made[0] == made[1]
    assert made[0][0] != made[2][0]


def test_weights_come_back_from_their_file(
    stage: Stage, material: Material, tmp_path: Path
) -> None:
    """And make the same maps, when the two images are in the network at once."""
    assert run(stage, material, tmp_path / "trained", "--steps", "1") == 0
    weights = ["--weights", str(weights_below(tmp_path / "trained")[-1])]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        more = [*weights, "--workers", "1"]
        assert run(stage, material, tmp_path / "given", *more, trains=False) == 0
    finally:
        torch.set_num_threads(threads)
    before, after = (made_in(tmp_path / name) for name in ("trained", "given"))
    assert after
    for key, entry in after.items():
        # Labels may be those that the network was trained on, which it did not make itself.
        if not key.startswith("label/"):
            assert entry.content == before[key].content, key


def test_a_foreign_checkpoint_is_refused(
    stage: Stage, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_file({"head.weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    weights = str(tmp_path / "foreign.safetensors")
    assert run(stage, material, tmp_path / "out", "--weights", weights, trains=False) == 1
    assert "unknown: head.weight" in capsys.readouterr().err


@pytest.mark.slow
def test_two_images_can_be_overfitted(
    stage: Stage,
    material: Material,
    trained: list[tuple[Any, nn.Module, Any]],
    tmp_path: Path,
) -> None:
    assert run(stage, material, tmp_path, "--steps", str(OVERFIT_STEPS)) == 0
    logs = sorted(tmp_path.rglob("log.jsonl"))
    assert logs
    phases = [p for method, network, data in trained for p in method.phases(network, data)]
    if any(phase.turns for phase in phases):
        pytest.skip("adversaries: what one gains the other loses")
    floored = FLOORED.get(stage.name, set())
    for log in logs:
        terms = [json.loads(line)["terms"] for line in log.read_text().splitlines()]
        tenth = len(terms) // 10
        every = {name for of_step in terms for name in of_step}
        for names, share in ((every - floored, 0.3), (every & floored, 1.0)):
            losses = [sum(of_step.get(name, 0.0) for name in names) for of_step in terms]
            if names:
                assert np.mean(losses[-tenth:]) < share * np.mean(losses[:tenth]), (log, names)
    with torch.inference_mode():
        for method, network, data in trained:
            assert mistakes(method, network, data) < 0.1


def mistakes(method: Any, network: nn.Module, data: Any) -> float:
    """Of the predictions for the training images, 0 to 1; 0 where nothing says what is right."""
    found: list[float] = []
    for image_id in data.image_ids:
        if isinstance(method, SodMethod) and data.masks is not None:
            saliency = method.saliency(network, Image(image_id, data.read_image(image_id)))
            found.append(np.abs(saliency / 255 - data.read_mask(image_id) / 255).mean())
        elif isinstance(method, SegMethod):
            logits = method.logits(network, Image(image_id, data.read_image(image_id)))
            truth = data.read_label(image_id)
            found.append((logits.argmax(0).cpu().numpy() != truth)[truth != 255].mean())
    return float(np.mean(found)) if found else 0.0
