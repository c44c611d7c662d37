"""What a training stage works with: the options of the command line, understood."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.runtime import distributed
from stages.runtime.checkpoint import read_tensors
from stages.runtime.determinism import compute_exactly
from stages.runtime.device import check_amp, choose_device
from stages.runtime.method import Method
from stages.runtime.options import TrainOptions, choose_recipe
from stages.runtime.progress import say
from stages.runtime.provenance import environment
from stages.runtime.trainer import TrainConfig
from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.manifest import Environment
from wsssbed_hub.utils.errors import HubError, UsageError

_WORKERS = 8  # at most, unless asked for: more rarely pay


@dataclass(frozen=True)
class InitialWeights:
    """What a training starts from."""

    name: str
    """A file's name, ``timm`` or ``random``."""
    digest: str | None = None
    """Of the file."""
    read: Callable[[Method], Mapping[str, Tensor]] | None = None


@dataclass(frozen=True)
class Session:
    """One stage's options, checked against the method and this machine."""

    stage: str
    options: TrainOptions
    device: torch.device
    environment: Environment
    recipe: Any
    initial: InitialWeights | None
    """None with ``--weights``: nothing is trained."""
    settings: dict[str, Any]
    """What the result depends on, as far as the options tell."""

    def resuming(self) -> Session:
        """This session without ``--fresh``."""
        return replace(self, options=replace(self.options, fresh=False))

    def train_config(self, seed: int) -> TrainConfig:
        options = self.options
        return TrainConfig(
            seed=seed,
            device=self.device,
            amp=options.amp,
            workers=_workers() if options.workers is None else options.workers,
            checkpoint_every=options.checkpoint_every,
        )


def setup(stage: str, method: type[Method], options: TrainOptions) -> Session:
    """Understand the options and prepare this process: device, precision, other processes.

    Raises UsageError for options that contradict each other or that this machine cannot serve,
    HubError for weights that are not there.
    """
    recipe, changes = choose_recipe(
        method.recipes,
        options.recipe,
        assignments=options.set or (),
        steps=options.steps,
        epochs=options.epochs,
        batch_size=options.batch_size,
    )
    initial = None
    if options.weights is not None:
        settings = _settings_of_weights(options.recipe, options.weights, changes)
    else:
        initial = _initial_weights(method, recipe, options.init)
        fields = {name: value for name, value in asdict(recipe).items() if name != "initial"}
        settings = {
            "recipe": {"name": options.recipe} | fields,
            "initial": initial.digest or initial.name,
            "amp": options.amp,
        }
    device, words = choose_device(options.device)
    check_amp(options.amp, device)
    compute_exactly(options.deterministic)
    distributed.start(device)
    several = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    say(f"{stage} on {device} ({words}{several})")
    environs = environment(device, options.amp, options.deterministic)
    return Session(stage, options, device, environs, recipe, initial, settings)


def _settings_of_weights(recipe: str, path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        raise HubError(f"--weights {path}: there is no such file.")
    return {"weights": file_digest(path), "recipe": {"name": recipe} | dict(changes)}


def _initial_weights(method: type[Method], recipe: Any, given: str | None) -> InitialWeights:
    name = method.card.name
    if given is None:
        given = {"none": "random", "timm": "timm"}.get(getattr(recipe, "initial", "none"))
    if given is None:
        wanted = ""
        if method.initial is not None:
            wanted = f": {method.initial.file} ({method.initial.where})"
        raise UsageError(
            f"This recipe of {name} starts from pretrained weights{wanted}. Name them with --init "
            "FILE. --init timm takes what timm has in the Hub cache, --init random starts from "
            "nothing; both depart from the published training."
        )
    if given == "random":
        return InitialWeights("random")
    if given == "timm":
        return InitialWeights("timm", read=lambda built: built.timm_weights())
    path = Path(given)
    if not path.is_file():
        raise HubError(f"--init {given}: there is no such file (nor is it `timm` or `random`).")
    return InitialWeights(path.name, file_digest(path), lambda built: read_tensors(path))


def _workers() -> int:
    """Cores that are left beside the training processes of this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(0, min(_WORKERS, cores // here - 1))
