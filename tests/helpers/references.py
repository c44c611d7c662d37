"""What the conformance tests share: a case's checkpoint as tensors, and what modules give out.

Every test takes the product's own way: ``Method.build``, ``load_published``, ``Phase.loss``,
``Method.saliency``, ``activations`` or ``logits``. An output of the case that is not compared is
named in the test with its reason (``compared`` refuses names that it does not know).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import conformance
import numpy as np
import torch
from torch import Tensor, nn

from stages.backbones.resnet38 import ResNet38


def checkpoint(case: str) -> dict[str, Tensor]:
    """The checkpoint that the reference ran with, under the authors' names."""
    state = conformance.checkpoint(case)
    return {key: torch.from_numpy(np.asarray(array)) for key, array in state.items()}


def compared(outputs: Mapping[str, np.ndarray], left_out: Mapping[str, str]) -> list[str]:
    """The names of a case's outputs but those that are left out, each with its reason."""
    unknown = left_out.keys() - outputs.keys()
    assert not unknown, f"no outputs of the case: {unknown}"
    assert all(left_out.values())
    return sorted(outputs.keys() - left_out.keys())


@contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects what each of the named modules gives out, the last time it is called."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output

        hooks.append(modules[name].register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name in modules:
        keep(name)
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def resnet38_outputs(backbone: ResNet38) -> Iterator[dict[str, Tensor]]:
    """Features and residual sums of a whole ResNet-38, the last time it is called, by the names of
    the cases on it; there when the block is left."""
    modules = {
        "mean.b2_2": backbone.stage2,
        "mean.b3_2": backbone.stage3,
        "mean.b4_5": backbone.stage4,
        "mean.b5_2": backbone.stage5[2],
        "shortcut": backbone.stage6[0].shortcut,
        "branch": backbone.stage6[0].conv3,
        "mean.b7": backbone.stage7,
        "features": backbone,
    }
    named: dict[str, Tensor] = {}
    with outputs_of(modules) as found:
        yield named
    features = found.pop("features")
    found["mean.b6"] = found.pop("shortcut") + found.pop("branch")
    named |= {name: value.mean((2, 3)) for name, value in found.items()}
    named |= {"conv4": features.conv4}
    named |= {f"conv{n}_mean": getattr(features, f"conv{n}").mean((2, 3)) for n in (5, 6)}


def resnet38_published_name(key: str) -> str:
    """The authors' name for an entry of our ResNet-38."""
    if key.startswith("stem."):
        return "conv1a." + key.removeprefix("stem.")
    if key.startswith("norm."):
        return "bn7." + key.removeprefix("norm.")
    stage, block, module, last = key.split(".")
    number = stage.removeprefix("stage")
    name = f"b{number}" if block == "0" else f"b{number}_{block}"
    branch = {"1": "2a", "2": "2b1", "3": "2b2"}
    if module == "shortcut":
        return f"{name}.conv_branch1.{last}"
    return f"{name}.{module[:-1]}_branch{branch[module[-1]]}.{last}"
