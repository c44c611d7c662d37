"""A trained network, by whatever way: trained now, trained before, or read from a file.

A training has a folder: what was asked for (``run.json``), its checkpoint, its log, its weights.
The folder belongs to its settings: the same command goes on from what is there, another one is told
what differs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from stages.ops.determinism import avoid_cache_sized_sums, reseed
from stages.runtime import distributed
from stages.runtime.checkpoint import load_weights, save_weights, weights_bytes
from stages.runtime.method import Frozen, HasFrozen, Method
from stages.runtime.progress import duration, say
from stages.runtime.session import Session
from stages.runtime.trainer import Trainer
from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.manifest import Ingredient
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors, write_whole

SETTINGS, WEIGHTS, SCRATCH, LOCK = "run.json", "weights.safetensors", "scratch", "lock"
GIVEN = "given"  # with --weights, in place of a training


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
    session: Session,
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
    if session.options.weights is not None:
        return _load_given(session, make, session.options.weights, folder)
    settings = {**settings, "device": session.device.type, "processes": distributed.size()}
    run = RunFolder(folder, settings, fresh=session.options.fresh)
    method = make(run.scratch)
    reseed(seed, "build")
    network = _built(session, method)
    now = run.weights_digest is None
    if now:
        made_from = _load_initial(session, method, network)
        network.to(session.device)
        trainer = Trainer(network, folder, session.train_config(seed))
        say(f"training in {folder}")
        trainer.run(method.phases(network, data))
        run.finish(network, trainer.seconds, made_from)
        say(f"trained in {duration(trainer.seconds)}")
    else:
        say(f"trained before: {run.weights}")
        run.check_weights()
        load_weights(network, run.weights)
        _load_initial(session, method, network, frozen_only=True)
    return _at_rest(session, method, network, run.made_from, now=now)


def _built(session: Session, method: Method) -> nn.Module:
    network = method.build()
    for name, module in network.named_modules():
        held = [key for key, value in vars(module).items() if isinstance(value, Frozen)]
        if held and not isinstance(module, HasFrozen):
            raise TypeError(f"{name or 'the network'} holds {held[0]} and is no HasFrozen")
    if session.options.deterministic and session.device.type == "cpu":
        avoid_cache_sized_sums(network)
    return network


def _load_given(
    session: Session, make: Callable[[Path], Method], path: Path, folder: Path
) -> Trained:
    method = make(folder / GIVEN / SCRATCH)  # what a training kept in the folder is not theirs
    network = _built(session, method)
    load_weights(network, path)
    ingredient = Ingredient(role="weights", file=path.name, digest=session.settings["weights"])
    helpers = _load_initial(session, method, network)
    return _at_rest(session, method, network, [*helpers, ingredient], now=False)


def _load_initial(
    session: Session, method: Method, network: nn.Module, *, frozen_only: bool = False
) -> list[Ingredient]:
    found = []
    for name, initial in session.initial.items():
        if initial.read is None or (frozen_only and not initial.frozen):
            continue
        state = initial.read(method)
        method.load_initial(network, state, name)
        digest = initial.digest
        if digest is None:
            digest = "sha256:" + hashlib.sha256(weights_bytes(state)).hexdigest()
        found.append(Ingredient(role="initial-weights", file=initial.name, digest=digest))
    return found


def _at_rest(
    session: Session, method: Method, network: nn.Module, made_from: list[Ingredient], *, now: bool
) -> Trained:
    network.to(session.device).eval().requires_grad_(False)
    return Trained(method, network, made_from, now)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made if it is missing, for all processes of this command.

    Raises HubError if another command holds it. The lock goes with the process, however it ends.
    """
    held: list[int] = []

    def take() -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held.append(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644))
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HubError(
                f"Another process is at work in {folder}. Wait for it, or choose another --out."
            ) from None

    try:
        distributed.on_main(take)
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


class RunFolder:
    """One training in ``folder``. Make it while the folder is locked.

    Raises HubError if the folder belongs to other settings; with ``fresh`` it is emptied first.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder = folder
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._run: dict[str, Any] = distributed.on_main(lambda: self._claim_folder(fresh))

    @property
    def scratch(self) -> Path:
        return self.folder / SCRATCH

    @property
    def weights(self) -> Path:
        """Where the trained weights are, once the training is finished."""
        return self.folder / WEIGHTS

    @property
    def weights_digest(self) -> str | None:
        """Digest of the file of weights; None before the training is finished."""
        digest: str | None = self._run.get("weights")
        return digest

    @property
    def made_from(self) -> list[Ingredient]:
        """Ingredients of a finished training, and the weights that came of it."""
        return [Ingredient.model_validate(item) for item in self._run.get("made_from", ())]

    def finish(self, network: nn.Module, seconds: float, made_from: Sequence[Ingredient]) -> None:
        """Keep the network's weights, and nothing that only the training needed.

        ``seconds`` is the time that the training took; ``made_from`` what it began with.
        """
        self._run = distributed.on_main(lambda: self._finish(network, seconds, made_from))

    def check_weights(self) -> None:
        """Raises HubError if the finished weights are not those that were written."""

        def check() -> None:
            if not self.weights.is_file() or file_digest(self.weights) != self.weights_digest:
                raise HubError(
                    f"{self.weights} is missing or was changed. Train again with --fresh."
                )

        distributed.on_main(check)

    def _claim_folder(self, fresh: bool) -> dict[str, Any]:
        path = self.folder / SETTINGS
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                _empty(self.folder)
            self.scratch.mkdir(exist_ok=True)
            if not path.exists():
                return self._write({"settings": self._settings})
        try:
            run: dict[str, Any] = json.loads(path.read_text())
            there = run["settings"]
        except (ValueError, KeyError, TypeError):
            raise HubError(f"{path} is damaged. Begin again with --fresh.") from None
        if there != self._settings:
            raise HubError(
                f"{self.folder} belongs to a run with other settings:\n"
                f"{differing(there, self._settings)}\nDiscard it with --fresh, or choose another "
                "--out."
            )
        return run

    def _finish(
        self, network: nn.Module, seconds: float, made_from: Sequence[Ingredient]
    ) -> dict[str, Any]:
        save_weights(network, self.weights)
        digest = file_digest(self.weights)
        weights = Ingredient(role="weights", file=WEIGHTS, digest=digest)
        run = self._write(
            {
                "settings": self._settings,
                "seconds": round(seconds, 1),
                "weights": digest,
                "made_from": [i.model_dump(exclude_none=True) for i in (*made_from, weights)],
            }
        )
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return run

    def _write(self, run: dict[str, Any]) -> dict[str, Any]:
        with disk_errors(self.folder):
            write_whole(self.folder / SETTINGS, json.dumps(run, indent=2).encode() + b"\n")
        return run


def differing(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One line for each setting that differs, nested ones by their path."""
    old, new = dict(_flat(there)), dict(_flat(now))
    lines = [
        f"  {name}: {old.get(name, 'not set')} there, {new.get(name, 'not set')} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    return "\n".join(lines)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)


def _empty(folder: Path) -> None:
    """Remove all but the lock, which is held."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
