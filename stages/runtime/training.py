"""A trained network, by whatever way: trained now, trained before, or read from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stages.runtime import distributed
from stages.runtime.chance import reseed
from stages.runtime.checkpoint import load_weights, weights_bytes
from stages.runtime.desk import Desk
from stages.runtime.method import Method
from stages.runtime.progress import duration, say
from stages.runtime.runfolder import SCRATCH, RunFolder
from stages.runtime.trainer import Trainer
from wsssbed_hub.artifacts.manifest import Ingredient


@dataclass(frozen=True)
class Trained:
    """A network that makes maps: in eval mode, on the device, without gradients."""

    method: Any
    network: nn.Module
    made_from: list[Ingredient]
    """The weights that training began with, and those that the network has."""
    now: bool
    """Whether it was trained by this command."""


def trained_network(
    desk: Desk,
    make: Callable[[Path], Method],
    data: Any,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    seed: int,
) -> Trained:
    """The network of ``--weights``, or that of ``folder``, trained there now if it is not yet.

    ``make`` gives the method with a folder for its files; ``settings`` are what the training
    depends on; ``folder`` is locked by the caller. A training that was begun goes on. Raises
    HubError if weights do not fit or the folder belongs to other settings, and what
    ``Trainer.run`` raises.
    """
    if desk.options.weights is not None:
        return _load_given(desk, make, desk.options.weights, folder)
    settings = {**settings, "device": desk.device.type, "processes": distributed.size()}
    run = RunFolder(folder, settings, fresh=desk.options.fresh)
    method = make(run.scratch)
    reseed(seed, "build")
    network = method.build()
    now = run.weights_digest is None
    if now:
        made_from = _load_initial(desk, method, network)
        network.to(desk.device)
        trainer = Trainer(network, folder, desk.conduct(seed))
        say(f"training in {folder}")
        trainer.run(method.phases(network, data))
        run.finish(network, trainer.seconds, made_from)
        say(f"trained in {duration(trainer.seconds)}")
    else:
        say(f"trained before: {run.weights}")
        run.check_weights()
        load_weights(network, run.weights)
    return _at_rest(desk, method, network, run.made_from, now=now)


def _load_given(desk: Desk, make: Callable[[Path], Method], path: Path, folder: Path) -> Trained:
    method = make(folder / SCRATCH)
    network = method.build()
    load_weights(network, path)
    ingredient = Ingredient(role="weights", file=path.name, digest=desk.settings["weights"])
    return _at_rest(desk, method, network, [ingredient], now=False)


def _load_initial(desk: Desk, method: Method, network: nn.Module) -> list[Ingredient]:
    initial = desk.initial
    if initial is None or initial.read is None:
        return []
    state = initial.read(method)
    method.load_initial(network, state)
    digest = initial.digest
    if digest is None:
        digest = "sha256:" + hashlib.sha256(weights_bytes(state)).hexdigest()
    return [Ingredient(role="initial-weights", file=initial.name, digest=digest)]


def _at_rest(
    desk: Desk, method: Method, network: nn.Module, made_from: list[Ingredient], *, now: bool
) -> Trained:
    network.to(desk.device).eval().requires_grad_(False)
    return Trained(method, network, made_from, now)
