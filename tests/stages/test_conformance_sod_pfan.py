"""PFAN against the outputs of the port (case sod-pfan), all of them, in both modes.

The passes are in float64, the losses in float32 as in training: a pixel whose Laplacian is near 0
is an edge or none as a processor rounds, which moves the gradients by a few 1e-4.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import conformance
import numpy as np
import pytest
import torch
from closeness import assert_close_in_norm, relative_error
from references import checkpoint, compared, outputs_of
from torch import Tensor, nn

from stages.ops.resizing import resize
from stages.runtime.method import Image, Phase
from stages.sod.pfan import RECIPES, Method, Pfan, edges, to_input, to_label

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("sod-pfan")
RECIPE = replace(RECIPES["published"], size=128)  # of the case
METHOD = Method(RECIPE, Path())
DUTS = 10_553  # images
TOLERANCES = {  # the case's: the edge loss has kinks
    "loss_edge": 1e-3,
    "loss_total": 1e-3,
    "grad_ff_conv_1": 1e-3,
    "grad_cha_att_linear_2_bias": 1e-3,
    "grad_stem": 5e-3,
}
WEIGHTS = {"saliency": 0.7, "edge": 0.3}


def phase_of(method: Method, network: Pfan) -> Phase:
    (phase,) = method.phases(network, SimpleNamespace(image_ids=range(DUTS)))  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> Pfan:
    network = METHOD.build()
    network.load_published(checkpoint("sod-pfan"))
    return network


def losses(network: Pfan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the modules give out, and the terms of the loss under the names of the case."""
    modules: dict[str, nn.Module] = {
        **{f"cpfe_conv{n + 3}_3": module for n, module in enumerate(network.pyramids)},
        "channel_attention": network.channel_attention,
        "spatial_attention": network.spatial_attention,
        "logits": network.score,
    }
    batch = {name: torch.from_numpy(INPUTS[name]) for name in ("image", "label")}
    batch["image"] = batch["image"].double()
    with outputs_of(modules) as found:
        terms = phase_of(METHOD, network).loss({"pairs": batch}, 0)
    total: Tensor = sum(terms.values())  # type: ignore[assignment]
    return found, {
        "loss_sal": terms["saliency"] / WEIGHTS["saliency"],
        "loss_edge": terms["edge"] / WEIGHTS["edge"],
        "ca_reg": terms["channels"],
        "loss_total": total,
    }


@pytest.fixture(scope="module")
def run(network: Pfan) -> dict[str, Tensor]:
    """All outputs of the case by their names, first of eval mode, then of a step of training."""
    network.double().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        found, terms = losses(network)
    found |= terms
    found["prob"] = found["logits"].sigmoid()
    found["label_edges"] = edges(torch.from_numpy(INPUTS["label"]))
    for level, step in ((3, 32), (4, 16), (5, 8)):
        found[f"cpfe_conv{level}_3"] = found[f"cpfe_conv{level}_3"][:, ::step]
    network.train()
    trained, terms = losses(network)
    terms["loss_total"].backward()
    norm = network.high.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    trained = {
        **terms,
        "logits": trained["logits"],
        "hl_bn1_running_mean": norm.running_mean.clone(),
        "hl_bn1_running_var": norm.running_var.clone(),
        "grad_ff_conv_1": network.score.weight.grad,  # type: ignore[dict-item]
        "grad_cha_att_linear_2_bias": network.channel_attention.excite.bias.grad,  # type: ignore[dict-item]
        "grad_stem": network.backbone.features[0].weight.grad[::4],  # type: ignore[index,union-attr]
    }
    network.load_state_dict(before)
    network.float().eval()
    return found | {f"train_{name}": value for name, value in trained.items()}


def test_images_and_masks_become_what_the_port_makes_of_them() -> None:
    images = [to_input(INPUTS[f"rgb{n}"], RECIPE) for n in (0, 1)]
    labels = [to_label(INPUTS[f"mask{n}"], RECIPE) for n in (0, 1)]
    assert_close_in_norm(np.stack(images), INPUTS["image"], 1e-5)
    assert_close_in_norm(np.stack(labels), INPUTS["label"], 1e-5)


@pytest.mark.parametrize("name", compared(OUTPUTS, {}))
def test_features_maps_losses_and_gradients(run: dict[str, Tensor], name: str) -> None:
    tolerance = TOLERANCES.get(name.removeprefix("train_"), 1e-5)
    assert_close_in_norm(run[name], OUTPUTS[name], tolerance, name)


@pytest.mark.parametrize("number", [0, 1])
def test_the_saliency_map_is_the_probability_enlarged_and_cut(network: Pfan, number: int) -> None:
    rgb = INPUTS[f"rgb{number}"]
    with torch.inference_mode():
        saliency = METHOD.saliency(network.float().eval(), Image("case", rgb))
    height, width = rgb.shape[:2]
    top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    levels = np.floor(OUTPUTS["prob"][number : number + 1] * 255)
    padded = resize(torch.from_numpy(levels), (height + 2 * top, width + 2 * left))[0, 0]
    expected = np.rint(padded.numpy()[top : top + height, left : left + width])
    assert saliency.shape == (height, width)
    # float32 moves a probability by 1e-6 or so, hence few pixels over a border of levels.
    assert np.abs(saliency - expected).max() <= 1
    assert (saliency == expected).mean() > 0.99


def test_maps_by_the_statistics_of_the_image_are_those_of_train_mode() -> None:
    """The authors' batch norm: two images at once in the case, hence a batch of both here."""
    network = Method(replace(RECIPE, batch_norm="batch"), Path()).build()
    network.load_published(checkpoint("sod-pfan"))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(INPUTS["image"])).logits
    assert_close_in_norm(logits, OUTPUTS["train_logits"], 1e-4)
    assert relative_error(logits, OUTPUTS["logits"]) > 0.1
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_parameters_of_both_programs() -> None:
    assert sum(p.numel() for p in METHOD.build().parameters()) == 16_381_607
    keras = Method(RECIPES["keras"], Path()).build()
    assert sum(p.numel() for p in keras.parameters()) == 16_184_999


def test_the_published_training(network: Pfan) -> None:
    phase = phase_of(Method(RECIPES["published"], Path()), network)
    assert phase.steps == 391 * DUTS // 6
    optimizer = phase.optimizer()
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (4e-4, 0.0, (0.9, 0.999))
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}
    assert {phase.schedule(step) for step in (0, phase.steps - 1)} == {1.0}
