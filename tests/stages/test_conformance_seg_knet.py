"""K-Net on Swin-L and Swin-T against MMSegmentation's outputs (cases seg-knet, seg-knet-tiny).

All of them, in eval mode. The tolerance is the cases': 1e-4 relative.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import conformance
import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.runtime.method import Phase
from stages.seg._mmseg import whole
from stages.seg.knet import RECIPES, KNet, Method

pytestmark = pytest.mark.numerical
BACKBONES = {"seg-knet-tiny": "swin-t", "seg-knet": "swin-l"}
NOT_FLOAT = {"argmax_full": "classes: has a test of its own"}


class Case(NamedTuple):
    method: Method
    network: KNet
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @property
    def phase(self) -> Phase:
        (phase,) = self.method.phases(self.network, SimpleNamespace(image_ids=range(10_582)))  # type: ignore[arg-type]
        return phase


# Tests of one case come after each other, so that only one of the networks is in memory.
@pytest.fixture(scope="module", params=BACKBONES)
def case(request: pytest.FixtureRequest) -> Case:
    method = Method(replace(RECIPES["published"], backbone=BACKBONES[request.param]), Path(), 20)
    network = method.build()
    network.load_published({f"module.{k}": v for k, v in checkpoint(request.param).items()})
    return Case(method, network.eval(), *conformance.load(request.param))


@pytest.fixture(scope="module")
def found(case: Case) -> dict[str, Tensor]:
    """Everything of one pass, under the names of the case."""
    network = case.network
    updates: Any = {f"update{number}": update for number, update in enumerate(network.updates, 1)}
    modules = {"backbone": network.backbone, "upernet": network.upernet, **updates}
    image = torch.from_numpy(case.inputs["image"])
    with torch.inference_mode(), outputs_of(modules) as seen:
        logits = network.all_logits(image)
        batch = {"image": image, "label": torch.from_numpy(case.inputs["label"])}
        losses = case.phase.loss({"crops": batch}, 0)
    assert list(losses) == ["stage0", "stage1", "stage2", "stage3", "auxiliary"]
    return {
        **{f"backbone{n}_first16": x[:, :16] for n, x in enumerate(seen["backbone"], 1)},
        "upernet_feature_first16": seen["upernet"][:, :16],
        **{f"logits_s{n}": x for n, x in enumerate(logits.stages)},
        **{f"kernels_s{n}": seen[f"update{n}"][1][..., None, None] for n in (1, 2, 3)},
        "aux_logits": logits.auxiliary,
        "losses": torch.stack(list(losses.values())),
    }


def test_every_output(case: Case, found: dict[str, Tensor]) -> None:
    names = compared(case.outputs, NOT_FLOAT)
    assert set(names) == set(found)
    for name in names:
        assert_close_in_norm(found[name], case.outputs[name], FLOAT32, name)


def test_the_class_of_every_pixel(case: Case) -> None:
    with torch.inference_mode():
        logits = whole(case.network, torch.from_numpy(case.inputs["image"]), case.method.recipe)
    different = logits[0].argmax(0).numpy() != case.outputs["argmax_full"]
    assert different.sum() <= 5  # where two classes are nearly equal: 2 of 17,168 were seen
