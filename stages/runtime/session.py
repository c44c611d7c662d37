"""The session of a training stage: the options of the command line, checked and resolved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.ops.determinism import compute_exactly
from stages.runtime import distributed
from stages.runtime.device import check_precision, choose_device
from stages.runtime.file_kinds import require_weights
from stages.runtime.method import Initial, Method
from stages.runtime.options import TrainOptions, choose_recipe, follow_target
from stages.runtime.progress import say
from stages.runtime.provenance import environment
from stages.runtime.trainer import TrainConfig
from stages.runtime.weight_files import read_tensors
from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.manifest import Environment
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean

_WORKERS = 8  # at most, unless asked for: more rarely pay


@dataclass(frozen=True)
class InitialWeights:
    """Weights that a training starts from."""

    name: str
    """A file's name, ``timm`` or ``random``."""
    digest: str | None = None
    """Of the file."""
    read: Callable[[Method], Mapping[str, Tensor]] | None = None
    """None for random weights."""
    frozen: bool = False
    """Whether they are a helper's, which the trained weights do not hold."""

    @property
    def what(self) -> str:
        """Their name in settings."""
        return self.digest or self.name


@dataclass(frozen=True)
class Session:
    """One stage's options, checked against the method and this machine."""

    stage: str
    options: TrainOptions
    device: torch.device
    environment: Environment
    recipe: Any
    initial: Mapping[str, InitialWeights]
    """By name. With ``--weights`` only those of frozen helpers: nothing is trained."""
    settings: dict[str, Any]
    """What the result depends on, as far as the options tell."""

    @property
    def initial_names(self) -> str | None:
        """The weights that the training starts from, in words; None with ``--weights``."""
        if self.options.weights is not None:
            return None
        if len(self.initial) == 1:
            return next(iter(self.initial.values())).name
        return ", ".join(f"{name}: {weights.name}" for name, weights in self.initial.items())

    def resuming(self) -> Session:
        """This session without ``--fresh``."""
        return replace(self, options=replace(self.options, fresh=False))

    @property
    def workers(self) -> int:
        """Processes or threads beside each process that trains or makes maps."""
        return _workers() if self.options.workers is None else self.options.workers

    def train_config(self, seed: int) -> TrainConfig:
        options = self.options
        return TrainConfig(
            seed=seed,
            device=self.device,
            precision=options.precision,
            workers=self.workers,
            checkpoint_every=options.checkpoint_every,
        )


def setup(stage: str, method: type[Method], options: TrainOptions) -> Session:
    """Understand the options and prepare this process: device, precision, other processes.

    Raises UsageError for options that contradict each other or that this machine cannot serve,
    HubError for weights that are not there.
    """
    recipe_name, why = follow_target(method.recipes, options.recipe, options.target)
    recipe, changes = choose_recipe(
        method.recipes,
        recipe_name,
        assignments=options.set or (),
        steps=options.steps,
        epochs=options.epochs,
        batch_size=options.batch_size,
    )
    given = dict(_named(method, text) for text in options.init or ())
    initial = _initial_weights(method, recipe, given, frozen_only=options.weights is not None)
    started_from = {name: weights.what for name, weights in initial.items()}
    if options.weights is not None:
        if given.keys() - initial.keys():
            raise UsageError("With --weights nothing is trained; leave --init out.")
        settings = _settings_of_weights(recipe_name, options.weights, changes)
        if started_from:
            settings["helpers"] = started_from
    else:
        known = {"initial", *(f"initial_{name}" for name in method.initial)}
        recorded = {name: value for name, value in asdict(recipe).items() if name not in known}
        one = next(iter(started_from.values())) if len(started_from) == 1 else None
        settings = {
            "recipe": {"name": recipe_name} | recorded,
            "initial": one or started_from,
            "precision": options.precision,
        }
    device, words = choose_device(options.device)
    check_precision(options.precision, device)
    compute_exactly(options.deterministic)
    distributed.start(device)
    several = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    say(f"{stage} on {device} ({words}{several})")
    if why:
        say(why)
    environs = environment(device, options.precision, options.deterministic)
    return Session(stage, options, device, environs, recipe, initial, settings)


def _settings_of_weights(recipe: str, path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    if not path.exists():
        raise HubError(f"--weights {path}: there is no such file.")
    require_weights(path)
    return {"weights": file_digest(path), "recipe": {"name": recipe} | dict(changes)}


def _initial_weights(
    method: type[Method], recipe: Any, given: Mapping[str, str], *, frozen_only: bool
) -> dict[str, InitialWeights]:
    """Weights as ``--init`` (``given``, by name) and the recipe say. Raises UsageError for what is
    missing, HubError for a file that is not there."""
    found = {}
    for name, initial in _known(method).items():
        frozen = initial is not None and initial.frozen
        if frozen_only and not frozen:
            continue
        field = f"initial_{name}" if len(method.initial) > 1 else "initial"
        by_recipe = {"none": "random", "timm": "timm"}.get(getattr(recipe, field, "none"))
        choice = given.get(name) or by_recipe
        if choice is None:
            raise UsageError(_how_to_name(method, name, initial))
        found[name] = _chosen(name, choice, frozen=frozen)
    return found


def _known(method: type[Method]) -> Mapping[str, Initial | None]:
    return method.initial or {"weights": None}  # that of a method that starts from nothing


def _named(method: type[Method], text: str) -> tuple[str, str]:
    """Name and value of ``--init``. Raises UsageError for a name that the method has not."""
    known = _known(method)
    name, equals, value = text.partition("=")
    if equals and name in known:
        return name, value
    if len(known) == 1:
        return next(iter(known)), text
    raise UsageError(
        f"--init {text}: {method.card.name} starts from several files. Write NAME=FILE, with one "
        f"of the names {', '.join(known)}.{did_you_mean(name, known) if equals else ''}"
    )


def _how_to_name(method: type[Method], name: str, initial: Initial | None) -> str:
    wanted = "" if initial is None else f": {initial.file} ({initial.where})"
    which = f"{name}=" if len(method.initial) > 1 else ""
    return (
        f"This recipe of {method.card.name} starts from pretrained weights{wanted}. Name them with "
        f"--init {which}FILE. --init {which}timm takes what timm has in the Hub cache, --init "
        f"{which}random starts from nothing; both depart from the published training."
    )


def _chosen(name: str, choice: str, *, frozen: bool) -> InitialWeights:
    if choice == "random":
        return InitialWeights("random", frozen=frozen)
    if choice == "timm":
        return InitialWeights("timm", read=lambda built: built.timm_weights(name), frozen=frozen)
    path = Path(choice)
    if not path.exists():
        raise HubError(f"--init {choice}: there is no such file (nor is it `timm` or `random`).")
    require_weights(path)
    digest = file_digest(path)
    return InitialWeights(path.name, digest, lambda built: read_tensors(path), frozen)


def _workers() -> int:
    """Cores that are left beside the training processes of this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    return max(0, min(_WORKERS, cores // here - 1))
