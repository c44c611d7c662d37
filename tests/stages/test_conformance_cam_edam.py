"""EDAM against the outputs of the published code (case cam-edam), all of them, in eval mode.

The forward pass of the pair takes a minute or so: all tests share one. The tolerance is the case's:
1e-4 relative.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conformance
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared, outputs_of
from torch import Tensor

from stages.cam._edam_attention import position_table
from stages.cam.edam import RECIPES, TABLE, Edam, Method
from stages.runtime.method import Phase
from wsssbed_hub.utils.errors import HubError

pytestmark = pytest.mark.numerical
CASE = "cam-edam"
INPUTS, OUTPUTS = conformance.load(CASE)
METHOD = Method(RECIPES["published"], Path(), 20)
ORDER = INPUTS["label_idx"]
FIRST = int(ORDER[0])  # the class that the case looks into


def the_phase(network: Edam) -> Phase:
    data = SimpleNamespace(image_ids=range(10_582), images_by_class=[])
    (phase,) = METHOD.phases(network, data)  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> Edam:
    network = METHOD.build()
    network.load_published(checkpoint(CASE))
    return network.eval()


def in_order(scores: Tensor) -> Tensor:
    """[2, classes] in the case's order: all classes of the first image, then of the second."""
    return scores[:, torch.from_numpy(ORDER)].flatten()


def of_both(sequence: Tensor, positions: int) -> Tensor:
    """The first positions of the first, then of the second image."""
    return sequence.unflatten(1, (2, -1))[0, :, :positions].flatten(0, 1)


@pytest.fixture(scope="module")
def run(network: Edam) -> dict[str, Tensor]:
    """Everything of one pair and of the small image, under the names of the case."""
    label = torch.zeros(2, 20)
    label[:, torch.from_numpy(ORDER)] = torch.from_numpy(INPUTS["label"]).view(2, 20)
    batch = {"images": torch.from_numpy(INPUTS["image_pair"]), "label": label[None]}
    block: Any = network.transformers[FIRST]
    modules = {"logits": network, "projected": network.project, "features": network.backbone}
    modules |= {"attention": block[0].attention, "out": block[0]}
    pooled: dict[int, Tensor] = {}
    entered: list[Tensor] = []

    def pool(number: int) -> Any:
        def keep(module: Any, inputs: Any, output: Tensor) -> None:
            pooled[number] = output.unflatten(1, (2, -1)).mean(2)[0]

        return keep

    hooks = [one.register_forward_hook(pool(n)) for n, one in enumerate(network.transformers)]
    hooks.append(block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])))
    with torch.inference_mode(), outputs_of(modules) as found:
        terms = the_phase(network).loss({"pairs": batch}, 0)
        masks = network.masks_of(found["features"].conv6)
        small = network.maps(torch.from_numpy(INPUTS["image_small"]))
    for hook in hooks:
        hook.remove()
    return {
        "logits": in_order(found["logits"][0]),
        "loss": sum(terms.values(), torch.zeros(())),
        "masks": masks,
        "masks_small": small,
        "conv6_small_mean": found["features"].conv6.mean((2, 3)),
        "dd_mean": found["projected"].mean((2, 3)),
        "embedded": of_both(entered[0], 8),
        "first_block_in": of_both(entered[0], 4),
        "attention": of_both(found["attention"], 8),
        "first_block_out": of_both(found["out"], 8),
        "pooled": torch.stack([pooled[c] for c in ORDER]),
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, {}))
def test_masks_tokens_attention_scores_and_loss(run: Mapping[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)


def test_parameters_and_what_of_them_is_frozen(network: Edam) -> None:
    assert sum(p.numel() for p in network.parameters()) == 110_337_984
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 109_469_312


def test_the_table_of_positions_may_be_in_the_checkpoint_or_not() -> None:
    network = METHOD.build()
    state = checkpoint(CASE)
    assert TABLE not in state
    table = position_table(46 * 46, 128)
    network.load_published(state | {TABLE: table})
    mask = state["mask_layer.weight"]
    assert torch.equal(network.mask.weight, mask)
    with pytest.raises(HubError, match="another size"):
        network.load_published(state | {TABLE: table[:, :-1]})
    with pytest.raises(HubError, match="other positions"):
        network.load_published(state | {TABLE: table.flip(2)})
    del state["mask_layer.weight"]
    with pytest.raises(HubError, match=r"missing: mask\.weight"):
        network.load_published(state)


def test_the_published_training(network: Edam) -> None:
    phase = the_phase(network)
    others, new = phase.optimizer().param_groups  # type: ignore[union-attr]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(p)].split(".")[0] for p in new["params"]}
    assert found == {"mask", "project", "classifiers"}
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert {id(p) for group in (others, new) for p in group["params"]} == trained
    assert (others["lr"], new["lr"]) == (0.001, pytest.approx(0.01))
    for group in (others, new):
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    assert phase.steps == 25 * 1_322
    middle = (2_000 + phase.steps) // 2
    rates = [phase.schedule(step) for step in (0, 1_000, 2_000, middle)]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.5**0.9])
    source = phase.sources["pairs"]  # type: ignore[index]
    assert (source.batch_size, phase.accumulate) == (4, 4)
