"""SegFormer against the outputs of MMSegmentation (case seg-segformer).

The tolerance is the case's: 1e-4 relative.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conformance
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.ops.resizing import resize
from stages.runtime.method import Phase
from stages.seg.segformer import RECIPES, Method, SegFormer

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("seg-segformer")
LEFT_OUT = {"argmax_full": "not compared in norm, but below"}
METHOD = Method(RECIPES["published"], Path(), 20)


def the_phase(network: SegFormer) -> Phase:
    (phase,) = METHOD.phases(network, SimpleNamespace(image_ids=range(10_582)))  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> SegFormer:
    network = METHOD.build()
    network.load_published(checkpoint("seg-segformer"))
    return network.eval()


@pytest.fixture(scope="module")
def found(network: SegFormer) -> dict[str, Tensor]:
    image = torch.from_numpy(INPUTS["image"])
    with torch.inference_mode():
        with outputs_of({"backbone": network.backbone}) as levels:
            logits = network(image)
        crops = {"image": image, "label": torch.from_numpy(INPUTS["label"])}
        losses = the_phase(network).loss({"crops": crops}, 0)
    stages = {f"stage{n}_first16": one[:, :16] for n, one in enumerate(levels["backbone"], 1)}
    return stages | {"logits": logits, "loss_decode": losses["decode"]}


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_outputs(found: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(found[name], OUTPUTS[name], FLOAT32, name)


def test_the_class_of_every_pixel(found: dict[str, Tensor]) -> None:
    full = resize(found["logits"], OUTPUTS["argmax_full"].shape)[0]
    different = full.argmax(0).numpy() != OUTPUTS["argmax_full"]
    assert different.sum() <= 5  # where two classes are nearly equal


def test_the_published_network_has_the_parameters_of_the_specification(network: SegFormer) -> None:
    assert sum(p.numel() for p in network.parameters()) == 81_975_253


def test_the_published_training(network: SegFormer) -> None:
    phase = the_phase(network)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {}
    for group in phase.optimizer().param_groups:  # type: ignore[union-attr]
        assert (group["betas"], phase.clip_norm) == ((0.9, 0.999), None)
        for parameter in group["params"]:
            found[names.pop(id(parameter))] = (group["lr"], group["weight_decay"])
    assert not names
    decayed, undecayed, of_head = (6e-5, 0.01), (6e-5, 0.0), (pytest.approx(6e-4), 0.01)
    expected = {
        "backbone.layers.0.0.projection.bias": decayed,
        "backbone.layers.0.0.norm.weight": undecayed,
        "backbone.layers.2.1.39.norm2.bias": undecayed,
        "backbone.layers.1.1.0.attn.norm.weight": undecayed,
        "backbone.layers.1.1.0.attn.attn.in_proj_bias": decayed,
        "backbone.layers.3.2.weight": decayed,
        "decode_head.convs.0.bn.weight": of_head,
        "decode_head.conv_seg.bias": of_head,
    }
    assert {name: found[name] for name in expected} == expected
    assert (phase.steps, phase.accumulate) == (160_000, 1)
    assert phase.sources["crops"].batch_size == 16  # type: ignore[index]


def test_the_rate_is_warmed_up_and_falls_to_nothing(network: SegFormer) -> None:
    schedule = the_phase(network).schedule
    assert schedule(0) == 1e-6
    assert schedule(1_499) == schedule(1_500) == 1
    assert schedule(100_000) == pytest.approx(1 - 98_500 / (160_000 - 1_500 - 1), rel=1e-12)
    assert schedule(159_999) == 0


def test_drop_path_grows_from_nothing_at_the_first_block_to_a_tenth_at_the_last() -> None:
    blocks = [block for stage in METHOD.build().backbone.layers for block in stage[1]]  # type: ignore[index]
    assert len(blocks) == 52
    assert [block.drop for block in blocks[::17]] == pytest.approx([0, 1 / 30, 2 / 30, 0.1])
