"""What every method has to keep, whoever adds one: this file needs no change for a new method.

Methods are found in the file tree and run with their recipe for ``shapes``, on two images.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stages.cam import CamData
from stages.runtime.catalogue import Stage, all_stages
from stages.runtime.checkpoint import load_weights, save_weights
from stages.runtime.determinism import reseed
from stages.runtime.method import Image, Method, Phase
from stages.runtime.trainer import TrainConfig, Trainer
from stages.seg import SegData
from wsssbed_hub.datasets import make_shapes, open_sod_dataset, open_target
from wsssbed_hub.utils.errors import HubError

TESTS = Path(__file__).parents[1]
STAGES = [stage for stage in all_stages().values() if stage.module != stage.family]
OVERFIT_STEPS = 120


@dataclass(frozen=True)
class Family:
    """How the methods of a folder are made, fed and asked."""

    arguments: tuple[Any, ...]
    """Of the constructor, beside recipe and scratch folder."""
    data: Any
    """Two images."""
    predict: Callable[[Any, nn.Module, np.ndarray], np.ndarray]
    """Method, network and image to the maps, the two last axes the image's."""
    mistakes: Callable[[Callable[[np.ndarray], np.ndarray]], float]
    """Of a prediction for the two images, against the ground truth, 0 to 1."""


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    root = tmp_path_factory.mktemp("data")
    make_shapes(root, train=3, val=1, sod=2, sod_test=1, small=1)
    sod = open_sod_dataset("shapes", root)
    target = open_target("shapes", root)
    truth = target.ground_truth("train_aug")
    ids = target.image_ids("train_aug")[:2]
    masks = SimpleNamespace(
        name="masks",
        image_ids=ids,
        read=lambda image_id: (truth.read(image_id) > 0).astype(np.uint8) * 255,
    )
    classes = np.arange(target.num_classes)

    def sod_mistakes(predict: Callable[[np.ndarray], np.ndarray]) -> float:
        pairs = [(predict(sod.read_image(one)), sod.read_mask(one)) for one in sod.image_ids]
        return float(np.mean([np.abs(s / 255 - m / 255).mean() for s, m in pairs]))

    def seg_mistakes(predict: Callable[[np.ndarray], np.ndarray]) -> float:
        pairs = [(predict(target.read_image(one)).argmax(0), truth.read(one)) for one in ids]
        return float(np.mean([(p != t)[t != 255].mean() for p, t in pairs]))

    data = CamData(target, ids, saliency=masks)  # type: ignore[arg-type]
    return {
        "sod": Family(
            (), sod, lambda m, net, rgb: m.saliency(net, Image("a", rgb))[None], sod_mistakes
        ),
        "cam": Family(
            (target.num_classes,),
            data,
            lambda method, network, rgb: method.activations(
                network, Image("a", rgb, classes), data
            ),
            lambda predict: 0.0,  # nothing says where the maps have to be; the loss must drop
        ),
        "seg": Family(
            (target.num_classes,),
            SegData(target, ids, truth),
            lambda method, network, rgb: method.logits(network, Image("a", rgb)).numpy(),
            seg_mistakes,
        ),
    }


@pytest.fixture(params=STAGES, ids=lambda stage: stage.name)
def stage(request: pytest.FixtureRequest) -> Stage:
    return request.param


@pytest.fixture
def family(stage: Stage, families: dict[str, Family]) -> Family:
    return families[stage.family.removeprefix("stages.")]


def make(stage: Stage, family: Family, scratch: Path, **changes: Any) -> Any:
    """The method with its recipe for ``shapes``, changed where it has such fields."""
    _, method = stage.load()
    recipe = method.recipes["shapes"]
    known = {field.name for field in dataclasses.fields(recipe)}
    recipe = dataclasses.replace(recipe, **{k: v for k, v in changes.items() if k in known})
    return method(recipe, scratch, *family.arguments)


def build(method: Method, seed: int = 0) -> nn.Module:
    reseed(seed, "build")
    return method.build()


def trained(
    method: Any,
    network: nn.Module,
    data: Any,
    folder: Path,
    seed: int = 0,
    steps: int | None = None,
) -> nn.Module:
    """The network after the training, or after ``steps`` steps of every phase."""

    def shortened(phase: Phase) -> Phase:
        return phase if steps is None else dataclasses.replace(phase, steps=steps)

    config = TrainConfig(seed, torch.device("cpu"))
    phases = (shortened(phase) for phase in method.phases(network, data) if phase.steps)
    Trainer(network, folder, config).run(phases)
    return network.eval()


def test_the_recipes(stage: Stage) -> None:
    _, method = stage.load()
    assert {"published", "shapes"} <= method.recipes.keys()
    kinds = {type(recipe) for recipe in method.recipes.values()}
    (kind,) = kinds
    assert dataclasses.is_dataclass(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.recipes["published"].batch_size = 1
    names = {field.name for field in dataclasses.fields(kind)}
    assert "batch_size" in names
    assert names & {"steps", "epochs"}
    assert method.card.name
    assert method.card.paper


def test_the_reference_case_is_tested(stage: Stage) -> None:
    assert (TESTS / "conformance" / stage.name / "README.md").is_file()
    assert (TESTS / "stages" / f"test_conformance_{stage.name.replace('-', '_')}.py").is_file()


@pytest.mark.parametrize("size", [(113, 144), (61, 38)])
def test_a_map_has_the_size_of_its_image(
    stage: Stage, family: Family, tmp_path: Path, size: tuple[int, int]
) -> None:
    method = make(stage, family, tmp_path)
    network = build(method).eval()
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    with torch.inference_mode():
        maps = family.predict(method, network, rgb)
        again = family.predict(method, network, rgb)
    assert maps.shape[1:] == size
    assert maps.dtype == (np.float32 if stage.name.startswith("seg-") else np.uint8)
    np.testing.assert_array_equal(maps, again)


def test_gradients_reach_every_trained_parameter(
    stage: Stage, family: Family, tmp_path: Path
) -> None:
    method = make(stage, family, tmp_path, batch_size=2)
    network = build(method)
    reached = set()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(
                lambda gradient, name=name: reached.add(name) if gradient.any() else None
            )
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    trained(method, network, family.data, tmp_path, steps=2)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (name in reached), name
        assert parameter.requires_grad != torch.equal(parameter, before[name]), name
        assert parameter.isfinite().all(), name


def test_the_same_seed_gives_the_same_bytes(stage: Stage, family: Family, tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        method = make(stage, family, folder, batch_size=2)
        network = trained(method, build(method, seed), family.data, folder, seed, steps=2)
        save_weights(network, folder / "weights.safetensors")
        files.append((folder / "weights.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_weights_come_back_from_their_file(stage: Stage, family: Family, tmp_path: Path) -> None:
    method = make(stage, family, tmp_path)
    first, second = build(method, 1).eval(), build(method, 2).eval()
    save_weights(first, tmp_path / "weights.safetensors")
    load_weights(second, tmp_path / "weights.safetensors")
    rgb = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)
    with torch.inference_mode():
        maps = [family.predict(method, network, rgb) for network in (first, second)]
    np.testing.assert_array_equal(*maps)


def test_a_foreign_checkpoint_is_refused(stage: Stage, family: Family, tmp_path: Path) -> None:
    network = build(make(stage, family, tmp_path))
    with pytest.raises(HubError, match=r"unknown: head\.weight"):
        network.load_published({"head.weight": torch.ones(2, 2)})  # type: ignore[operator]


@pytest.mark.slow
def test_two_images_can_be_overfitted(stage: Stage, family: Family, tmp_path: Path) -> None:
    method = make(stage, family, tmp_path, steps=OVERFIT_STEPS, batch_size=2)
    network = trained(method, build(method), family.data, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    tenth = len(losses) // 10
    assert np.mean(losses[-tenth:]) < 0.3 * np.mean(losses[:tenth])
    with torch.inference_mode():
        assert family.mistakes(lambda rgb: family.predict(method, network, rgb)) < 0.1
