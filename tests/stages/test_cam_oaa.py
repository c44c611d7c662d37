"""What the reference cases do not show; those are in test_conformance_cam_oaa*.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from references import checkpoint
from torch import Tensor

from stages import cam
from stages.cam import oaa
from stages.cam._oaa import Accumulation, attention_maps, drop_mask, in_top_k, zoom
from stages.cam.oaa import RECIPES, ClassMaps, Method, integral_loss
from stages.ops.images import imagenet_rgb
from stages.runtime.method import Image, Phase
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError, UsageError

TINY = replace(
    RECIPES["published"],
    initial="none",
    width=2,
    short_side=16,
    batch_size=2,
    epochs=3,
    integral_epochs=2,
)
CLASSES = 4
LABELS = {"image0": (1,), "image1": (0, 3), "image2": (2,)}


def data(rgb: np.ndarray | None = None) -> Any:
    picture = np.full((32, 24, 3), 200, np.uint8) if rgb is None else rgb
    return SimpleNamespace(
        image_ids=[*LABELS],
        num_classes=CLASSES,
        read_image=lambda image_id: picture,
        image_labels=LABELS.__getitem__,
    )


def phases(**changes: Any) -> tuple[ClassMaps, list[Phase]]:
    torch.manual_seed(0)
    method = Method(replace(TINY, **changes), Path(), CLASSES)
    network = method.build()
    return network, list(method.phases(network, data()))


def sample(phase: Phase, index: int) -> dict[str, np.ndarray]:
    found: Any = phase.sources["views"].samples  # type: ignore[index]
    return found.sample(index, np.random.default_rng(0))


def maps_of(*planes: list[list[float]]) -> Tensor:
    return torch.tensor(planes)


def see(accumulation: Accumulation, maps: Tensor, label: list[float], epoch: int) -> Any:
    """What is accumulated after one more epoch of one image."""
    accumulation.see("it", maps, torch.tensor(label), epoch)
    for name, memory in accumulation.memories.items():
        memory.end_epoch(name)
    return accumulation.accumulated("it")


def test_a_class_that_is_sure_but_shows_nothing_has_a_map_of_zeros_and_keeps_it() -> None:
    accumulation = Accumulation(3)
    nothing = maps_of([[-1.0, -2.0]], [[-9.0, -9.0]])
    maps, there = see(accumulation, nothing, [1, 0], 1)
    assert (maps.tolist(), there.tolist()) == ([[[0, 0]]], [True])
    unsure = maps_of([[1.0, 0.5]], [[9.0, 9.0]])
    maps, there = see(accumulation, unsure, [1, 0], 2)  # the last epoch
    assert (maps.tolist(), there.tolist()) == ([[[0, 0]]], [True])


def test_a_class_that_was_never_sure_gets_the_map_of_the_last_epoch_alone() -> None:
    accumulation = Accumulation(3)
    maps, there = see(accumulation, maps_of([[1.0, 0.5]], [[9.0, 9.0]]), [1, 0], 1)
    assert there.tolist() == [False]
    maps, there = see(accumulation, maps_of([[0.0, 0.5]], [[9.0, 9.0]]), [1, 0], 2)
    assert (maps.tolist(), there.tolist()) == ([[[0, 255]]], [True])


def test_levels_are_rounded_at_every_update_and_the_highest_stay() -> None:
    accumulation = Accumulation(5)
    for epoch, (left, right) in enumerate([(1, 1), (1, 0.5), (0.25, 1), (0.2, 0.1)]):
        maps = maps_of([[float(left), float(right)]], [[-9.0, -9.0]])
        found = see(accumulation, maps, [1, 0], epoch)
        if epoch == 0:
            assert found is None
        elif epoch == 1:
            assert found[0].tolist() == [[[255, 128]]]  # 127.5, to the even
    assert found[0].tolist() == [[[255, 255]]]


def test_what_comes_after_the_last_epoch_is_not_kept() -> None:
    accumulation = Accumulation(2)
    assert see(accumulation, maps_of([[1.0, 1.0]]), [1], 2) is None


def test_two_epochs_that_end_in_one_step_are_kept_in_their_order() -> None:
    accumulation = Accumulation(3)
    low, high = maps_of([[2.0, 1.0]], [[9.0, 9.0]]), maps_of([[1.0, 2.0]], [[0.0, 0.0]])
    accumulation.see("it", high, torch.tensor([1.0, 0.0]), 1)
    maps, _ = see(accumulation, low, [1, 0], 2)  # not sure, and there is one already
    assert maps.tolist() == [[[128, 255]]]


def test_scores_that_float32_s_sigmoid_does_not_tell_apart_count_in_order() -> None:
    scores, label = torch.tensor([[30.0, 40.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert in_top_k(scores, label).tolist() == [[True, False, False]]
    assert in_top_k(scores / 10, label).tolist() == [[False, True, False]]


def test_an_image_without_classes_has_no_maps() -> None:
    accumulation = Accumulation(2)
    maps, there = see(accumulation, maps_of([[1.0, 1.0]]), [0], 1)
    assert (maps.shape, there.shape) == ((0, 1, 2), (0,))
    assert zoom(maps, (4, 6)).shape == (0, 4, 6)
    assert attention_maps(np.zeros((0, 1, 2), np.float32), (4, 6)).shape == (0, 4, 6)
    assert not drop_mask(maps, (4, 6), 0.6).any()


def test_a_map_that_is_the_same_everywhere_zooms_to_zero() -> None:
    assert not zoom(np.full((1, 2, 2), 77, np.uint8), (5, 5)).any()


def test_the_drop_layer_keeps_the_last_map_that_was_let_through() -> None:
    accumulation = Accumulation(9, drop=True)
    see(accumulation, maps_of([[1.0, 0.0]], [[-9.0, -9.0]]), [1, 0], 1)
    see(accumulation, maps_of([[0.0, 1.0]], [[-9.0, -9.0]]), [1, 0], 2)
    see(accumulation, maps_of([[1.0, 1.0]], [[9.0, 9.0]]), [1, 0], 3)  # not sure
    maps, _ = accumulation.current("it")  # type: ignore[misc]
    assert maps.tolist() == [[[0, 255]]]
    assert Accumulation(9).memories.keys() < accumulation.memories.keys()


@pytest.mark.parametrize(("rate", "dropped"), [(1.0, True), (0.0, False)])
def test_a_sample_loses_what_was_attended_to(rate: float, dropped: bool) -> None:
    _, (attention, _) = phases(drop_layer=True, drop_rate=rate)
    before = sample(attention, 1)["image"]
    assert not (before == 0).any()  # nothing is kept yet
    kept = torch.full((2, 2, 2), -257, dtype=torch.int16)  # of two classes, one has no map
    kept[1] = torch.tensor([[255, 0], [0, 0]])
    memory = attention.memories["current attention"]
    memory.load_state({"values": {"image1": kept}, "put": []})
    after = sample(attention, 1)["image"]
    assert (after[:, 0, 0] == 0).all() == dropped
    np.testing.assert_array_equal(after[:, -1, -1], before[:, -1, -1])
    assert not (sample(attention, 0)["image"] == 0).any()
    _, (attention, _) = phases(drop_rate=rate)
    assert "current attention" not in attention.memories


def test_images_keep_their_aspect_and_labels_are_theirs() -> None:
    _, (attention, _) = phases()
    found = sample(attention, 1)
    assert found["image"].shape == (3, 21, 16)  # of 32 x 24
    assert found["label"].tolist() == [1, 0, 0, 1]
    different = (
        sample(attention, 1),
        attention.sources["views"].samples.sample(  # type: ignore[index]
            1, np.random.default_rng(1)
        ),
    )
    assert np.abs(different[0]["image"] - different[1]["image"]).max() > 0.01  # jittered


def test_squares_of_a_batch_go_through_the_network_together() -> None:
    network, (attention, integral) = phases(squares=True, batch_norm=True)
    assert [sample(phase, 1)["image"].shape for phase in (attention, integral)] == [(3, 16, 16)] * 2
    assert sample(integral, 1)["target"].shape == (CLASSES, 2, 2)
    assert (attention.accumulate, phases()[1][0].accumulate) == (1, 2)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 16


def test_the_integral_network_learns_what_was_accumulated_from_the_first_weights() -> None:
    network, (attention, integral) = phases()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kept = torch.full((2, 2, 2), -257, dtype=torch.int16)
    kept[0] = torch.tensor([[51, 0], [255, 0]])
    kept[1] = torch.tensor([[102, 0], [0, 255]]) - 256  # of the last epoch
    memory = attention.memories["accumulated attention"]
    memory.load_state({"values": {"image1": kept}, "put": []})
    target = sample(integral, 1)["target"]
    assert target[0].tolist() == [[np.float32(0.2), 0], [1, 0]]
    assert target[3].tolist() == [[np.float32(0.4), 0], [0, 1]]
    assert not target[1:3].any()
    with torch.no_grad():
        network.classifier.weight.add_(1)
    assert integral.prepare is not None
    integral.prepare()
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_images_of_which_nothing_was_accumulated_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, (_, integral) = phases(epochs=1)
    assert integral.prepare is not None
    integral.prepare()
    assert "of 3 of 3 images, in 1 whole epochs" in capsys.readouterr().err
    target = sample(integral, 1)["target"]
    assert (target.shape, target.any()) == ((CLASSES, 2, 2), False)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [5, 3]),  # 3 images, 3 and 2 epochs, 2 images a step
        ({"maps": "attention"}, [5]),
        ({"steps": 10}, [6, 4]),
        ({"steps": 1}, [0, 1]),
        ({"steps": 9, "maps": "accumulated"}, [9]),
    ],
)
def test_steps_are_shared_among_the_networks(changes: dict[str, Any], steps: list[int]) -> None:
    _, every = phases(**changes)
    assert [phase.steps for phase in every] == steps


def test_the_last_epoch_is_that_which_the_steps_finish() -> None:
    """3 images, 2 a step: 4 steps finish 2 epochs, of which the second is the last."""
    network, (attention,) = phases(maps="attention", steps=4)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    batch = {
        "image": torch.zeros(1, 3, 16, 16),
        "label": torch.tensor([[0.0, 0.0, 1.0, 0.0]]),  # not among the highest one
        "index": torch.tensor([2]),
        "epoch": torch.tensor([1]),
    }
    attention.loss({"views": batch}, 0)
    memory = attention.memories["accumulated attention"]
    memory.end_epoch("it")
    assert memory.get("image2").tolist() == [[[-1, -1], [-1, -1]]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": "both"}, "maps=both: choose one of integral, accumulated, attention"),
        ({"integral_epochs": 0}, "epochs=3, integral_epochs=0: choose at least 1"),
        ({"epochs": 0}, "epochs=0, integral_epochs=2: choose at least 1"),
        ({"short_side": 7}, "short_side=7: choose at least 8"),
        ({"maps": "accumulated", "epochs": 1}, "After 1 epochs no maps are accumulated"),
        ({"maps": "accumulated", "steps": 2}, "After 1 epochs no maps are accumulated"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        phases(**changes)


def test_the_integral_loss_counts_over_all_images_and_classes_together() -> None:
    maps = torch.zeros(2, 2, 1, 2, dtype=torch.float64)
    target = torch.zeros_like(maps)
    target[0, 0, 0] = torch.tensor([1.0, 0.5])  # the only positive pixels
    log2 = float(np.log(2))
    assert integral_loss(maps, target).item() == pytest.approx((1 + 0.5) / 2 * log2 + log2)
    assert integral_loss(maps, target, 0.6).item() == pytest.approx(log2 + log2)
    assert integral_loss(maps, target, negative_weight=3).item() == pytest.approx(3.75 * log2)
    everywhere = torch.ones_like(maps)
    assert integral_loss(maps, everywhere).item() == pytest.approx(log2)
    far = torch.full_like(maps, -1000)
    assert integral_loss(far, everywhere).item() == pytest.approx(1000)  # and not infinite


def test_maps_are_those_of_the_classes_that_were_asked_for() -> None:
    torch.manual_seed(0)
    method = Method(TINY, Path(), CLASSES)
    network = method.build().eval()
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rgb = np.full((20, 40, 3), 200, np.uint8)
    rgb[:, :20] = 30
    with torch.inference_mode():
        both = method.activations(network, Image("a", rgb, np.array([1, 3])), data())
        one = method.activations(network, Image("a", rgb, np.array([3])), data())
    assert (both.shape, both.dtype) == ((2, 20, 40), np.uint8)
    np.testing.assert_array_equal(both[1:], one)
    assert seen[0].shape == (1, 3, 16, 32)
    same = imagenet_rgb(np.full((1, 1, 3), 200, np.uint8))  # no jitter
    assert torch.equal(seen[0][0, :, 8, -1], torch.from_numpy(same[:, 0, 0]))


def test_initial_weights_fill_the_trunk_alone() -> None:
    method = Method(RECIPES["published"], Path(), CLASSES)
    network = method.build()
    theirs = {k: v for k, v in checkpoint("cam-oaa").items() if k.startswith("features.")}
    theirs["classifier.6.bias"] = torch.zeros(1000)
    extra = network.backbone.extra[0].weight.clone()
    method.load_initial(network, theirs, "backbone")
    assert torch.equal(network.backbone.trunk.features[28].weight, theirs["features.28.weight"])
    assert torch.equal(network.backbone.extra[0].weight, extra)
    del theirs["features.28.weight"]
    with pytest.raises(HubError, match=r"1 missing: features\.28\.weight"):
        method.load_initial(network, theirs, "backbone")


def test_a_published_checkpoint_that_does_not_fit_is_refused() -> None:
    network = Method(RECIPES["published"], Path(), CLASSES).build()
    state = checkpoint("cam-oaa")
    with pytest.raises(HubError, match=r"extra_convs\.6\.weight \(20, 512, 1, 1\) instead of \(4,"):
        network.load_published(state)
    network = Method(RECIPES["published"], Path(), 20).build()
    del state["extra_convs.2.bias"]
    with pytest.raises(HubError, match=r"1 missing: backbone\.extra\.2\.bias"):
        network.load_published(state)


OPTIONS = {"target": "shapes", "device": "cpu", "workers": 0, "recipe": "shapes", "batch_size": 3}
SMALL = ["width=2", "short_side=16", "squares=false", "drop_layer=true"]
SMALL += ["epochs=3", "first_epoch=1"]


def run(shapes: Path, out: Path, *settings: str, **options: Any) -> Path:
    """8 images, 3 a step."""
    one_network = {"maps=accumulated", "maps=attention"} & {*settings}
    lengths = [] if one_network else ["integral_epochs=1"]
    given = {**OPTIONS, "set": [*SMALL, *lengths, *settings], "data_root": shapes, **options}
    cam.run("cam-oaa", Method, cam.Options(out=out, **given))
    return out / "runs" / "cam-oaa-shapes"


def content(out: Path) -> Any:
    return read_manifest(out / "cam" / "oaa").entry("1.0.0", "shapes").content


@pytest.mark.parametrize(("maps", "last"), [("integral", 15), ("accumulated", 10)])
def test_a_training_that_is_stopped_anywhere_ends_with_the_same_bytes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: str, last: int
) -> None:
    """24 passes train the attention network, 9 the integral one."""
    whole = run(shapes, tmp_path / "whole", f"maps={maps}")
    for passes in (4, 9, last):
        left = iter(range(passes))
        for name in ("classification_loss", "integral_loss"):
            monkeypatch.setattr(oaa, name, while_there_are(left, getattr(oaa, name)))
        with pytest.raises(HubError, match="on purpose"):
            run(shapes, tmp_path / "parts", f"maps={maps}", checkpoint_every=0.0)
        monkeypatch.undo()
    parts = run(shapes, tmp_path / "parts", f"maps={maps}", checkpoint_every=0.0)
    name = "weights.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def while_there_are(left: Iterator[int], function: Callable[..., Any]) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise HubError("on purpose")
        return function(*arguments, **options)

    return fail


def test_each_choice_of_maps_gives_others(shapes: Path, tmp_path: Path) -> None:
    contents = []
    for maps in ("integral", "accumulated", "attention"):
        run(shapes, tmp_path / maps, f"maps={maps}")
        contents.append(content(tmp_path / maps))
    assert len({str(one) for one in contents}) == 3
    for _, found in open_artifact(tmp_path / "accumulated" / "cam" / "oaa", "shapes"):
        highest = found.activations.max((1, 2))  # type: ignore[union-attr]
        assert set(highest.tolist()) <= {0, 254}


def test_accumulated_maps_stay_with_their_weights(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written after the training was finished, and not for weights that were given."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(oaa, "zoom", while_there_are(iter(range(2)), oaa.zoom))
        with pytest.raises(HubError, match="on purpose"):
            run(shapes, out, "maps=accumulated")
    trained = run(shapes, out, "maps=accumulated")
    run(shapes, tmp_path / "whole", "maps=accumulated")
    assert content(out) == content(tmp_path / "whole")
    weights = trained / "weights.safetensors"
    options = {"weights": weights, "batch_size": None, "version": "2.0.0"}
    with pytest.raises(UsageError, match="Leave --weights out, or choose maps=integral"):
        run(shapes, out, "maps=accumulated", **options)
