"""SSNet-2 against the outputs of the published code's second network (ssnet-published-deeplab).

It is the paper's SSNet-2, so everything is compared but what the paper has not: a classifier, and
the saliency score of the background (channel 0 of ``sal``), which no result depends on and which
are not loaded. The tolerance is the case's: 1e-4 relative, labels equal.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.ops.images import imagenet_rgb
from stages.runtime.method import Image
from stages.ssnet.ssnet import RECIPES, SETTINGS, Method, SSNet
from wsssbed_hub.utils.errors import HubError

pytestmark = pytest.mark.numerical
CASE = "ssnet-published-deeplab"
INPUTS, OUTPUTS = conformance.load(CASE)
RGB = INPUTS["image"][0]
SAMPLED = (..., slice(3, None, 8), slice(5, None, 8))
LEFT_OUT = {"cls_fc": "a classifier that the paper does not have", "label": "compared below, equal"}


def method(setting: str = "MM", **changes: Any) -> Method:
    return Method(replace(RECIPES["published"], **changes), Path(), 20, SETTINGS[setting])


@pytest.fixture(scope="module")
def network() -> SSNet:
    network = method().build()
    network.load_published(checkpoint(CASE))
    return network.eval()


@pytest.fixture(scope="module")
def found(network: SSNet) -> dict[str, Tensor]:
    modules = {
        "feature": network.backbone,
        "logits": network.upsampling,
        "sal_logit": network.aggregation.conv,
        "sal": network.aggregation,
    }
    with torch.inference_mode(), outputs_of(modules) as inside:  # type: ignore[arg-type]
        output = network(torch.from_numpy(imagenet_rgb(RGB))[None])
    return {
        "feature": inside["feature"][:, ::32],
        "seg": inside["logits"][SAMPLED],
        "seg_corner": inside["logits"][..., :8, :8],
        "sal_logit": inside["sal_logit"].flatten(1),
        "sal": inside["sal"],
        "probability": output.probability[SAMPLED],
        "background": output.probability[:, 0][SAMPLED],
        "saliency": output.saliency[SAMPLED],
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_everything_that_the_paper_has(found: dict[str, Tensor], name: str) -> None:
    expected = OUTPUTS[name]
    if name in ("sal_logit", "sal"):
        expected = expected[:, 1:]
    assert_close_in_norm(found[name], expected, FLOAT32, name)


def test_the_class_of_every_pixel(network: SSNet) -> None:
    with torch.inference_mode():
        label = method().segmentation(network, Image("case", RGB))
    np.testing.assert_array_equal(label[::4, ::4], OUTPUTS["label"][0])


def test_the_probabilities_and_the_saliency_map_of_the_method(network: SSNet) -> None:
    with torch.inference_mode():
        probability = method().probabilities(network, Image("case", RGB))[None]
        saliency = method().saliency(network, Image("case", RGB))
    assert_close_in_norm(probability[SAMPLED], OUTPUTS["probability"], FLOAT32)
    expected = OUTPUTS["saliency"][0] * 255
    # Rounded to 8 bits; the network adds its own 1e-4 of 255.
    assert np.abs(saliency[3::8, 5::8] - expected).max() < 0.53


def test_other_checkpoints_are_refused() -> None:
    state = checkpoint(CASE)
    with pytest.raises(HubError, match=r"unknown: pred_sal\.weight"):
        method("MS").build().load_published(state)
    with pytest.raises(HubError, match="of another shape"):
        method(size=128).build().load_published(state)
    with pytest.raises(HubError, match=r"stage 1, which is not the paper's.*--setting MM"):
        method("M").build().load_published(checkpoint("ssnet-published-fcn"))


@pytest.mark.parametrize(
    ("setting", "sources"),
    [
        ("S", {"class": 16}),
        ("M", {"class": 8, "saliency": 8}),
        ("SS", {"segmentation": 16}),
        ("MS", {"segmentation": 16}),
        ("MM", {"segmentation": 8, "saliency": 8}),
        ("2S", {"saliency": 16}),
    ],
)
def test_the_training_of_the_paper(setting: str, sources: dict[str, int]) -> None:
    """Section 7 of the specification; the network is a small one, which changes none of it."""
    one = method(setting, backbone="densenet-small", size=64)
    network = one.build()
    data = SimpleNamespace(image_ids=range(10_582), sod=[], labels=[])
    (phase,) = one.phases(network, data)  # type: ignore[arg-type]
    assert (phase.name, phase.steps, phase.accumulate) == (f"ssnet-{setting}", 10_000, 1)
    assert {name: source.batch_size for name, source in phase.sources.items()} == sources  # type: ignore[union-attr]
    groups = phase.optimizer().param_groups  # type: ignore[union-attr]
    for group in groups:
        assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.95, 0.999), 0)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in network.parameters()}
    rates = [1e-4 * phase.schedule(step) for step in (0, 999, 1000, 1999, 2000, 9999)]
    assert rates == pytest.approx([1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 1e-4 / 2**9], rel=1e-12)
