"""The losses of EPS against those of the published code (case cam-eps-loss), all outputs of it.

The network's part is played by one that gives the case's maps; the losses are those of the
method's phase. The tolerance is the case's: 1e-4 relative.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import conformance
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import compared
from torch import Tensor, nn

from stages.cam.eps import RECIPES, Method, estimate_saliency, overlaps, probabilities
from stages.ops.resizing import resize_nearest

pytestmark = pytest.mark.numerical
INPUTS, OUTPUTS = conformance.load("cam-eps-loss")
CASES = sorted({name.partition(".")[0] for name in INPUTS})


class Given(nn.Module):
    """Gives the maps that it was made with."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.given = nn.Parameter(maps)

    def maps(self, image: Tensor) -> Tensor:
        return self.given


def method(case: str) -> Method:
    recipe = replace(
        RECIPES["published-voc"],
        least_overlap=INPUTS[f"{case}.tau"].item(),
        foreground_weight=INPUTS[f"{case}.lam"].item(),
    )
    return Method(recipe, Path(), INPUTS[f"{case}.label"].shape[1])


def losses_and_gradients(case: str) -> dict[str, Tensor]:
    batch = {name: torch.from_numpy(INPUTS[f"{case}.{name}"]) for name in ("saliency", "label")}
    batch["image"] = torch.zeros(1)
    found = {}
    for terms in (("saliency",), ("classification", "saliency")):
        network = Given(torch.from_numpy(INPUTS[f"{case}.cam"]))
        data = SimpleNamespace(image_ids=range(8))
        (phase,) = method(case).phases(network, data)  # type: ignore[arg-type]
        losses = phase.loss({"views": batch}, 0)
        torch.stack([losses[name] for name in terms]).sum().backward()
        found["grad_sal" if terms == ("saliency",) else "grad_total"] = network.given.grad
        assert losses.keys() == {"classification", "saliency"}
        found |= {
            "loss_cls": losses["classification"],
            "loss_sal": losses["saliency"],
            "loss_total": sum(losses.values()),
        }
    return found


def estimates(case: str) -> dict[str, Tensor]:
    probability = probabilities(torch.from_numpy(INPUTS[f"{case}.cam"]))
    saliency = torch.from_numpy(INPUTS[f"{case}.saliency"])
    overlap = overlaps(probability[:, :-1], resize_nearest(saliency, probability.shape[2:]))
    label = torch.from_numpy(INPUTS[f"{case}.label"])
    found = estimate_saliency(probability, label, overlap, method(case).recipe)
    return {
        "overlap": overlap,
        "fg_map": found.foreground,
        "bg_map": found.not_background,
        "sal_pred": found.saliency,
    }


@pytest.fixture(scope="module")
def run() -> dict[str, Tensor]:
    return {
        f"{case}.{name}": value
        for case in CASES
        for name, value in (losses_and_gradients(case) | estimates(case)).items()
    }


@pytest.mark.parametrize("name", compared(OUTPUTS, {}))
def test_losses_their_gradients_and_the_maps_of_saliency(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)
