"""DeepLab-V3+ against the outputs of MMSegmentation (case seg-deeplabv3plus).

The tolerance is the case's: 1e-4 relative.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.ops.images import imagenet_rgb
from stages.ops.resizing import resize
from stages.runtime.method import Phase
from stages.seg.deeplabv3plus import RECIPES, DeepLabV3Plus, Method

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("seg-deeplabv3plus")
LEFT_OUT = {"argmax_full": "not compared in norm, but below"}
METHOD = Method(RECIPES["published"], Path(), 20)


def the_phase(network: DeepLabV3Plus) -> Phase:
    (phase,) = METHOD.phases(network, SimpleNamespace(image_ids=range(10_582)))  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> DeepLabV3Plus:
    network = METHOD.build()
    network.load_published(checkpoint("seg-deeplabv3plus"))
    return network.eval()


@pytest.fixture(scope="module")
def found(network: DeepLabV3Plus) -> dict[str, Tensor]:
    image = torch.from_numpy(INPUTS["image"])
    rgb = np.ascontiguousarray(INPUTS["bgr"][::-1].transpose(1, 2, 0))
    with torch.inference_mode():
        with outputs_of({"backbone": network.backbone}) as levels:
            heads = network.all_heads(image)
        shallow, _, middle, deep = levels["backbone"]
        crops = {"image": image, "label": torch.from_numpy(INPUTS["label"])}
        losses = the_phase(network).loss({"crops": crops}, 0)
        with outputs_of({"backbone": network.backbone}) as big:
            big_logits = network(torch.from_numpy(imagenet_rgb(rgb))[None])
    return {
        "c1_first8": shallow[:, :8],
        "c3_first8": middle[:, :8],
        "c4_first8": deep[:, :8],
        "logits": heads["decode"],
        "aux_logits": heads["aux"],
        "loss_decode": losses["decode"],
        "loss_aux": losses["aux"],
        "big_c4_first4": big["backbone"][3][:, :4],
        "big_logits": big_logits[:, :, ::2, ::2],
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_outputs(found: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(found[name], OUTPUTS[name], FLOAT32, name)


def test_the_class_of_every_pixel(found: dict[str, Tensor]) -> None:
    full = resize(found["logits"], OUTPUTS["argmax_full"].shape)[0]
    different = full.argmax(0).numpy() != OUTPUTS["argmax_full"]
    assert different.sum() <= 5  # where two classes are nearly equal


def test_the_published_training(network: DeepLabV3Plus) -> None:
    phase = the_phase(network)
    (group,) = phase.optimizer().param_groups  # type: ignore[union-attr]
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 5e-4)
    assert (phase.steps, phase.clip_norm) == (20_000, None)
    assert (phase.sources["crops"].batch_size, phase.accumulate) == (16, 1)  # type: ignore[index]
    assert 0.01 * phase.schedule(19_999) == pytest.approx(1e-4, rel=1e-12)
    half = 0.0099 * (1 - 10_000 / 19_999) ** 0.9 + 1e-4
    assert 0.01 * phase.schedule(10_000) == pytest.approx(half, rel=1e-12)
    assert RECIPES["published-40k"].steps == 40_000
