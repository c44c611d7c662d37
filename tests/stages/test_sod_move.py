"""What the reference cases do not show; the cases themselves: test_conformance_sod_move.py."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import FLOAT64, assert_close_in_norm

from stages.ops.bilateral_solver import binary_object, solve_bilaterally
from stages.ops.determinism import reseed
from stages.runtime.errors import Interruption
from stages.runtime.method import Image
from stages.runtime.trainer import TrainConfig, Trainer
from stages.sod import SodData
from stages.sod._move_composition import Composition, draw_shifts, shifted
from stages.sod._move_discriminator import augmented
from stages.sod.move import RECIPES, Crops, Method, Move
from wsssbed_hub.utils.errors import HubError, UsageError

SMALL = replace(RECIPES["shapes"], mae_training=1.5, batch_size=2, steps=4)
SIDE = SMALL.crop
CONFIG = TrainConfig(seed=0, device=torch.device("cpu"))


def drawn(height: int = 70, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> SodData:
    """Three images; there are no masks."""
    monkeypatch.setattr(SodData, "read_image", lambda self, image_id: drawn(70, 80 + int(image_id)))
    return SodData("few", {str(n): Path(str(n)) for n in range(3)})


@pytest.fixture(scope="module")
def network() -> Move:
    torch.manual_seed(0)
    return Method(SMALL, Path()).build().eval()


def test_crops_have_one_size_and_are_mirrored_half_of_the_time(data: SodData) -> None:
    crops = Crops(data, replace(SMALL, crop_scale=(1.0, 1.0), crop_aspect=(8 / 7, 8 / 7)))
    first = None
    mirrored = 0
    for seed in range(200):
        image = crops.sample(0, np.random.default_rng(seed))["image"]
        first = image if first is None else first
        assert image.shape == (3, SIDE, SIDE)
        assert np.array_equal(image, first) or np.array_equal(image[..., ::-1], first)
        mirrored += np.array_equal(image, first)
    assert 70 <= mirrored <= 130  # 100 with a deviation of 7


def test_shifts_move_right_and_down_and_are_uniform() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4) + 1
    (moved,) = shifted(image, [(1, -2)])
    assert moved[0].tolist() == [[0, 9, 10, 11], [0] * 4, [0] * 4]
    drawn = draw_shifts(4000, SMALL.shift * SIDE)
    for axis in (0, 1):
        values, counts = np.unique([pair[axis] for pair in drawn], return_counts=True)
        assert values.tolist() == list(range(-8, 9))  # an eighth of 64 pixels
        # 250 each with a deviation of 15; rounding leaves the ends half.
        assert abs(counts[1:-1] - 250).max() < 75
        assert abs(counts[[0, -1]] - 125).max() < 55


def test_where_nothing_is_inpainted_the_real_image_is_copied() -> None:
    mae = Method(SMALL, Path())._mae()
    image, mask = torch.randn(2, 3, SIDE, SIDE), torch.zeros(2, 1, SIDE, SIDE)
    mask[:, :, 16:32, 16:32] = 1
    made = Composition(mae, image, mask, [(16, 0), (0, 0)], copy_real=True)
    assert torch.equal(made.real, image)
    outside = torch.ones(SIDE, SIDE, dtype=bool)
    outside[16:32, 16:48] = False
    assert torch.equal(made.composed[..., outside], image[..., outside])
    assert torch.equal(made.composed[0, :, 16:32, 32:48], image[0, :, 16:32, 16:32])
    assert not torch.equal(made.composed[0, :, 16:32, 16:32], image[0, :, 16:32, 16:32])
    # Moved by nothing, the object covers its own hole.
    assert torch.equal(made.composed[1], image[1])
    assert torch.equal(made.unmoved[1], image[1])


@pytest.mark.numerical
def test_the_discriminator_sees_pixels_from_minus_one_to_one() -> None:
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    black = torch.tensor([-m / d for m, d in zip(mean, deviation, strict=True)]).double()
    white = torch.tensor([(1 - m) / d for m, d in zip(mean, deviation, strict=True)]).double()
    image = torch.stack((black, white), 1).view(1, 3, 1, 2)
    seen = augmented(image, 0, 0, 0)
    assert_close_in_norm(seen, torch.tensor([-1.0, 1.0]).expand(1, 3, 1, 2), 1e-6)
    torch.manual_seed(0)
    many = augmented(image.expand(500, -1, -1, -1), 0.5, 0, 0).mean((1, 2, 3))
    assert -0.5 <= many.min() < -0.45 < 0.45 < many.max() <= 0.5
    many = augmented(image.expand(500, -1, -1, -1), 0, 0, 0.5)
    assert 0.5 <= many[:, 0, 0, 1].min() < 0.55 < 1.45 < many[:, 0, 0, 1].max() <= 1.5
    coloured = torch.zeros(500, 3, 2, 2, dtype=torch.float64)
    coloured[:, 0] = 1
    plain = augmented(coloured, 0, 0, 0)
    grey = plain.mean(1, keepdim=True)
    many = augmented(coloured, 0, 1, 0)
    assert_close_in_norm(many.mean(1, keepdim=True), grey, FLOAT64)
    share = ((many - grey) / (plain - grey))[:, 0, 0, 0]
    assert 0 <= share.min() < 0.05 < 1.95 < share.max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (7, 60), (96, 96), (131, 40)])
@pytest.mark.parametrize("solver", ["none", "soft", "binary"])
def test_maps_have_the_size_of_the_image(network: Move, size: tuple[int, int], solver: Any) -> None:
    method = Method(replace(SMALL, solver=solver, test_side=16), Path())
    with torch.inference_mode():
        saliency = method.saliency(network, Image("any", drawn(*size)))
    assert (saliency.shape, saliency.dtype) == (size, np.uint8)
    if solver == "binary":
        assert {*np.unique(saliency)} <= {0, 255}


def test_the_solver_fills_an_evenly_coloured_region() -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[8:40, 16:48] = (200, 40, 40)
    inside = rgb[..., 0] > 0
    target = np.where(inside, 0.9, 0.1)
    target[20:24, 28:36] = 0.0  # a hole in the map that is not one in the image
    solved = solve_bilaterally(rgb, target)
    assert solved[inside].min() > 0.7
    assert solved[~inside].max() < 0.3
    assert np.array_equal(binary_object(solved), inside)
    assert binary_object(np.zeros((3, 4))).all()


def test_random_helpers_are_the_same_in_every_training(data: SodData) -> None:
    found = []
    for seed in (1, 2):
        method = Method(replace(SMALL, mae_training=0.0, features="dino"), Path())
        reseed(seed, "build")
        network = method.build()
        list(method.phases(network, data))
        assert network.mae is not None
        helpers = (network.segmenter.dino, network.discriminator.features, network.mae)
        found.append([p for helper in helpers for p in helper.network.state_dict().values()])
        found[-1].append(network.segmenter.head.score.weight.detach())
    *same, drawn_by_seed = zip(*found, strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    assert not torch.equal(*drawn_by_seed)


def test_the_card_names_the_networks_that_are_not_the_published_ones() -> None:
    assert Method.remark(RECIPES["published"]) == ""
    assert "place of DINO ViT-S/8, the MAE, EfficientNet-lite0" in Method.remark(SMALL)
    other = replace(RECIPES["published"], mae_depth=2, learning_rate=1.0)
    assert Method.remark(other).endswith("place of the MAE")


def test_an_mae_that_is_trained_here_learns_first_and_is_kept(
    data: SodData, tmp_path: Path
) -> None:
    method = Method(replace(SMALL, mae_training=7.5), tmp_path)
    reseed(0, "build")
    network = method.build()
    mae = network.trained_mae
    assert mae is not None
    image = torch.from_numpy(Crops(data, SMALL).sample(0, np.random.default_rng(0))["image"])[None]
    hidden = torch.arange(mae.patch_embed.num_patches)[None] % 4 == 0
    names, errors = [], []
    for phase in method.phases(network, data):
        names.append((phase.name, phase.steps))
        errors.append(mae.guessing_loss(image, hidden).item())
        (tmp_path / phase.name).mkdir()
        Trainer(network, tmp_path / phase.name, CONFIG).run([phase])
    errors.append(mae.guessing_loss(image, hidden).item())
    assert names == [("inpainting", 30), ("adversarial", 4)]
    assert errors[1] < errors[0] * 0.9
    assert errors[2] == errors[1]
    assert torch.equal(network.state_dict()["trained_mae.mask_token"], mae.mask_token)


class StoppedAt(Crops):
    """A signal comes while a sample is read."""

    left = 0

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().sample(index, rng)


def train(folder: Path, data: SodData) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    method = Method(SMALL, folder)
    reseed(0, "build")
    network = method.build()
    Trainer(network, folder, CONFIG).run(method.phases(network, data))
    return network.state_dict()


@pytest.mark.parametrize(("sample", "step"), [(3, "2 of 6"), (31, "2 of 4")])
def test_a_stopped_training_goes_on_to_the_same_weights(
    sample: int, step: str, data: SodData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either phase."""
    whole = train(tmp_path / "whole", data)
    with monkeypatch.context() as patch:
        patch.setattr("stages.sod.move.Crops", StoppedAt)
        patch.setattr(StoppedAt, "left", sample)
        with pytest.raises(Interruption, match=f"Stopped after step {step}"):
            train(tmp_path / "stopped", data)
    resumed = train(tmp_path / "stopped", data)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_cannot_be_is_said(data: SodData, network: Move) -> None:
    method = Method(replace(SMALL, batch_size=4), Path())
    with pytest.raises(UsageError, match="3 images, and a batch is 4: choose a smaller"):
        list(method.phases(network, data))
    with pytest.raises(UsageError, match="--init mae=FILE"):
        method.timm_weights("mae")
    with pytest.raises(HubError, match="The classifier for the discriminator does not fit"):
        method.load_initial(network, {"conv_stem.weight": torch.ones(1)}, "classifier")


def test_the_whole_classifier_fills_the_features(network: Move) -> None:
    import timm

    state = timm.create_model(SMALL.classifier).state_dict()
    method = Method(SMALL, Path())
    other = method.build()
    method.load_initial(other, state, "classifier")
    features = other.discriminator.features.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in features.items())
