"""Studies: the trainings of one command, over seeds and over whatever a method compares.

Each is done once and measured once, whatever asks for it; each artifact is written once. A stage
that trains one network is a ``train_and_write``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.runtime import distributed
from stages.runtime.artifacts import Artifact, write_artifact
from stages.runtime.measuring import Benchmark, Score, Seed
from stages.runtime.method import Image, Method
from stages.runtime.options import TrainOptions
from stages.runtime.progress import say
from stages.runtime.provenance import provenance
from stages.runtime.session import Session
from stages.runtime.training import Trained, locked, trained_network
from wsssbed_hub.artifacts.manifest import Ingredient, Provenance
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.datasets import Target
from wsssbed_hub.registry.open_artifact import Activations, Maps, open_artifact
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.files import disk_errors, write_whole

SELECTION = "last iteration"


def seeds_of(seeds: str | None, options: TrainOptions) -> list[Seed]:
    """The seeds that ``--seeds`` names, else that of ``--seed``; None with ``--weights``.

    Raises UsageError for what are no distinct numbers, and for seeds with ``--weights``.
    """
    if options.weights is not None:
        if seeds is not None:
            raise UsageError("With --weights nothing is trained; leave --seeds out.")
        return [None]
    if seeds is None:
        return [options.seed]
    texts = seeds.split(",")
    if not all(text.strip().isdecimal() for text in texts) or len({*texts}) < len(texts):
        raise UsageError(f"--seeds {seeds}: write distinct numbers, such as 0,1,2.")
    return [int(text) for text in texts]


@dataclass(frozen=True)
class Training:
    """One network of a study: how it is made, on what it is trained, and where."""

    folder: Path
    """Below the study's, which is locked; ``folder_of`` names it after the seed."""
    make: Callable[[Path], Method]
    """Gives the method, with a folder for its files."""
    data: Any
    settings: Mapping[str, Any]
    """All that the training depends on."""
    seed: Seed
    ingredients: Sequence[Ingredient] = ()
    """What it is trained on, for the provenance; not the initial weights."""


@dataclass(frozen=True)
class Inference:
    """How a trained network makes maps."""

    kind: str
    read: Callable[[str], Image]
    """The image of an id; called ahead, in threads."""
    make: Callable[[Trained, Image], np.ndarray | Activations]


@dataclass(frozen=True)
class Measured:
    """A trained network as it is kept while the next one is trained."""

    training: Training
    weights: dict[str, np.ndarray]
    made_from: list[Ingredient]
    scores: dict[str, Score]
    """By the name of the benchmark."""


class Study:
    """The trainings of one command, and the artifacts that come of them.

    Artifacts are described without their seed: of several seeds each has its own, ``…-seed0``.
    """

    def __init__(self, session: Session, seeds: Sequence[Seed]) -> None:
        self.session, self.seeds = session, list(seeds)
        self._begun: set[Path] = set()
        self._trained: set[Path] = set()  # by this command
        self._finished: set[str] = set()  # artifacts, by an earlier command
        self._maps: dict[Path, tuple[Maps, list[Ingredient]]] = {}  # by their folder

    def of_seed(self, artifact: Artifact, seed: Seed) -> Artifact:
        """The artifact that is made with one of the seeds."""
        several = len(self.seeds) > 1
        return replace(artifact, key=f"{artifact.key}-seed{seed}") if several else artifact

    def is_finished(self, artifacts: Mapping[Seed, Iterable[Artifact]]) -> bool:
        """Whether an earlier command made all of these, which are given by seed; those that it
        made are not written again.

        Raises HubError as ``Artifact.is_there`` does.
        """
        there = {}
        for seed, of_seed in artifacts.items():
            for artifact in (self.of_seed(one, seed) for one in of_seed):
                there[artifact.key] = artifact.is_there()
        self._finished |= {key for key, is_there in there.items() if is_there}
        return all(there.values())

    def train(self, training: Training) -> Trained:
        """The network of a training, trained now if it is not yet.

        ``--fresh`` discards it the first time only: others may build on it. Raises what
        ``trained_network`` raises.
        """
        again = training.folder in self._begun
        self._begun.add(training.folder)
        trained = trained_network(
            self.session.resuming() if again else self.session,
            training.make,
            training.data,
            training.folder,
            settings=training.settings,
            seed=training.seed or 0,
        )
        if trained.now:
            self._trained.add(training.folder)
        return replace(trained, now=training.folder in self._trained)

    def measure(
        self, training: Training, trained: Trained, benchmarks: Iterable[Benchmark], who: str = ""
    ) -> Measured:
        """Scores of a network, which people know as ``who`` and by its seed.

        The training's folder keeps them; those that it has are not measured again.
        """
        seed = "" if training.seed is None else f"seed {training.seed}"
        who = ", ".join(filter(None, (who, seed))) or "these weights"
        scores = {}
        for one in benchmarks:
            scores[one.name] = self._score(training, trained, one)
            say(f"{who}: {one.words([scores[one.name]])}")
        weights = {k: v.cpu().numpy() for k, v in trained.network.state_dict().items()}
        return Measured(training, weights, trained.made_from, scores)

    def _score(self, training: Training, trained: Trained, benchmark: Benchmark) -> Score:
        path = training.folder / "score.json"
        of = {"weights": trained.made_from[-1].digest, **benchmark.depends_on}
        known = distributed.on_main(lambda: read_json(path).get(benchmark.name))
        if isinstance(known, dict) and known.get("of") == of:
            return known["score"]
        score = benchmark.measure(trained)
        entry = {benchmark.name: {"of": of, "score": score}}
        distributed.on_main(lambda: write_json(path, read_json(path) | entry))
        return score

    def maps(self, training: Training, artifact: Artifact, how: Inference) -> Maps:
        """The maps that others are trained on: made once, and kept in the training's folder.

        ``artifact`` describes them; it is written by ``publish`` alone.
        """
        return self._kept(training, artifact, how)[0]

    def publish(self, training: Training, artifact: Artifact, how: Inference) -> Maps:
        """``maps``, which are copied into the artifact unless that is finished."""
        maps, made_from = self._kept(training, artifact, how)
        artifact = self.of_seed(artifact, training.seed)
        if artifact.key not in self._finished:
            artifact.discard_unfinished()  # what is there may come of another training
            made = partial(self._made, training, made_from)
            write_artifact(artifact, how.kind, maps.read, made, **self._beside)
        return maps

    def write_maps(
        self,
        training: Training,
        trained: Trained,
        artifact: Artifact,
        how: Inference,
        more: Sequence[Ingredient] = (),
    ) -> None:
        """Write the maps that come of a trained network, unless they are finished.

        ``more`` are ingredients beside those of the training.
        """
        artifact = self.of_seed(artifact, training.seed)
        if artifact.key not in self._finished:
            if trained.now or self.session.options.fresh:
                artifact.discard_unfinished()
            self._infer(training, trained, artifact, how, more)

    def _kept(
        self, training: Training, artifact: Artifact, how: Inference
    ) -> tuple[Maps, list[Ingredient]]:
        """The maps, and what this command makes them from: their own manifest names a command that
        may have left no artifact."""
        options = replace(artifact.options, out=training.folder, version="1.0.0", fresh=False)
        kept = replace(artifact, options=options)
        if kept.folder not in self._maps:
            trained = self.train(training)
            if not kept.is_there():
                self._infer(training, trained, kept, how)
            maps = open_artifact(kept.folder, options.target, kind=how.kind)
            self._maps[kept.folder] = (maps, trained.made_from)
        return self._maps[kept.folder]

    def _infer(
        self,
        training: Training,
        trained: Trained,
        artifact: Artifact,
        how: Inference,
        more: Sequence[Ingredient] = (),
    ) -> None:
        write_artifact(
            artifact,
            how.kind,
            partial(how.make, trained),
            partial(self._made, training, trained.made_from, more),
            read=how.read,
            **self._beside,
        )

    def write_weights(
        self,
        artifact: Callable[[Seed], Artifact],
        measured: Mapping[Seed, Measured],
        benchmarks: Sequence[Benchmark],
        target: Target,
        **config: Any,
    ) -> None:
        """Write the weights of each seed with what they are worth, unless they are finished.

        ``config`` goes into ``config.json``, beside stage, recipe, target and classes. Several
        seeds make several artifacts, which all state the mean and its standard error.
        """
        config = {
            "stage": self.session.stage,
            **config,
            "recipe": asdict(self.session.recipe),
            "target": target.name,
            "classes": ["background", *target.classes],
        }
        initial, lists = self.session.initial_names, [one.images for one in benchmarks]

        def write(to: Artifact, one: Measured) -> None:
            written = write_weights(to.folder, one.weights, config, settings=to.settings)
            results = [
                result
                for benchmark in benchmarks
                for result in benchmark.results(
                    scores_of(benchmark, measured), one.training.seed, initial
                )
            ]
            to.complete(written, self._made(one.training, one.made_from, lists), results)

        for seed, one in measured.items():
            to = self.of_seed(artifact(seed), seed)
            if to.key not in self._finished:
                distributed.on_main(partial(write, to, one))
                say(f"{to.key}@{to.options.version}: in {to.folder}")

    @property
    def _beside(self) -> dict[str, Any]:
        """Where maps are made, and with how many threads beside."""
        return {"device": self.session.device, "workers": self.session.workers}

    def _made(
        self,
        training: Training,
        made_from: Sequence[Ingredient],
        more: Sequence[Ingredient] = (),
    ) -> Provenance:
        return provenance(
            self.session.stage,
            self.session.environment,
            [*made_from, *training.ingredients, *more],
            seed=training.seed,
            selection=None if training.seed is None else SELECTION,
        )


def train_and_write(
    session: Session,
    training: Training,
    artifact: Artifact,
    how: Inference,
    more: Sequence[Ingredient],
) -> None:
    """The whole of a stage that trains one network and makes maps with it.

    ``more`` are ingredients beside those of the training. What an earlier command did is not done
    again.
    """
    study = Study(session, [training.seed])
    with locked(training.folder):
        if not study.is_finished({training.seed: [artifact]}):
            study.write_maps(training, study.train(training), artifact, how, more)


def scores_of(benchmark: Benchmark, measured: Mapping[Seed, Measured]) -> dict[Seed, Score]:
    """Scores there of the networks of all seeds."""
    return {seed: one.scores[benchmark.name] for seed, one in measured.items()}


def folder_of(root: Path, seed: Seed) -> Path:
    """Folder of what belongs to a seed, or to weights that were given."""
    return root / ("given" if seed is None else f"seed{seed}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object at ``path``; an empty one if there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replaces the file at ``path``, in a folder that is made if it is missing."""
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(data, indent=2).encode() + b"\n")
