"""Segmentation: train on labels of a target's training split, measure mIoU on its val split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

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
from stages.runtime.densecrf import PRESETS
from stages.runtime.method import Method, Phase
from stages.runtime.options import WHERE, Seeds, TrainOptions
from stages.runtime.progress import progress, say
from stages.runtime.provenance import provenance
from stages.runtime.session import Session, setup
from stages.runtime.study import VAL, Seed, in_words, read_json, seeds_of, write_json
from stages.runtime.training import Trained, locked, trained_network
from stages.seg._measure import NO_CRF, Crf, measure, stated, summary
from wsssbed_hub.artifacts.digests import content_digest, image_digest, list_digest
from wsssbed_hub.artifacts.manifest import Ingredient, TrainedOn
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.datasets import Target, open_target
from wsssbed_hub.evaluation.curves import require_ids
from wsssbed_hub.evaluation.labelling import ingredient
from wsssbed_hub.registry.open_artifact import Maps

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

    published_crf: ClassVar[Mapping[str, str]] = {}
    """Settings of the CRF in the published evaluation, by target; ``none`` on all others."""

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
    seeds: Seeds = None
    crf: Annotated[
        str | None,
        typer.Option(
            help=f"Measure with this CRF too: {', '.join(PRESETS)}; or none. It takes as many "
            "threads as there are --workers.",
            show_default="as published: deeplab on voc12",
        ),
    ] = None


def run(stage: str, method: type[SegMethod], options: Options) -> None:
    """Train once for each seed, measure each network on the val split, keep the weights.

    Several seeds give one weights artifact each, ``…-seed0`` and so on, all of which state the
    mean and its standard error beside their own mIoU. ``result.json`` in the run's folder holds
    all that was measured. The last iteration is the result.
    """
    session = setup(stage, method, options)
    study = _Study.begin(session, method, options)
    with locked(study.folder):
        artifacts = {seed: study.artifact(seed) for seed in study.seeds}
        if all([artifact.is_there() for artifact in artifacts.values()]):
            return
        found = {seed: study.train(seed) for seed in study.seeds}
        scores = {seed: one.score for seed, one in found.items()}
        distributed.on_main(lambda: study.write(artifacts, found, scores))
        mean = summary(scores, study.data.target.classes, study.crf)
        said = f"mIoU {in_words(mean['miou'], len(scores))}"
        if study.crf is not None:
            said += f", {in_words(mean['crf']['miou'], len(scores))} with CRF {study.crf.preset}"
        say(f"{said} on {study.data.target.name} {VAL}: {study.folder}")


@dataclass(frozen=True)
class _Found:
    """One trained network: what is left of it."""

    weights: dict[str, np.ndarray]
    made_from: list[Ingredient]
    score: dict[str, Any]


@dataclass(frozen=True)
class _Study:
    """What the trainings of one command share."""

    session: Session
    method: type[SegMethod]
    options: Options
    data: SegData
    val: list[str]
    name: str
    """Of the labels, in keys."""
    ingredients: list[Ingredient]
    settings: dict[str, Any]
    """All that the trainings depend on."""
    seeds: list[Seed]
    crf: Crf | None
    """Of the measurement."""

    @classmethod
    def begin(cls, session: Session, method: type[SegMethod], options: Options) -> _Study:
        """Look at everything that the command needs; HubError or UsageError if it is not there."""
        published = method.published_crf.get(options.target, NO_CRF)
        crf = Crf.of(published if options.crf is None else options.crf)
        target = open_target(options.target, options.data_root)
        ids = images_of(target, target.training_split, options.limit)
        val = images_of(target, VAL, options.limit)
        truth = options.labels == GROUND_TRUTH
        if truth:
            labels = target.ground_truth(target.training_split)
        else:
            labels = open_maps(options.labels, target.name, "label")
        seeds = seeds_of(options.seeds, options)
        settings = session.settings | {
            "target": target.name,
            "limit": options.limit,
            "seeds": seeds,
        }
        lists = [list_ingredient("val-list", f"{target.name} {VAL}", val)]
        if options.weights is None:
            require_ids(ids, labels, "labels")
            used = _ground_truth(labels, ids, target) if truth else ingredient(labels)
            lists = [
                list_ingredient("training-list", f"{target.name} {target.training_split}", ids),
                used,
                *lists,
            ]
            settings |= {"labels": used.digest, "data_list": lists[0].digest}
        name = GROUND_TRUTH if truth else artifact_name(labels)
        data = SegData(target, ids, labels)
        return cls(session, method, options, data, val, name, lists, settings, seeds, crf)

    @property
    def folder(self) -> Path:
        runs = self.options.out / "runs"
        return runs / f"{self.session.stage}-{self.data.target.name}-{self.name}"

    def artifact(self, seed: Seed) -> Artifact:
        suffix = f"-seed{seed}" if len(self.seeds) > 1 else ""
        title = f"{self.method.card.name} trained on {self.name} labels of {self.options.target}"
        return Artifact(
            key=f"weights/{self.session.stage}-{self.name}{suffix}",
            title=title,
            method=self.method.card,
            trained_on=self._trained_on(),
            settings={**self.settings, **self._measuring(), "seed": seed},
            options=self.options,
        )

    def _measuring(self) -> dict[str, str]:
        """What the manifest's numbers depend on beside the training."""
        return {"crf": self.crf.preset} if self.crf else {}

    def train(self, seed: Seed) -> _Found:
        """Train and measure with one seed; a score that is known is not measured again."""
        settings = {k: v for k, v in self.settings.items() if k != "seeds"} | {"seed": seed}
        trained = trained_network(
            self.session,
            lambda scratch: self.method(self.session.recipe, scratch, self.data.num_classes),
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
        of |= self._measuring()
        known = distributed.on_main(lambda: read_json(path))
        if known.get("of") == of:
            return known["score"]
        threads = max(1, self.session.train_config(seed or 0).workers)
        score = measure(
            trained, self.data.target, self.val, self.session.device, crf=self.crf, threads=threads
        )
        if seed is not None:
            distributed.on_main(lambda: write_json(path, {"of": of, "score": score}))
        refined = f", {score['crf']['miou']:.4f} with CRF" if self.crf else ""
        who = "these weights" if seed is None else f"seed {seed}"
        say(f"{who}: mIoU {score['miou']:.4f}{refined} over {len(self.val):,} images")
        return score

    def write(
        self,
        artifacts: Mapping[Seed, Artifact],
        found: Mapping[Seed, _Found],
        scores: Mapping[Seed, dict[str, Any]],
    ) -> None:
        """The weights artifacts and ``result.json``; by the first process."""
        session, target = self.session, self.data.target
        initial = session.initial.name if session.initial else None
        known = summary(scores, target.classes, self.crf)
        known |= {"settings": self.settings, "images": len(self.val), "initial_weights": initial}
        write_json(self.folder / "result.json", known)
        config = {
            "stage": session.stage,
            "recipe": asdict(session.recipe),
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
                    session.stage,
                    session.environment,
                    made_from,
                    seed=seed,
                    selection=None if seed is None else SELECTION,
                ),
                stated(scores, seed, target.classes, self.val, initial, self.crf),
            )

    def _trained_on(self) -> list[TrainedOn]:
        if self.name != GROUND_TRUTH or self.options.weights is not None:
            return []
        images = len(self.data.image_ids)
        return [TrainedOn(dataset=self.options.target, images=images, supervision="pixel masks")]


def _ground_truth(labels: Maps, ids: Sequence[str], target: Target) -> Ingredient:
    with progress("reading the ground truth", len(ids), "image") as show:
        digests = []
        for image_id in ids:
            digests.append((image_id, image_digest(np.asarray(labels.read(image_id)))))
            show(len(digests), "")
    name = f"ground truth of {target.name} {target.training_split}"
    return Ingredient(role="label", file=name, digest=content_digest("label", digests))
