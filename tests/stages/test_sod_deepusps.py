"""What the reference case does not show; the case itself: test_conformance_sod_deepusps.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from references import checkpoint
from torch import Tensor

from stages import sod
from stages.runtime.method import Phase
from stages.sod import deepusps
from stages.sod.deepusps import RECIPES, DeepUsps, Method, moving_average
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.datasets import open_sod_images
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError, UsageError

TINY = replace(RECIPES["shapes"], width=2, size=16, batch_size=2, round_epochs=3, fusion_epochs=3)


class Maps:
    """The same map for each of the images."""

    def __init__(self, plane: np.ndarray) -> None:
        self.plane = plane

    def read(self, image_id: str) -> np.ndarray:
        return self.plane


def images(number: int = 4, **maps: np.ndarray) -> Any:
    """Dark images with a bright square in the middle, and maps of them."""
    rgb = np.full((32, 24, 3), 30, np.uint8)
    rgb[10:22, 8:16] = 220
    return SimpleNamespace(
        image_ids=[f"image{n}" for n in range(number)],
        read_image=lambda image_id: rgb,
        maps={name: Maps(plane) for name, plane in maps.items()},
    )


def phases(folder: Path, data: Any, **changes: Any) -> tuple[DeepUsps, list[Phase]]:
    torch.manual_seed(0)
    method = Method(replace(TINY, **changes), folder)
    network = method.build()
    return network, list(method.phases(network, data))


def sample(phase: Phase) -> dict[str, np.ndarray]:
    assert callable(phase.sources)
    found: Any = phase.sources()["images"].samples.sample(0, np.random.default_rng(0))
    return found


def start(phase: Phase) -> None:
    assert phase.prepare is not None
    phase.prepare()


def test_given_maps_are_learnt_and_others_are_made(tmp_path: Path) -> None:
    given = np.zeros((32, 24), np.uint8)
    given[:16] = 100
    for name, maps in (("rbd", {"rbd": given}), ("mc", {})):
        _, every = phases(tmp_path, images(**maps), methods=(name,))
        start(every[0])
        (label,) = sample(every[0])["labels"]
        assert label.shape == (16, 16)
        if maps:
            np.testing.assert_array_equal(label[:8], np.float32(100) / np.float32(255))
            assert not label[8:].any()
        else:
            assert label[8, 8] == 1  # the bright square
            assert label[0, 0] == 0


def test_averages_become_the_labels_of_the_next_round(tmp_path: Path) -> None:
    given = np.full((32, 24), 51, np.uint8)
    network, every = phases(tmp_path, images(mc=given), methods=("mc",))
    one, two, fusion = every
    assert [phase.name for phase in every] == ["mc, round 1 of 2", "mc, round 2 of 2", "fusion"]
    start(one)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    average = one.memories["average"]
    plane = np.full((16, 16), 0.6, np.float16)
    plane[:4] = 0.9
    average.load_state({"values": {"image0": torch.from_numpy(plane)}, "put": []})
    with torch.no_grad():
        network.seg.weight.add_(1)
    start(two)
    label = sample(two)["labels"][0]
    assert set(np.unique(label[4:])) == {np.float32(153) / np.float32(255)}
    assert set(np.unique(label[:4])) == {np.float32(229) / np.float32(255)}
    assert list(average) == []
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    # Without an average, as after so short a training, a label stays what it was.
    assert callable(two.sources)
    other: Any = two.sources()["images"].samples.sample(1, np.random.default_rng(0))
    assert set(np.unique(other["labels"])) == {np.float32(51) / np.float32(255)}
    start(fusion)
    np.testing.assert_array_equal(sample(fusion)["labels"][0], label)


def test_a_round_remembers_its_predictions_before_the_step_and_the_fusion_none(
    tmp_path: Path,
) -> None:
    data = images()
    network, every = phases(tmp_path, data, crf="none", methods=("mc",))
    start(every[0])
    one = sample(every[0])
    batch = {name: torch.from_numpy(np.stack([value] * 2)) for name, value in one.items()}
    batch["index"] = torch.tensor([2, 0])
    with torch.no_grad():
        expected = network.train()(batch["image"]).softmax(1)[:, 0]
    average = every[0].memories["average"]
    average.begin_step(0)
    every[0].loss({"images": batch}, 0)
    assert list(average) == []
    average.end_epoch("average")
    assert list(average) == ["image0", "image2"]
    for row, image_id in zip(expected, ("image2", "image0"), strict=True):
        found = average.get(image_id)
        assert found is not None
        np.testing.assert_allclose(found, 0.3 * row, atol=1e-3)  # float16
    assert every[-1].memories == {}


def test_an_average_begins_at_zero() -> None:
    average: np.ndarray | None = None
    for _ in range(25):
        average = moving_average(average, np.ones((1, 1), np.float32), 0.7)
    assert average is not None
    assert average.item() == pytest.approx(1 - 0.7**25)


def test_rounds_too_short_for_any_average_are_refused(tmp_path: Path) -> None:
    phases(tmp_path, images(), round_epochs=2)  # 0.51
    with pytest.raises(UsageError, match=r"After 1 epochs of a round an average is 0\.30 at most"):
        phases(tmp_path, images(), round_epochs=1)
    phases(tmp_path, images(), round_epochs=1, refined_threshold=0.2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (6, 6, 6, 6, 6)),
        ({"steps": 1}, (0, 0, 0, 0, 1)),
        ({"steps": 50}, (10, 10, 10, 10, 10)),
        ({"steps": 52}, (10, 10, 10, 10, 12)),
        ({"round_rates": ()}, (6,)),
    ],
)
def test_steps_are_shared_among_the_rounds(
    tmp_path: Path, changes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    _, every = phases(tmp_path, images(), **changes)
    assert tuple(phase.steps for phase in every) == expected
    assert all(phase.schedule(step) > 0 for phase in every for step in range(phase.steps))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 20}, "size=20: choose a multiple of 8"),
        ({"crf": "dens"}, "crf=dens: choose none or one of"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Method(replace(TINY, **changes), Path()).build()


def test_initial_weights_fill_the_backbone_alone() -> None:
    method = Method(RECIPES["published"], Path())
    network = method.build()
    head = network.seg.weight.clone()
    theirs = checkpoint("sod-deepusps")
    cityscapes = {f"module.{key}": value for key, value in theirs.items()}
    cityscapes |= {"module.seg.weight": torch.zeros(19, 512, 1, 1)}
    cityscapes |= {"module.up.weight": torch.zeros(19, 1, 16, 16)}
    base = {k.removeprefix("base."): v for k, v in theirs.items() if k.startswith("base.")}
    imagenet = {f"layer{key}": value for key, value in base.items()}
    imagenet |= {"fc.weight": torch.zeros(1000, 512, 1, 1), "fc.bias": torch.zeros(1000)}
    for state in (cityscapes, imagenet):
        with torch.no_grad():
            network.backbone.levels[5][3].conv2.weight.zero_()
        method.load_initial(network, state, "backbone")
        assert torch.equal(network.backbone.levels[5][3].conv2.weight, base["5.3.conv2.weight"])
        assert torch.equal(network.seg.weight, head)
    del imagenet["layer5.3.conv2.weight"]
    with pytest.raises(HubError, match=r"1 missing: levels\.5\.3\.conv2\.weight"):
        method.load_initial(network, imagenet, "backbone")


OPTIONS = {"data": "shapes-small", "target": "shapes", "device": "cpu", "workers": 0}
SMALL = ["width=2", "size=16", "round_epochs=3", "fusion_epochs=2", "round_rates=1e-3"]


def run(shapes: Path, out: Path, **options: Any) -> Path:
    options = {**OPTIONS, "recipe": "shapes", "set": SMALL, "data_root": shapes, **options}
    sod.run("sod-deepusps", Method, sod.Options(out=out, **options))
    return out / "runs" / "sod-deepusps-shapes-small"


def test_a_training_that_is_stopped_anywhere_ends_with_the_same_bytes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(shapes, tmp_path / "whole", batch_size=2)
    for count in range(1, 4):
        monkeypatch.setattr(deepusps, "label_loss", failing_after(5 * count))
        with pytest.raises(HubError, match="on purpose"):
            run(shapes, tmp_path / "parts", batch_size=2, checkpoint_every=0.0)
    monkeypatch.undo()
    parts = run(shapes, tmp_path / "parts", batch_size=2, checkpoint_every=0.0)
    name = "weights.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    contents = {
        read_manifest(tmp_path / each / "sal/deepusps").entry("1.0.0", "shapes").content
        for each in ("whole", "parts")
    }
    assert len(contents) == 1


def failing_after(calls: int) -> Any:
    left = iter(range(calls))
    loss = deepusps.label_loss

    def fail(*arguments: Any) -> Tensor:
        if next(left, None) is None:
            raise HubError("on purpose")
        return loss(*arguments)

    return fail


def hand_crafted(folder: Path, shapes: Path) -> str:
    folder.mkdir()
    for image_id, path in open_sod_images("shapes-small", shapes).items():
        with PilImage.open(path) as picture:
            PilImage.new("L", picture.size).save(folder / f"{image_id}.png")
    return str(folder)


def test_which_maps_are_taken_follows_from_the_recipe(shapes: Path, tmp_path: Path) -> None:
    hs = hand_crafted(tmp_path / "hs", shapes)
    for changes, maps, message in (
        (["methods=mc,hs,dsr"], [], r"hs and dsr with --maps hs=MAPS.*--set methods=mc,rbd"),
        (["methods=mc,hs,dsr"], [f"hs={hs}"], "those of dsr with --maps dsr=MAPS"),
        ([], [f"hs={hs}"], "names of DeepUSPS are one of mc, rbd"),
        (["methods=mc,gs"], [], "methods=mc,gs: choose some of mc, hs, dsr, rbd"),
        (["methods=mc,mc"], [], "each once"),
        (["methods="], [], "choose some of"),
    ):
        with pytest.raises(UsageError, match=message):
            run(shapes, tmp_path / "out", set=[*SMALL, *changes], maps=maps)
    assert not (tmp_path / "out").exists()


def test_the_card_tells_of_a_small_network_and_of_the_maps(shapes: Path, tmp_path: Path) -> None:
    hs = hand_crafted(tmp_path / "hs", shapes)
    run(shapes, tmp_path, set=[*SMALL, "methods=hs"], maps=[f"hs={hs}"], steps=1, batch_size=2)
    manifest = read_manifest(tmp_path / "sal/deepusps")
    assert "a DRN of 2 channels and 1, 1, 1, 1 blocks in place of DRN-D-105" in manifest.title
    (trained_on,) = manifest.trained_on
    assert (trained_on.dataset, trained_on.supervision) == ("shapes-small", "unsupervised")
    entry = manifest.entry("1.0.0", "shapes")
    assert entry.provenance is not None
    assert entry.provenance.recipe["maps"].keys() == {"hs"}
    assert Method.remark(RECIPES["published"]) == ""
    assert len(list(open_artifact(tmp_path / "sal/deepusps", "shapes"))) == entry.images
