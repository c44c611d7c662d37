"""DRS against the outputs of the published code, all of them: its module, both kinds of classifier
and the refinement network (cases cam-drs-module, cam-drs, cam-drs-fixed, cam-drs-refine).

The tolerances are the cases'. Maps of classes that are not in an image are not made here; that they
are zero in the cases is checked.
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

from stages.cam._drs import Controller, Drs, Suppression
from stages.cam.drs import RECIPES, Method, localized, refined, refinement_loss, refinement_target
from stages.runtime.method import Image, Phase

pytestmark = pytest.mark.numerical
PUBLISHED = RECIPES["published"]
METHODS = {
    "cam-drs": Method(replace(PUBLISHED, maps="classifier"), Path(), 20),
    "cam-drs-fixed": Method(replace(PUBLISHED, maps="classifier", suppression="fixed"), Path(), 20),
    "cam-drs-refine": Method(PUBLISHED, Path(), 20),
}
CASES = {name: conformance.load(name) for name in (*METHODS, "cam-drs-module")}
TRAIN_AUG = 10_582  # images
CLASSIFIER = ("raw_cam", "logits", "cam", "loss")
CONTROLS = {
    "control_layer1_relu1": "trunk.features.1",
    "control_layer5_relu3": "trunk.features.29",
    "control_extra_relu3": "extra.5",
}
SUPPRESSED = {  # the module, and how many channels of the first image are kept
    "layer1_suppressed": ("trunk.features.1", 8),
    "layer3_suppressed": ("trunk.features.15", 64),
    "layer5_suppressed": ("trunk.features.29", 128),
    "extra_suppressed": ("extra.5", 128),
}
TRAINED = {case: (*CLASSIFIER, *SUPPRESSED) for case in ("cam-drs", "cam-drs-fixed")}
TRAINED["cam-drs"] += (*CONTROLS,)


def network_of(case: str) -> Drs:
    network = METHODS[case].build()
    network.load_published(checkpoint(case))
    return network.eval()


def phases_of(case: str, network: Drs) -> list[Phase]:
    data: Any = SimpleNamespace(image_ids=range(TRAIN_AUG))
    return list(METHODS[case].phases(network, data))


def inputs(case: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in CASES[case][0].items()}


def labelled(label: np.ndarray) -> np.ndarray:
    return np.flatnonzero(label).astype(np.int64)


def every_class(maps: Tensor, class_ids: np.ndarray) -> Tensor:
    """float[20, H, W], zero for other classes."""
    whole = torch.zeros(20, *maps.shape[1:])
    whole[class_ids] = maps
    return whole


def test_every_output_is_compared() -> None:
    module = {"fixed", "fixed_gradient", "learnable", "learnable_control", "learnable_gradient"}
    module |= {"learnable_weight_gradient"}
    refine = {"raw", "refined_grid", "refined_masked", "refined_resized", "target"}
    refine |= {"loss_train", "loss_valid"}
    for case, names in {
        "cam-drs": {*TRAINED["cam-drs"], "ms_maps"},
        "cam-drs-fixed": {*TRAINED["cam-drs-fixed"]},
        "cam-drs-module": module,
        "cam-drs-refine": refine,
    }.items():
        assert compared(CASES[case][1], {}) == sorted(names)


@pytest.fixture(scope="module", params=TRAINED)
def classified(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor]]:
    """A case of a classifier, and everything of one pass under the names of the case."""
    case = request.param
    network, given = network_of(case), inputs(case)
    (phase,) = phases_of(case, network)
    watched = {
        name: network.classifier.features.get_submodule(m) for name, (m, _) in SUPPRESSED.items()
    }
    if case == "cam-drs":
        watched |= {
            name: network.classifier.features.get_submodule(f"{module}.controller")
            for name, module in CONTROLS.items()
        }
    with torch.inference_mode(), outputs_of({**watched, "raw_cam": network.classifier}) as found:
        terms = phase.loss({"crops": {"image": given["x"], "label": given["label"]}}, 0)
        raw, size = found["raw_cam"], tuple(given["x"].shape[2:])
        cams = [
            every_class(localized(raw[n : n + 1, ids], size)[0], ids)
            for n, ids in enumerate(map(labelled, CASES[case][0]["label"]))
        ]
    for name, (_, channels) in SUPPRESSED.items():
        found[name] = found[name][:1, :channels]
    found |= {"loss": sum(terms.values()), "logits": raw.mean((2, 3)), "cam": torch.stack(cams)}
    return case, found


def test_the_classifier(classified: tuple[str, dict[str, Tensor]]) -> None:
    case, found = classified
    for name in TRAINED[case]:
        assert_close_in_norm(found[name], CASES[case][1][name], FLOAT32, f"{case} {name}")


def test_the_maps_of_three_sizes() -> None:
    case = "cam-drs"
    rgb = CASES[case][0]["ms_image"][0].transpose(1, 2, 0)
    class_ids = labelled(CASES[case][0]["ms_label"][0])
    network, data = network_of(case), SimpleNamespace()
    with torch.inference_mode():
        maps = METHODS[case].activations(network, Image("case", rgb, class_ids), data)  # type: ignore[arg-type]
    expected = CASES[case][1]["ms_maps"]
    assert (maps.dtype, maps.shape) == (expected.dtype, expected.shape)
    assert np.abs(maps.astype(int) - expected).max() <= 1
    assert (maps != expected).mean() < 0.01  # rounded down as there, not to the nearest


def through(module: Suppression) -> tuple[Tensor, Tensor]:
    """What the module gives for the case's input, and the gradient to it."""
    given = inputs("cam-drs-module")
    x = given["x"].requires_grad_()
    output = module(x)
    output.backward(given["upstream_gradient"])
    assert x.grad is not None
    return output.detach(), x.grad


def test_fixed_suppression() -> None:
    deltas = CASES["cam-drs-module"][0]["delta"].tolist()
    found = [through(Suppression(delta=delta)) for delta in deltas]
    outputs, gradients = (torch.stack(column) for column in zip(*found, strict=True))
    expected = CASES["cam-drs-module"][1]
    assert_close_in_norm(outputs, expected["fixed"], 1e-5)
    assert_close_in_norm(gradients, expected["fixed_gradient"], 1e-4)


def test_learnable_suppression() -> None:
    weight = inputs("cam-drs-module")["fc_weight"]
    module = Suppression(controller=Controller(len(weight)))
    assert module.controller is not None
    with torch.no_grad():
        module.controller.linear.weight.copy_(weight)
    with outputs_of({"control": module.controller}) as found:
        output, gradient = through(module)
    expected = CASES["cam-drs-module"][1]
    assert_close_in_norm(output, expected["learnable"], 1e-5)
    assert_close_in_norm(found["control"], expected["learnable_control"], 1e-5)
    assert_close_in_norm(gradient, expected["learnable_gradient"], 1e-4)
    to_weight = module.controller.linear.weight.grad
    assert_close_in_norm(to_weight, expected["learnable_weight_gradient"], 1e-4)


def test_the_refinement_network() -> None:
    case = "cam-drs-refine"
    given, expected = inputs(case), CASES[case][1]
    network = network_of(case)
    assert network.refinement is not None
    label = CASES[case][0]["label"]
    ids = labelled(label[0])
    batch = {"image": given["x"], "maps": given["localization_maps"]}
    _, phase = phases_of(case, network)
    size = tuple(given["x"].shape[2:])
    with torch.inference_mode(), outputs_of({"raw": network.refinement}) as found:
        (loss,) = phase.loss({"squares": batch}, 0).values()
        whole = refined(found["raw"], size)
        target = refinement_target(given["localization_maps"])
        masked = whole * given["label"][:, :, None, None]
        resized = refined(found["raw"][:1, ids], (37, 45))[0]
    stored = labelled(label.max(0))
    for name, value in {
        "raw": found["raw"],
        "refined_grid": whole[:, :, ::7, ::7],
        "refined_masked": whole[0, ids],
        "refined_resized": resized,
        "target": target[:, stored],
        "loss_train": loss,
        "loss_valid": refinement_loss(masked, target),
    }.items():
        assert_close_in_norm(value, expected[name], FLOAT32, name)
    assert not np.delete(target.numpy(), stored, 1).any()


def test_parameters() -> None:
    counts = {
        case: sum(p.numel() for p in METHODS[case].build().last.parameters()) for case in METHODS
    }
    trunk, extra = 14_714_688, 3 * (512 * 512 * 9 + 512) + 512 * 20 + 20
    controllers = 2 * (64**2 + 128**2) + 3 * 256**2 + 9 * 512**2
    plain = trunk + extra
    assert counts == {
        "cam-drs": plain + controllers,
        "cam-drs-fixed": plain,
        "cam-drs-refine": plain,
    }


def test_the_published_training() -> None:
    network = METHODS["cam-drs-refine"].build()
    first, second = phases_of("cam-drs-refine", network)
    assert (first.steps, second.steps) == (15 * TRAIN_AUG // 10, 30 * TRAIN_AUG // 10)
    sgd: Any = first.optimizer()
    rates = [group["lr"] for group in sgd.param_groups]
    assert rates == pytest.approx([1e-3, 2e-3, 1e-2, 2e-2])
    assert [len(group["params"]) for group in sgd.param_groups] == [13, 13, 4 + 16, 4]
    for group in sgd.param_groups:
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
        assert group["nesterov"]
    adam: Any = second.optimizer()
    (group,) = adam.param_groups
    assert isinstance(adam, torch.optim.Adam)
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 0)
    assert network.refinement is not None
    assert {*group["params"]} == {*network.refinement.parameters()}
    for phase, epochs, before in ((first, 15, (5, 10)), (second, 30, (10, 20))):
        epoch = [phase.schedule(phase.steps * n // epochs + 1) for n in range(epochs)]
        expected = [0.1 ** sum(n >= drop for drop in before) for n in range(1, epochs + 1)]
        assert epoch == pytest.approx(expected)
    source = first.sources["crops"]  # type: ignore[index]
    assert (source.batch_size, source.shuffle) == (10, True)


def test_new_layers_begin_as_published() -> None:
    torch.manual_seed(0)
    network = METHODS["cam-drs-refine"].build()
    one, two = network.classifier, network.refinement
    assert two is not None
    deviations = {
        one.features.extra[2].weight: (2 / (9 * 512)) ** 0.5,
        one.class_layer.weight: (2 / 20) ** 0.5,
        one.features.extra[5].controller.linear.weight: 0.01,
        one.features.trunk.features[1].controller.linear.weight: 0.01,
        two.features.extra[2].weight: 0.01,
        two.class_layer.weight: 0.01,
    }
    for weight, deviation in deviations.items():
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    for bias in (one.class_layer.bias, two.features.extra[2].bias, two.class_layer.bias):
        assert not bias.any()  # type: ignore[union-attr]
