"""MCIS against the outputs of the published code (case cam-mcis), all of them.

The network has neither batch norm nor dropout, so that train mode gives the case's numbers. The
tolerance is the case's: 1e-4 relative.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import conformance
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from references import checkpoint, compared
from torch import Tensor

from stages.cam.mcis import COPIES, RECIPES, CoAttention, Method, pair_losses, self_losses
from stages.runtime.method import Phase

pytestmark = pytest.mark.numerical
CASE = "cam-mcis"
INPUTS, OUTPUTS = conformance.load(CASE)
METHOD = Method(RECIPES["published"], Path(), 20)
EPOCH = 10_580 // 5  # steps, of the images below
BATCH = {
    "image1": "x1",
    "image2": "x2",
    "mirrored": "x1_flipped",
    "small": "x1_small",
    "large": "x1_large",
    "label1": "label1",
    "label2": "label2",
}


def the_phase(network: CoAttention) -> Phase:
    data = SimpleNamespace(image_ids=range(10_580), images_by_class=[])
    (phase,) = METHOD.phases(network, data)  # type: ignore[arg-type]
    return phase


@pytest.fixture(scope="module")
def network() -> CoAttention:
    network = METHOD.build()
    network.load_published(checkpoint(CASE))
    return network.train()


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    return {name: torch.from_numpy(INPUTS[theirs]) for name, theirs in BATCH.items()}


@pytest.fixture(scope="module")
@torch.inference_mode()
def run(network: CoAttention, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything of the pair, of the pair with the largest copy, and the losses, under the names of
    the case."""
    one, other, large = (network(batch[name]) for name in ("image1", "image2", "large"))
    attended = network.attend(one, other)
    pair = maps_of(network, one, other)
    twice = maps_of(network, one, large)
    phase = the_phase(network)
    first, later = (phase.loss({"pairs": batch}, step) for step in (0, 2 * EPOCH))
    terms = pair_losses(network, (one, other), (batch["label1"], batch["label2"]))
    copies = [self_losses(network, one, network(batch[name]), batch["label1"]) for name in COPIES]
    return {
        **{f"{name}{n}": maps[n - 1] for name, maps in pair.items() for n in (1, 2)},
        "scores": scores(pair["cam"]),
        "co_scores": scores(pair["co_map"], pair["contrastive_map"]),
        "scores_scale2": scores(twice["cam"]),
        "co_scores_scale2": scores(twice["co_map"], twice["contrastive_map"]),
        "feature1": one[:1],
        "attended1": attended[0][:1],
        "attended2": attended[1][:1],
        "gate1": network.gates(attended[0]),
        "gate2": network.gates(attended[1]),
        "affinity": network.affinities(one, other),
        **{f"loss_{name}": value for name, value in terms.items()},
        "losses_self_basic": torch.stack([one["self_basic"] for one in copies]),
        "losses_self_co": torch.stack([one["self_co"] for one in copies]),
        "loss_first_epochs": sum(first.values(), torch.zeros(())),
        "loss_from_epoch2": sum(later.values(), torch.zeros(())),
    }


def maps_of(network: CoAttention, one: Tensor, other: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """The three kinds of class maps of two features."""
    pairs = [*zip((one, other), network.attend(one, other), strict=True)]
    return {
        "cam": (network.classifier(one), network.classifier(other)),
        "co_map": network.co_maps(one, other),
        "contrastive_map": tuple(network.contrastive_maps(*pair) for pair in pairs),
    }


def scores(*kinds: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([one.mean((2, 3)) for maps in kinds for one in maps])


LEFT_OUT = {
    name: "labels of the losses, which are compared: a wrong one would be another loss"
    for name in ("label_common", "label_only1", "label_only2")
}


@pytest.mark.parametrize("name", compared(OUTPUTS, LEFT_OUT))
def test_features_maps_scores_and_losses(run: dict[str, Tensor], name: str) -> None:
    assert_close_in_norm(run[name], OUTPUTS[name], FLOAT32, name)


def test_the_contrastive_losses_begin_with_the_third_epoch(
    network: CoAttention, batch: dict[str, Tensor]
) -> None:
    phase = the_phase(network)
    with torch.inference_mode():
        totals = [sum(phase.loss({"pairs": batch}, 2 * EPOCH - n).values()) for n in (1, 0)]
    expected = (OUTPUTS["loss_first_epochs"], OUTPUTS["loss_from_epoch2"])
    assert [float(total) for total in totals] == pytest.approx([*map(float, expected)], rel=FLOAT32)


def test_the_published_training(network: CoAttention) -> None:
    phase = the_phase(network)
    assert phase.steps == 11 * EPOCH
    rates = {e: phase.schedule(e * EPOCH) for e in (0, 4, 5, 9, 10)}
    assert rates == pytest.approx({0: 1, 4: 1, 5: 0.1, 9: 0.1, 10: 0.01})
    assert phase.schedule(5 * EPOCH - 1) == 1
    source = phase.sources["pairs"]  # type: ignore[index]
    assert (source.batch_size, source.shuffle) == (5, True)
    groups = phase.optimizer().param_groups  # type: ignore[union-attr]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates_of = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert set(rates_of) == set(names.values())
    for name, rate in rates_of.items():
        new = not name.startswith("backbone.trunk")
        assert rate == pytest.approx(
            1e-3 * (10 if new else 1) * (2 if name.endswith("bias") else 1)
        )
    for group in groups:
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
        assert group["nesterov"]
