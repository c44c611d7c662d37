"""Merging of MCIS's maps at test time, as published (case cam-mcis-inference).

The network's part is played by one that gives the case's maps; everything else is
``Method.activations``.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import compared
from torch import Tensor

from stages.cam import mcis
from stages.cam.mcis import RECIPES, CoAttention, Method
from stages.ops.images import imagenet_rgb, resize_bilinear
from stages.runtime.method import Image

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-mcis-inference")
CLASSES = np.flatnonzero(INPUTS["label"][0])
SIZE = INPUTS["image_size"].tolist()
GREY = {"image": 10, **{f"of {c}": 100 + int(c) for c in CLASSES}}


def picture(name: str) -> np.ndarray:
    """A grey image, darker on the left."""
    rgb = np.full((*SIZE, 3), GREY[name], np.uint8)
    rgb[:, : SIZE[1] // 2] -= 5
    return rgb


DATA: Any = SimpleNamespace(
    images_by_class=[[f"of {c}"] if c in CLASSES else [] for c in range(20)],
    read_image=picture,
)
IMAGE = Image("image", picture("image"), CLASSES)


class Recorded(CoAttention):
    """Features that are the pictures themselves, and the case's maps in the order of its calls."""

    def __init__(self) -> None:
        super().__init__(20, width=1)
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def forward(self, image: Tensor) -> Tensor:
        # As large as features are: the grid of the maps is theirs.
        return image[:, :, ::8, ::8]

    def co_maps(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        number = len(self.pairs)
        self.pairs.append((one, other))
        nothing = torch.full((len(other), 20, 1, 1), torch.nan)
        names = ("co_map_flipped", "co_map_small", "co_map_large")
        if number == 0:
            return given("co_map_original"), given(names[0])
        if number < 3:
            return nothing, given(names[number])
        return torch.from_numpy(INPUTS["co_maps_related"][number - 3]), nothing


def given(name: str) -> Tensor:
    return torch.from_numpy(INPUTS[name])


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """What ``activations`` makes, and what goes into the merging, under the names of the case."""
    network, method = Recorded(), Method(RECIPES["published"], Path(), 20)
    merging: list[Any] = []
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():

        def merged(maps: Any, admitted: float) -> np.ndarray:
            merging[:] = [*maps, whole(maps, admitted)]
            return merging[-1]

        whole = mcis.merged
        patched.setattr(mcis, "merged", merged)
        maps = method.activations(network, IMAGE, DATA)
    original, flipped, small, large, related, grid = merging
    return {
        "merged_related": related,
        "small_resized": small,
        "large_resized": large,
        "grid_maps": grid,
        "maps": maps,
        "original": original,
        "flipped": flipped,
        "pairs": network.pairs,
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, {}))
def test_the_maps_and_what_is_merged(run: dict[str, Any], name: str) -> None:
    expected = OUTPUTS[name]
    if expected.dtype == np.uint8:
        assert (run[name].dtype, run[name].shape) == (np.uint8, expected.shape)
        difference = np.abs(run[name].astype(int) - expected)
        assert difference.max() <= 1
        assert (difference == 0).mean() > 0.98
    else:
        assert_close_in_norm(run[name], expected, FLOAT32, name)


def test_the_mirrored_map_is_turned_back(run: dict[str, Any]) -> None:
    np.testing.assert_array_equal(run["original"], INPUTS["co_map_original"][0, CLASSES])
    mirrored = INPUTS["co_map_flipped"][0, CLASSES][..., ::-1]
    np.testing.assert_array_equal(run["flipped"], mirrored)


def test_the_case_has_maps_on_both_sides_of_the_level() -> None:
    means = [given(f"co_map_{n}")[0, CLASSES].mean((1, 2)) for n in ("flipped", "small", "large")]
    admitted = torch.stack(means).sigmoid() > RECIPES["published"].admitted
    assert admitted.any()
    assert not admitted.all()


def test_what_the_image_is_paired_with(run: dict[str, Any]) -> None:
    """Mirrored at 256, smaller at 192, larger at 512 pixels, then each class's three images."""
    shapes = [tuple(other.shape) for _, other in run["pairs"]]
    copies = [(1, 3, side, side) for side in (32, 24, 64)]
    assert shapes == copies + [(3, 3, 32, 32)] * len(CLASSES)

    def square(name: str, side: int) -> np.ndarray:
        return imagenet_rgb(resize_bilinear(picture(name), side, side))

    own = square("image", 256)
    expected = [own[..., ::-1], square("image", 192), square("image", 512)]
    expected += [square(f"of {c}", 256) for c in CLASSES]
    for (one, other), want in zip(run["pairs"], expected, strict=True):
        np.testing.assert_array_equal(one[0], own[:, ::8, ::8])
        for each in other:
            np.testing.assert_array_equal(each, want[:, ::8, ::8])
