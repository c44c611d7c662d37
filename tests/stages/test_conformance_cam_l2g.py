"""L2G's classifiers and inference against the published code (cases cam-l2g and cam-l2g-vgg).

The tolerance is the cases': 1e-4 relative, one grey level for the maps, 0.5 % of the pixels for the
label.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared
from torch import Tensor, nn

from stages.cam import l2g
from stages.cam._l2g_networks import Pair
from stages.cam.l2g import RECIPES, Method
from stages.ops.images import divide_by_maximum, scaled_input
from stages.runtime.method import Image
from wsssbed_hub.evaluation.pseudo_label import pseudo_label

pytestmark = pytest.mark.numerical
RECIPE_OF = {"cam-l2g": "published-voc", "cam-l2g-vgg": "vgg"}
EVERY = {"cam-l2g": 8, "cam-l2g-vgg": 2}  # of so many channels of the features the case has one
INFERENCE = ("ms_sizes", "ms_mean", "ms_normalised", "ms_png", "ms_label_map")
INPUTS, OUTPUTS = conformance.load("cam-l2g")


def method(case: str) -> Method:
    return Method(RECIPES[RECIPE_OF[case]], Path(), 20)


@cache
def loaded(case: str) -> Pair:
    """The method's networks with the case's checkpoint, which is as published that of one of the
    two, wrapped."""
    network = method(case).build()
    network.load_published({f"module.{key}": value for key, value in checkpoint(case).items()})
    return network.eval()


def outputs_of_the_network(case: str) -> list[Any]:
    outputs = conformance.load(case)[1]
    left_out = {name: "inference, compared below" for name in INFERENCE if name in outputs}
    return [pytest.param(case, name, id=f"{case}-{name}") for name in compared(outputs, left_out)]


@cache
def run(case: str) -> dict[str, Tensor]:
    """One forward pass, under the names of the case."""
    network = loaded(case).global_network
    entered: dict[nn.Module, list[Tensor]] = {network.affinity: [], network.classifier: []}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: entered[layer].append(given[0]))
        for layer in entered
    ]
    with torch.inference_mode():
        maps = network(torch.from_numpy(conformance.load(case)[0]["x"]))
    for hook in hooks:
        hook.remove()
    (guide,), (deep, refined) = entered.values()
    return {
        "featmap": maps,
        "logits": l2g.scores(maps),
        "pcm_guide": guide[:1],
        "deep": deep[:1, :: EVERY[case]],
        "deep_refined": refined[:1, :: EVERY[case]],
    }


@pytest.mark.parametrize(
    ("case", "name"), [param for case in RECIPE_OF for param in outputs_of_the_network(case)]
)
def test_maps_scores_and_features(case: str, name: str) -> None:
    assert_close_in_norm(run(case)[name], conformance.load(case)[1][name], FLOAT32, name)


@pytest.fixture(scope="module")
def inference() -> dict[str, Any]:
    """What becomes of the case's image, under the names of the case."""
    product, network = method("cam-l2g"), loaded("cam-l2g")
    rgb, class_ids = INPUTS["ms_image"], np.flatnonzero(INPUTS["ms_label"])
    sizes = []
    hook = network.global_network.register_forward_pre_hook(
        lambda layer, given: sizes.extend([given[0].shape[2:]] * len(given[0]))
    )
    with torch.inference_mode():
        png = product.activations(network, Image("case", rgb, class_ids), None)  # type: ignore[arg-type]
        hook.remove()
        mean = product.mean_maps(network.global_network, rgb, range(21))
    return {
        "ms_sizes": np.array(sizes),
        "ms_mean": mean,
        "ms_normalised": divide_by_maximum(mean[class_ids].relu(), 1e-8),
        "ms_png": png,
        "ms_label_map": pseudo_label(png, class_ids, None, 0.25),
    }


@pytest.mark.parametrize("name", INFERENCE)
def test_inference(inference: dict[str, Any], name: str) -> None:
    found, expected = inference[name], OUTPUTS[name]
    if name == "ms_sizes":
        np.testing.assert_array_equal(found, expected)
    elif name == "ms_png":
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found == expected).mean() >= 0.995
    elif name == "ms_label_map":
        assert (found != expected).mean() <= 0.005
    else:
        assert_close_in_norm(found, expected, FLOAT32, name)


def test_cocos_images_have_means_and_deviations_of_their_own() -> None:
    """Of the whole dataset, as the published code has them."""
    seen: list[Tensor] = []
    network = loaded("cam-l2g-vgg").global_network
    product = Method(RECIPES["published-coco"], Path(), 20)
    hook = network.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    rgb = np.full((16, 24, 3), 255, np.uint8)
    with torch.inference_mode():
        product.mean_maps(network, rgb, [0])
    hook.remove()
    white = [(1 - 0.471) / 0.234, (1 - 0.448) / 0.239, (1 - 0.408) / 0.242]
    for pair in seen:
        np.testing.assert_allclose(pair.amin((0, 2, 3)), white, rtol=1e-6)
    assert [pair.shape[2:] for pair in seen] == [
        scaled_input(rgb, scale).shape[2:] for scale in (0.5, 1.0, 1.5, 2.0)
    ]
