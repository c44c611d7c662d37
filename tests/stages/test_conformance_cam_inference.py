"""Fusion of activation maps over scales and mirror images, as published (case cam-inference)."""

from __future__ import annotations

import conformance
import numpy as np
import pytest
import torch
from references import error
from torch import Tensor

from stages.cam.cam import Recipe
from stages.runtime.images import divide_by_maximum, fuse, multi_scale_maps

INPUTS, OUTPUTS = conformance.load("cam-inference")
SCALES = Recipe().scales


def raw(scale: float) -> Tensor:
    """What the network gave for the image at a scale and for its mirror image."""
    return torch.from_numpy(np.stack([INPUTS[f"scale_{scale}"], INPUTS[f"scale_{scale}_flip"]]))


@pytest.fixture(scope="module")
def total() -> Tensor:
    classes = torch.from_numpy(OUTPUTS["classes"])
    height, width = INPUTS["size_hw"].tolist()
    return fuse((raw(scale)[:, classes] for scale in SCALES), (height, width))


def test_the_sum_over_scales_and_mirror_images(total: Tensor) -> None:
    assert error(total, OUTPUTS["sum"]) < 1e-6


def test_each_class_is_divided_by_its_maximum(total: Tensor) -> None:
    assert error(divide_by_maximum(total), OUTPUTS["fused"]) < 1e-6


@pytest.fixture(scope="module")
def run() -> tuple[np.ndarray, list[Tensor]]:
    """The maps, and what the network was given for them."""
    given: list[Tensor] = []

    def predict(pair: Tensor) -> Tensor:
        given.append(pair)
        return raw(SCALES[len(given) - 1])

    return multi_scale_maps(predict, INPUTS["image_uint8"], OUTPUTS["classes"], SCALES), given


def test_the_png_files(run: tuple[np.ndarray, list[Tensor]]) -> None:
    maps, _ = run
    assert maps.dtype == np.uint8
    for number, class_id in enumerate(OUTPUTS["classes"]):
        difference = np.abs(maps[number].astype(int) - OUTPUTS[f"png_{class_id}"])
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.995


def test_what_the_network_is_given(run: tuple[np.ndarray, list[Tensor]]) -> None:
    _, given = run
    sizes = [list(pair.shape[:1:-1]) for pair in given]
    assert sizes == OUTPUTS["sizes_wh"].tolist()
    assert error(given[0][0], OUTPUTS["preprocess_0.5"]) < 1e-5
    assert error(given[2][1], OUTPUTS["preprocess_1.5_flip"]) < 1e-5


def test_the_image_level_label_of_the_case_selects_the_classes() -> None:
    assert np.flatnonzero(INPUTS["label"] > 1e-5).tolist() == OUTPUTS["classes"].tolist()
