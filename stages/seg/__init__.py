"""Segmentation: train on labels of the target's train_aug, then measure mIoU on its val split."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from torch import Tensor

from stages.runtime import distributed
from stages.runtime.artifacts import (
    SELECTION,
    Artifact,
    artifact_name,
    images_of,
    list_ingredient,
    open_maps,
)
from stages.runtime.desk import Desk, set_out
from stages.runtime.method import Method
from stages.runtime.options import WHERE, TrainOptions
from stages.runtime.phases import Phase
from stages.runtime.progress import progress, say
from stages.runtime.provenance import provenance
from stages.runtime.runfolder import locked
from stages.runtime.training import Trained, trained_network
from stages.seg._measure import SPLIT as VAL
from stages.seg._measure import Seed, measure, results, summary
from wsssbed_hub.curves import require_ids
from wsssbed_hub.digests import content_digest, image_digest, list_digest
from wsssbed_hub.errors import UsageError
from wsssbed_hub.files import expect_trouble, write_whole
from wsssbed_hub.labelling import ingredient
from wsssbed_hub.manifest import Ingredient, TrainedOn
from wsssbed_hub.maps import Maps
from wsssbed_hub.targets import Target, open_target
from wsssbed_hub.weights import write_weights

SPLIT = "train_aug"
GROUND_TRUTH = "ground-truth"


@dataclass(frozen=True)
class SegData:
    """The images that a segmentation network is trained on, with their labels."""

    target: Target
    image_ids: Sequence[str]
    labels: Maps

    @property
    def num_classes(self) -> int:
        """Background not counted."""
        return self.target.num_classes

    def read_image(self, image_id: str) -> np.ndarray:
        """uint8[H, W, 3], RGB."""
        return self.target.read_image(image_id)

    def read_label(self, image_id: str) -> np.ndarray:
        """uint8[H, W]: 0 background, c + 1 class c, 255 ignored."""
        return np.asarray(self.labels.read(image_id))


class SegMethod(Method):
    """A segmentation network: one file in this folder with a class ``Method`` derived from this."""

    def __init__(self, recipe: Any, scratch: Path, num_classes: int) -> None:
        super().__init__(recipe, scratch)
        self.num_classes = num_classes
        """Of the target, background not counted: the network has one output more."""

    @abstractmethod
    def phases(self, network: Any, data: SegData) -> Iterator[Phase]: ...

    @abstractmethod
    def logits(self, network: Any, rgb: np.ndarray) -> Tensor:
        """float32[C + 1, H, W] of one image uint8[H, W, 3], background first.

        Called with the network in eval mode, in float32, without gradients; the network's
        parameters tell the device.
        """


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    labels: Annotated[str, typer.Option(help=f"Labels to train on: {WHERE}, or `ground-truth`.")]
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Several trainings, one per seed, as in 0,1,2.", show_default="that of --seed"
        ),
    ] = None


def run(stage: str, method: type[SegMethod], options: Options) -> None:
    """Train once for each seed, measure each network on the val split, keep the weights.

    Several seeds give one weights artifact each, ``…-seed0`` and so on, all of which state the
    mean and its standard error beside their own mIoU. ``result.json`` in the run's folder holds
    all that was measured. The last iteration is the result.
    """
    desk = set_out(stage, method, options)
    study = _Study.begin(desk, method, options)
    with locked(study.folder):
        artifacts = {seed: study.artifact(seed) for seed in study.seeds}
        if all([artifact.is_there() for artifact in artifacts.values()]):
            return
        found = {seed: study.train(seed) for seed in study.seeds}
        scores = {seed: one.score for seed, one in found.items()}
        distributed.on_main(lambda: study.write(artifacts, found, scores))
        mean = summary(scores, study.data.target.classes)["miou"]
        error = mean["standard_error"]
        spread = f" ± {error:.4f} ({len(scores)} seeds)" if error is not None else ""
        say(f"mIoU {mean['mean']:.4f}{spread} on {study.data.target.name} {VAL}: {study.folder}")


@dataclass(frozen=True)
class _Found:
    """One trained network: what is left of it."""

    weights: dict[str, np.ndarray]
    made_from: list[Ingredient]
    score: dict[str, Any]


@dataclass(frozen=True)
class _Study:
    """What the trainings of one command share."""

    desk: Desk
    method: type[SegMethod]
    options: Options
    data: SegData
    val: list[str]
    name: str
    """Of the labels, in keys."""
    ingredients: list[Ingredient]
    settings: dict[str, Any]
    seeds: list[Seed]

    @classmethod
    def begin(cls, desk: Desk, method: type[SegMethod], options: Options) -> _Study:
        """Look at everything that the command needs; HubError or UsageError if it is not there."""
        target = open_target(options.target, options.data_root)
        ids = images_of(target, SPLIT, options.limit)
        val = images_of(target, VAL, options.limit)
        truth = options.labels == GROUND_TRUTH
        if truth:
            labels = target.ground_truth(SPLIT)
        else:
            labels = open_maps(options.labels, target.name, "label")
        seeds = _seeds(options)
        settings = desk.settings | {"target": target.name, "limit": options.limit, "seeds": seeds}
        lists = [list_ingredient("val-list", f"{target.name} {VAL}", val)]
        if options.weights is None:
            require_ids(ids, labels, "labels")
            used = _ground_truth(labels, ids, target) if truth else ingredient(labels)
            lists = [list_ingredient("training-list", f"{target.name} {SPLIT}", ids), used, *lists]
            settings |= {"labels": used.digest, "data_list": lists[0].digest}
        name = GROUND_TRUTH if truth else artifact_name(labels)
        data = SegData(target, ids, labels)
        return cls(desk, method, options, data, val, name, lists, settings, seeds)

    @property
    def folder(self) -> Path:
        runs = self.options.out / "runs"
        return runs / f"{self.desk.stage}-{self.data.target.name}-{self.name}"

    def artifact(self, seed: Seed) -> Artifact:
        suffix = f"-seed{seed}" if len(self.seeds) > 1 else ""
        title = f"{self.method.card.name} trained on {self.name} labels of {self.options.target}"
        return Artifact(
            key=f"weights/{self.desk.stage}-{self.name}{suffix}",
            title=title,
            method=self.method.card,
            trained_on=self._trained_on(),
            settings={**self.settings, "seed": seed},
            options=self.options,
        )

    def train(self, seed: Seed) -> _Found:
        """Train and measure with one seed; a score that is known is not measured again."""
        settings = {k: v for k, v in self.settings.items() if k != "seeds"} | {"seed": seed}
        trained = trained_network(
            self.desk,
            lambda scratch: self.method(self.desk.recipe, scratch, self.data.num_classes),
            self.data,
            self.folder / f"seed{seed}",
            settings=settings,
            seed=seed or 0,
        )
        weights = {k: v.cpu().numpy() for k, v in trained.network.state_dict().items()}
        return _Found(weights, trained.made_from, self._score(trained, seed))

    def _score(self, trained: Trained, seed: Seed) -> dict[str, Any]:
        path = self.folder / f"seed{seed}" / "score.json"
        of = {"weights": trained.made_from[-1].digest, "val_list": list_digest(self.val)}
        known = distributed.on_main(lambda: _read_json(path))
        if known.get("of") == of:
            return known["score"]
        score = measure(trained, self.data.target, self.val, self.desk.device)
        if seed is not None:
            distributed.on_main(lambda: _write_json(path, {"of": of, "score": score}))
        say(f"seed {seed}: mIoU {score['miou']:.4f} over {len(self.val):,} images")
        return score

    def write(
        self,
        artifacts: Mapping[Seed, Artifact],
        found: Mapping[Seed, _Found],
        scores: Mapping[Seed, dict[str, Any]],
    ) -> None:
        """The weights artifacts and ``result.json``; by the first process."""
        desk, target = self.desk, self.data.target
        initial = desk.initial.name if desk.initial else None
        known = summary(scores, target.classes)
        known |= {"settings": self.settings, "images": len(self.val), "initial_weights": initial}
        _write_json(self.folder / "result.json", known)
        config = {
            "stage": desk.stage,
            "recipe": asdict(desk.recipe),
            "target": target.name,
            "classes": ["background", *target.classes],
        }
        for seed, artifact in artifacts.items():
            made_from = [*found[seed].made_from, *self.ingredients]
            artifact.complete(
                write_weights(
                    artifact.folder, found[seed].weights, config, settings=artifact.settings
                ),
                provenance(
                    desk.stage,
                    desk.environment,
                    made_from,
                    seed=seed,
                    selection=None if seed is None else SELECTION,
                ),
                results(scores, seed, target.classes, self.val, initial),
            )

    def _trained_on(self) -> list[TrainedOn]:
        if self.name != GROUND_TRUTH or self.options.weights is not None:
            return []
        images = len(self.data.image_ids)
        return [TrainedOn(dataset=self.options.target, images=images, supervision="pixel masks")]


def _seeds(options: Options) -> list[Seed]:
    if options.weights is not None:
        if options.seeds is not None:
            raise UsageError("With --weights nothing is trained; leave --seeds out.")
        return [None]
    if options.seeds is None:
        return [options.seed]
    texts = options.seeds.split(",")
    if not all(text.strip().isdecimal() for text in texts) or len({*texts}) < len(texts):
        raise UsageError(f"--seeds {options.seeds}: write distinct numbers, such as 0,1,2.")
    return [int(text) for text in texts]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with expect_trouble(path.parent):
        write_whole(path, json.dumps(data, indent=2).encode() + b"\n")


def _ground_truth(labels: Maps, ids: Sequence[str], target: Target) -> Ingredient:
    with progress("reading the ground truth", len(ids), "image") as show:
        digests = []
        for image_id in ids:
            digests.append((image_id, image_digest(np.asarray(labels.read(image_id)))))
            show(len(digests), "")
    name = f"ground truth of {target.name} {SPLIT}"
    return Ingredient(role="label", file=name, digest=content_digest("label", digests))
