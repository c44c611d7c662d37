"""Segmentation: train on labels of a target's training split, measure mIoU on its val split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import typer
from torch import Tensor

from stages.runtime import distributed
from stages.runtime.artifacts import (
    Artifact,
    artifact_name,
    images_of,
    list_ingredient,
    open_maps,
)
from stages.runtime.measuring import VAL, Predicted, Score, Seed, Segmentation
from stages.runtime.method import Image, Method, Phase
from stages.runtime.options import WHERE, SeveralTrainings
from stages.runtime.progress import progress, say
from stages.runtime.session import Session, setup
from stages.runtime.study import (
    Measured,
    Study,
    Training,
    folder_of,
    scores_of,
    seeds_of,
    write_json,
)
from stages.runtime.training import WEIGHTS, Trained, locked, trained_network
from stages.seg._crf import CRFS, NO_CRF, Crf, decide, scores_over_seeds
from stages.seg._predictions import (
    SERVERS,
    Predictions,
    requested,
    require_server,
)
from wsssbed_hub.artifacts.digests import content_digest, image_digest
from wsssbed_hub.artifacts.manifest import Ingredient, TrainedOn
from wsssbed_hub.datasets import Target, find_target, open_target
from wsssbed_hub.evaluation.curves import require_ids
from wsssbed_hub.evaluation.labelling import ingredient
from wsssbed_hub.registry.open_artifact import Maps
from wsssbed_hub.utils.errors import HubError, UsageError

GROUND_TRUTH = "ground-truth"
IGNORED = 255


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
        """uint8[H, W]: 0 background, c + 1 class c, 255 ignored.

        Raises HubError for a class that the target has not.
        """
        label = np.asarray(self.labels.read(image_id))
        unknown = np.unique(label[(label > self.num_classes) & (label != IGNORED)])
        if unknown.size:
            raise HubError(
                f"{self.labels.name}: the label of {image_id} has the value {unknown[0]}, and "
                f"{self.target.name} has {self.num_classes} classes: 0 background, 1 to "
                f"{self.num_classes}, 255 ignored. Were these labels made for another target?"
            )
        return label


def read_pair(data: SegData, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8[H, W, 3] (RGB) and label uint8[H, W]. HubError if they differ in size."""
    rgb, label = data.read_image(image_id), data.read_label(image_id)
    if rgb.shape[:2] != label.shape:
        raise HubError(
            f"{data.labels.name}: the label of {image_id} has {label.shape} pixels "
            f"(height, width), its image {rgb.shape[:2]}. Make the labels again."
        )
    return rgb, label


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
    def logits(self, network: Any, image: Image) -> Tensor:
        """float32[C + 1, H, W] of an image, background first.

        Called with the network in eval mode, in float32, without gradients; the network's
        parameters tell the device.
        """


@dataclass(frozen=True, kw_only=True)
class Options(SeveralTrainings):
    labels: Annotated[
        str | None,
        typer.Option(
            help=f"Labels to train on: {WHERE}, or `ground-truth`. With --weights and "
            "--predictions they may be left out: then nothing is measured, and no artifact made."
        ),
    ] = None
    crf: Annotated[
        str | None,
        typer.Option(
            help=f"Measure with this CRF too: {', '.join(CRFS)}; or none. It takes as many "
            "threads as there are --workers.",
            show_default="as published: deeplab on voc12",
        ),
    ] = None
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the predicted label maps to, as palette PNGs; with a CRF below "
            "`raw` and `crf`, of several seeds below `seed0` and so on.",
            metavar="DIR",
        ),
    ] = None
    predictions_of: Annotated[
        str,
        typer.Option(
            help="Images to predict: a split of the target (also one without masks, VOC's test), "
            "or a folder of images, with a slash: ./photos.",
            metavar="SPLIT|FOLDER",
        ),
    ] = VAL
    server: Annotated[
        str | None,
        typer.Option(
            help="Write the predictions as an evaluation server takes them, and zip them: "
            f"{', '.join(SERVERS)}."
        ),
    ] = None

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        yield from super().useless()
        if self.predictions is None:
            yield ["predictions_of", "server"], "Without --predictions none are written"
        if self.labels is None:
            yield ["version"], "Without --labels no artifact is made"


def key_of(stage: str, method: type[SegMethod], labels: str) -> str:
    """The key of the weights of a network that is trained on ``labels``."""
    return f"weights/{stage}-{labels}"


def run(stage: str, method: type[SegMethod], options: Options) -> None:
    """Train once for each seed, measure each network on the val split, keep the weights.

    Several seeds give one weights artifact each, ``…-seed0`` and so on, all of which state the
    mean and its standard error beside their own mIoU. ``result.json`` in the run's folder holds
    all that was measured. The last iteration is the result.
    """
    require_server(options.server)
    if options.labels is None and None in (options.weights, options.predictions):
        raise UsageError(
            f"Name the labels to train on with --labels: {WHERE}, or {GROUND_TRUTH}. They may be "
            "left out with --weights and --predictions."
        )
    session = setup(stage, method, options)
    if options.labels is None:
        _predict_alone(session, method, options)
        return
    request = _Request.understood(session, method, options)
    with locked(request.folder):
        study = Study(session, request.seeds)
        artifacts = {seed: [request.artifact(seed)] for seed in request.seeds}
        finished = study.is_finished(artifacts)
        if not request.to_predict(finished) and finished:
            return
        measured = {seed: request.measured(study, seed) for seed in request.seeds}
        scores = scores_of(request.benchmark, measured)
        distributed.on_main(lambda: request.write_result(scores))
        study.write_weights(
            request.artifact, measured, [request.benchmark], request.benchmark.target
        )
        say(f"{request.benchmark.words(scores.values())}: {request.folder}")


@dataclass(frozen=True)
class _Request:
    """One command's request, checked: its data, its seeds and how to measure."""

    session: Session
    method: type[SegMethod]
    data: SegData
    benchmark: Segmentation
    name: str
    """Of the labels, in keys."""
    ingredients: list[Ingredient]
    """What the networks are trained on."""
    settings: dict[str, Any]
    """All that the trainings depend on."""
    seeds: list[Seed]
    crf: Crf | None
    """With which it is measured too."""
    predictions: Predictions | None
    """To be written too; each seed's own."""

    @classmethod
    def understood(cls, session: Session, method: type[SegMethod], options: Options) -> _Request:
        """Look at everything that the command needs; HubError or UsageError if it is not there."""
        assert options.labels is not None
        crf = _crf_of(method, options)
        target = open_target(options.target, options.data_root)
        ids = images_of(target, target.training_split, options.limit)
        val = images_of(target, VAL, options.limit)
        truth = options.labels == GROUND_TRUTH
        if truth:
            labels = target.ground_truth(target.training_split)
        else:
            labels = open_maps(options.labels, target.name, "label")
        seeds = seeds_of(options.seeds, options)
        settings = session.settings | {"target": target.name, "limit": options.limit}
        ingredients = []
        if options.weights is None:
            require_ids(ids, labels, "labels")
            used = _ground_truth(labels, ids, target) if truth else ingredient(labels)
            seen = list_ingredient("training-list", f"{target.name} {target.training_split}", ids)
            ingredients = [seen, used]
            settings |= {"labels": used.digest, "data_list": seen.digest}
        name = GROUND_TRUTH if truth else artifact_name(labels)
        data = SegData(target, ids, labels)
        predictions = requested(session, options, crf.preset if crf else None, settings, target)
        benchmark = Segmentation(
            target,
            val,
            partial(_predicted, crf=crf),
            crf.preset if crf else None,
            threads=max(1, session.workers),
        )
        return cls(
            session, method, data, benchmark, name, ingredients, settings, seeds, crf, predictions
        )

    @property
    def folder(self) -> Path:
        runs = self.session.options.out / "runs"
        return runs / f"{self.session.stage}-{self.data.target.name}-{self.name}"

    @property
    def _measuring(self) -> dict[str, str]:
        """Settings that scores depend on beside the training and the list of images."""
        return {"crf": self.crf.preset} if self.crf else {}

    @property
    def _all_settings(self) -> dict[str, Any]:
        return self.settings | {"seeds": self.seeds}

    def artifact(self, seed: Seed) -> Artifact:
        """The weights that come of one seed."""
        target = self.data.target
        return Artifact(
            key=key_of(self.session.stage, self.method, self.name),
            title=f"{self.method.card.name} trained on {self.name} labels of {target.name}",
            method=self.method.card,
            trained_on=self._trained_on(),
            settings=self._all_settings | self._measuring | {"seed": seed},
            options=self.session.options,
        )

    def _trained_on(self) -> list[TrainedOn]:
        if self.name != GROUND_TRUTH or self.session.options.weights is not None:
            return []
        images = len(self.data.image_ids)
        return [TrainedOn(dataset=self.data.target.name, images=images, supervision="pixel masks")]

    def predictions_of(self, seed: Seed) -> Predictions | None:
        """The predictions that come of one seed."""
        if self.predictions is None:
            return None
        settings = {**self.predictions.settings, "seed": seed}
        of_all = replace(self.predictions, settings=settings)
        return of_all.of_seed(seed, len(self.seeds) > 1)

    def to_predict(self, finished: bool) -> list[Seed]:
        """The seeds whose predictions are asked for and not there yet.

        Raises HubError if their folders hold anything else, and if an earlier command ``finished``
        a training whose network is gone.
        """
        wanted = {seed: self.predictions_of(seed) for seed in self.seeds}
        todo = [seed for seed, one in wanted.items() if one is not None and not one.is_there()]
        for seed in todo if finished else ():
            weights = folder_of(self.folder, seed) / WEIGHTS
            if self.session.options.weights is None and not weights.is_file():
                raise HubError(
                    f"{weights} is not there any more. Predict with --weights FILE: the "
                    f"model.safetensors below {self.artifact(seed).folder}."
                )
        return todo

    def measured(self, study: Study, seed: Seed) -> Measured:
        """Train, predict and measure with one seed."""
        training = Training(
            folder_of(self.folder, seed),
            lambda scratch: self.method(self.session.recipe, scratch, self.data.num_classes),
            self.data,
            self.settings | {"seed": seed},
            seed,
            self.ingredients,
        )
        trained = study.train(training)
        benchmark, predictions = self.benchmark, self.predictions_of(seed)
        if predictions is not None:
            predictions.write(trained, benchmark.predict)
            if predictions.pictures.split == VAL:  # what was written is what is measured
                benchmark = replace(benchmark, predict=predictions.read)
        return study.measure(training, trained, [benchmark])

    def write_result(self, scores: Mapping[Seed, Score]) -> None:
        """``result.json``: mean and standard error over the seeds, and each seed's own scores."""
        found = scores_over_seeds(scores, self.data.target.classes, self.crf)
        settings = self._all_settings
        known = {
            "settings": settings,
            "images": len(self.benchmark.image_ids),
            "initial_weights": self.session.initial_names,
        }
        write_json(self.folder / "result.json", found | known)


def _predicted(trained: Trained, image: Image, *, crf: Crf | None) -> Predicted:
    logits = trained.method.logits(trained.network, image)
    refine = None if crf is None else partial(crf.labels, logits.cpu(), image.rgb)
    return decide(logits), refine


def _crf_of(method: type[SegMethod], options: Options) -> Crf | None:
    published = method.published_crf.get(options.target, NO_CRF)
    return Crf.of(published if options.crf is None else options.crf)


def _predict_alone(session: Session, method: type[SegMethod], options: Options) -> None:
    """Predictions of given weights, where neither labels nor masks need be there."""
    crf = _crf_of(method, options)
    spec = find_target(options.target, options.data_root)
    classes = spec.classes if spec else open_target(options.target, options.data_root).classes
    settings = session.settings | {"target": options.target, "classes": len(classes)}
    predictions = requested(session, options, crf.preset if crf else None, settings, None)
    assert predictions is not None
    if predictions.is_there():
        say(f"predictions are finished, in {predictions.folder}: nothing to do.")
        return
    trained = trained_network(
        session,
        lambda scratch: method(session.recipe, scratch, len(classes)),
        None,
        options.out / "runs" / session.stage,
        settings={},
        seed=0,
    )
    predictions.write(trained, partial(_predicted, crf=crf))


def _ground_truth(labels: Maps, ids: Sequence[str], target: Target) -> Ingredient:
    with progress("reading the ground truth", len(ids), "image") as show:
        digests = []
        for image_id in ids:
            digests.append((image_id, image_digest(np.asarray(labels.read(image_id)))))
            show(len(digests), "")
    name = f"ground truth of {target.name} {target.training_split}"
    return Ingredient(role="label", file=name, digest=content_digest("label", digests))
