"""What the reference cases do not show; those are in test_conformance_cam_drs.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from references import checkpoint
from torch import Tensor, nn

from stages import cam
from stages.cam import drs
from stages.cam._drs import Controller, Drs, Suppression
from stages.cam.drs import RECIPES, Crops, Method, refined
from stages.runtime.method import Image, Phase
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.utils.errors import HubError, UsageError

LABELS = {"a": (0,), "b": (1, 3), "c": (2,)}
TINY = replace(RECIPES["shapes"], width=2, scaled=24, crop=16, scales=(16, 24), batch_size=2)


def dataset(height: int = 30, width: int = 45) -> Any:
    """Images of three classes, the left half of each dark."""
    rgb = np.full((height, width, 3), 200, np.uint8)
    rgb[:, : width // 2] = 30
    return SimpleNamespace(
        image_ids=list(LABELS),
        num_classes=4,
        read_image=lambda image_id: rgb,
        image_labels=LABELS.__getitem__,
        image=lambda image_id: Image(image_id, rgb, np.array(LABELS[image_id])),
    )


def method(folder: Path = Path(), **changes: Any) -> Method:
    return Method(replace(TINY, **changes), folder, 4)


def phases(folder: Path, **changes: Any) -> tuple[Drs, list[Phase]]:
    torch.manual_seed(0)
    one = method(folder, **changes)
    network = one.build()
    return network, list(one.phases(network, dataset()))


def dark_left(pixels: np.ndarray) -> bool:
    row = pixels.mean((0, 1))
    return bool(row[:4].mean() < row[-4:].mean())


def test_crops_come_from_a_square_and_are_mirrored_half_of_the_time() -> None:
    source = Crops(dataset(), TINY)
    edges, mirrored = set(), 0
    for seed in range(100):
        one = source.sample(1, np.random.default_rng(seed))
        assert one["image"].shape == (3, 16, 16)
        assert one["label"].tolist() == [0, 1, 0, 1]
        edges.add(int((one["image"][0, 0] < 0).sum()))  # dark pixels of a row
        mirrored += not dark_left(one["image"])
    assert min(edges) >= 3  # of 12 in the square at most 8 are cut off, and the edge is blurred
    assert max(edges) <= 13
    assert len(edges) > 6
    assert 30 <= mirrored <= 70  # 50 with a deviation of 5


def test_the_refinement_learns_the_classifiers_maps(tmp_path: Path) -> None:
    network, (_, second) = phases(tmp_path)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    assert second.prepare is not None
    second.prepare()
    assert callable(second.sources)
    samples: Any = second.sources()["squares"].samples
    data = dataset()
    expected = method(tmp_path, maps="classifier").activations(
        Drs(network.classifier.eval(), None),
        Image("b", data.read_image("b"), np.array([1, 3])),
        data,
    )
    assert expected.any()
    mirrored = Counter()  # type: ignore[var-annotated]
    square = replace(TINY, crop=16)
    with torch.inference_mode():
        maps = Method(square, tmp_path, 4).merged(
            network.classifier, drs.localized, data.image("b"), (16, 16)
        )
    for seed in range(40):
        one = samples.sample(1, np.random.default_rng(seed))
        assert (one["maps"].dtype, one["maps"].shape) == (np.uint8, (4, 16, 16))
        assert not one["maps"][[0, 2]].any()
        flipped = not dark_left(one["image"])
        np.testing.assert_array_equal(one["maps"][[1, 3]], maps[..., :: -1 if flipped else 1])
        mirrored[flipped] += 1
    assert min(mirrored[True], mirrored[False]) > 8
    for key, value in network.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_the_refinement_trains_its_own_network_alone(tmp_path: Path) -> None:
    network, (first, second) = phases(tmp_path)
    trained = [
        {p for group in phase.optimizer().param_groups for p in group["params"]}  # type: ignore[union-attr]
        for phase in (first, second)
    ]
    assert network.refinement is not None
    assert trained == [{*network.classifier.parameters()}, {*network.refinement.parameters()}]


class Given(nn.Module):
    """A network whose raw maps are the same everywhere: by the side of what it is given."""

    def __init__(self, raw: dict[int, list[float]]) -> None:
        super().__init__()
        self.class_layer = nn.Conv2d(1, 1, 1)
        self.raw = raw

    def forward(self, image: Tensor) -> Tensor:
        values = torch.tensor(self.raw[image.shape[-1]])
        return values[None, :, None, None].expand(1, -1, 2, 2)


def test_refined_maps_are_the_maximum_over_the_sizes_cut_to_8_bits() -> None:
    network: Any = Given({16: [-1.0, 0.25, 0.3, 0.0], 24: [-2.0, 0.1, 2.0, 0.7]})
    image = Image("it", np.zeros((5, 7, 3), np.uint8), np.array([0, 1, 2]))
    maps = method().merged(network, refined, image, (5, 7))
    assert (maps.shape, maps.dtype) == ((3, 5, 7), np.uint8)
    assert [np.unique(plane).tolist() for plane in maps] == [[0], [63], [255]]


def test_maps_are_those_of_the_classes_that_were_asked_for() -> None:
    for maps in ("refined", "classifier"):
        torch.manual_seed(0)
        one = method(maps=maps)
        network, data = one.build().eval(), dataset()
        with torch.no_grad():
            network.last.class_layer.bias.copy_(torch.tensor([0.1, 0.3, 0.5, 0.7]))  # type: ignore[union-attr]
        rgb = data.read_image("a")
        with torch.inference_mode():
            both = one.activations(network, Image("a", rgb, np.array([1, 3])), data)
            last = one.activations(network, Image("a", rgb, np.array([3])), data)
            none = one.activations(network, Image("a", rgb, np.zeros(0, np.int64)), data)
        assert (both.shape, none.shape) == ((2, 30, 45), (0, 30, 45))
        assert both.any()
        np.testing.assert_array_equal(both[1:], last)


def test_without_refinement_there_is_one_network(tmp_path: Path) -> None:
    network, every = phases(tmp_path, maps="classifier")
    assert [phase.name for phase in every] == ["classifier"]
    assert network.refinement is None
    assert network.last is network.classifier


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [25, 15]),  # of 3 images in batches of 2
        ({"batch_size": 100}, [1, 1]),
        ({"steps": 2}, [1, 1]),
        ({"steps": 1}, [1, 1]),
        ({"steps": 54}, [34, 20]),
        ({"steps": 54, "maps": "classifier"}, [54]),
    ],
)
def test_steps_are_shared_by_the_epochs(
    tmp_path: Path, changes: dict[str, Any], expected: list[int]
) -> None:
    _, every = phases(tmp_path, **changes)
    assert [phase.steps for phase in every] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0.0}, "delta=0.0: choose a number above 0"),
        ({"delta": 1.1}, "delta=1.1: choose a number above 0"),
        ({"crop": 25}, "scaled=24, crop=25"),
        ({"scales": ()}, r"scales=\(\)"),
        ({"scales": (8, 0)}, r"scales=\(8, 0\)"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method(**changes)


def test_suppression_is_chosen_by_name() -> None:
    kinds = {}
    for name, changes in (("learnable", {}), ("fixed", {"delta": 0.4})):
        modules = [*method(suppression=name, **changes).build().classifier.modules()]
        found = [module for module in modules if isinstance(module, Suppression)]
        assert len(found) == 16
        kinds[name] = {(module.controller is None, module.delta) for module in found}
        assert sum(isinstance(module, Controller) for module in modules) == 16 * (name != "fixed")
    assert kinds["fixed"] == {(True, 0.4)}
    assert {without for without, _ in kinds["learnable"]} == {False}


def published(maps: str, suppression: str = "learnable", width: int = 2) -> Drs:
    recipe = replace(RECIPES["published"], width=width, maps=maps, suppression=suppression)  # type: ignore[arg-type]
    return Method(recipe, Path(), 20).build()


def test_initial_weights_fill_the_trunks_alone() -> None:
    one = Method(replace(RECIPES["published"], width=2), Path(), 4)
    network = one.build()
    assert network.refinement is not None
    trunk = network.classifier.features.trunk
    imagenet = {
        key: torch.full_like(value, 3)
        for key, value in trunk.state_dict().items()
        if "controller" not in key
    }
    before = {key: value.clone() for key, value in network.state_dict().items()}
    one.load_initial(network, imagenet | {"classifier.6.bias": torch.zeros(1000)}, "trunk")
    filled = {
        key for key, value in network.state_dict().items() if not torch.equal(value, before[key])
    }
    assert filled == {
        f"{which}.features.trunk.{key}"
        for which in ("classifier", "refinement")
        for key in imagenet
    }
    del imagenet["features.28.bias"]
    with pytest.raises(HubError, match=r"1 missing: features\.28\.bias"):
        one.load_initial(network, imagenet, "trunk")


def test_a_checkpoint_of_another_network_is_named() -> None:
    learnable, plain = checkpoint("cam-drs"), checkpoint("cam-drs-refine")
    with pytest.raises(HubError, match=r"classifier with learnable .* --set maps=classifier"):
        published("refined").load_published(learnable)
    with pytest.raises(HubError, match=r"has no controllers.*\(--set maps=refined\)"):
        published("classifier").load_published(plain)
    del plain["layer3_conv2.bias"]
    with pytest.raises(HubError, match=r"1 missing: features\.trunk\.features\.12\.bias"):
        published("refined").load_published(plain)


def test_of_a_trunk_that_is_there_twice_the_named_layers_count() -> None:
    plain = checkpoint("cam-drs-refine")
    state = {f"module.{key}": value for key, value in plain.items()}
    for maps, suppression in (("refined", "learnable"), ("classifier", "fixed")):
        network = published(maps, suppression, width=64)
        network.load_published(state)
        loaded = network.last.features.trunk.features[12].weight
        assert torch.equal(loaded, plain["layer3_conv2.weight"])


OPTIONS = {"target": "shapes", "device": "cpu", "workers": 0, "recipe": "shapes", "limit": 6}
SMALL = ["width=2", "crop=16", "scales=16", "classifier_epochs=2", "refinement_epochs=2"]


def run(shapes: Path, out: Path, **options: Any) -> bytes:
    """The bytes of the trained weights."""
    options = {**OPTIONS, "set": SMALL, "data_root": shapes, "batch_size": 2, **options}
    cam.run("cam-drs", Method, cam.Options(out=out, **options))
    return (out / "runs" / "cam-drs-shapes" / "weights.safetensors").read_bytes()


def test_a_training_that_is_stopped_anywhere_ends_with_the_same_bytes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(shapes, tmp_path / "whole")
    for place, calls in (("classification_loss", 3), ("localized", 4), ("refinement_loss", 2)):
        with monkeypatch.context() as patched:
            patched.setattr(drs, place, failing_after(calls, getattr(drs, place)))
            with pytest.raises(HubError, match="on purpose"):
                run(shapes, tmp_path / "parts", checkpoint_every=0.0)
    assert run(shapes, tmp_path / "parts", checkpoint_every=0.0) == whole
    contents = {
        read_manifest(tmp_path / each / "cam/drs").entry("1.0.0", "shapes").content
        for each in ("whole", "parts")
    }
    assert len(contents) == 1


def failing_after(calls: int, function: Any) -> Any:
    left = iter(range(calls))

    def fail(*arguments: Any) -> Tensor:
        if next(left, None) is None:
            raise HubError("on purpose")
        found: Tensor = function(*arguments)
        return found

    return fail
