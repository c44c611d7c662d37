"""The stage ``ssnet``: which settings it trains, and the artifacts that come of them.

``--setting`` names what is trained, as Tables 5 and 6 of the paper do. A training has a folder of
its own below ``runs/``, by seed and setting, so settings share the trainings that they build on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from stages.ops.densecrf import CrfSettings
from stages.runtime import distributed
from stages.runtime.artifacts import (
    Artifact,
    images_of,
    list_ingredient,
    require_count,
    without_gradients,
)
from stages.runtime.measuring import (
    CRF,
    RAW,
    VAL,
    Benchmark,
    Predicted,
    Saliency,
    Score,
    Seed,
    Segmentation,
    sod_benchmarks,
)
from stages.runtime.method import Image
from stages.runtime.options import SeveralTrainings
from stages.runtime.progress import say
from stages.runtime.session import Session, setup
from stages.runtime.study import (
    Inference,
    Measured,
    Study,
    Training,
    folder_of,
    scores_of,
    seeds_of,
)
from stages.runtime.training import Trained, locked
from stages.ssnet.samples import SsnetData
from stages.ssnet.ssnet import SALIENCY_CRF, SETTINGS, Method, Setting
from stages.ssnet.tables import (
    IN_TABLE_6,
    JSON,
    MARKDOWN,
    finished_tables,
    show_tables,
    tables_of,
    write_tables,
)
from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.manifest import Ingredient, TrainedOn
from wsssbed_hub.datasets import SOD_DATASETS, SodDataset, Target, open_sod_dataset, open_target
from wsssbed_hub.evaluation.labelling import ingredient
from wsssbed_hub.utils.errors import UsageError, did_you_mean

ALL = "all"
MAIN = SETTINGS["MM"]
"""The paper's own setting: the one whose artifacts are called after the stage alone."""


@dataclass(frozen=True, kw_only=True)
class Options(SeveralTrainings):
    data: Annotated[
        str | None,
        typer.Option(
            help="SOD dataset to train on (with --weights: that it was trained on); settings S and "
            "SS need none.",
            show_default=False,
        ),
    ] = None
    setting: Annotated[
        str,
        typer.Option(
            help="What to train and to make: S, M, SS, MS, MM or 2S, as in the paper's Tables 5 "
            "and 6, or `all`: both tables, no artifacts."
        ),
    ] = "MM"
    saliency_crf: Annotated[
        Literal["ssnet", "none"] | None,
        typer.Option(
            help="CRF that refines the saliency maps that are written.", show_default="ssnet"
        ),
    ] = None

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        yield from super().useless()
        if self.setting == ALL:
            yield ["version"], "--setting all makes tables and no artifact"


def run(stage: str, method: type[Method], options: Options) -> None:
    """Train a setting, and what it builds on, once for each seed; measure it; write its artifacts.

    With ``--setting all`` every setting is trained and measured, and Tables 5 and 6 are written.
    With ``--weights`` nothing is trained: the network of that file makes the setting's maps, and
    they are measured. The last iteration is the result.
    """
    settings = _chosen(options)
    seeds = seeds_of(options.seeds, options)
    session = setup(stage, method, options)
    request = _Request.understood(session, method, options, settings, seeds)
    with ExitStack() as stack:
        for folder in sorted({request.root(setting) for setting in settings}):
            stack.enter_context(locked(folder))
        if options.setting == ALL:
            _make_tables(request)
        else:
            _make_artifacts(request, settings[0])


def _chosen(options: Options) -> list[Setting]:
    """The settings that are asked for. Raises UsageError if the options do not fit them."""
    name, data = options.setting, options.data
    if name not in (*SETTINGS, ALL):
        near = did_you_mean(name.upper(), SETTINGS) or did_you_mean(name, [ALL])
        raise UsageError(
            f"--setting {name}: there is no such setting.{near} Settings are "
            f"{', '.join(SETTINGS)} and {ALL}."
        )
    settings = [*SETTINGS.values()] if name == ALL else [SETTINGS[name]]
    if name == ALL and options.weights is not None:
        raise UsageError(
            "With --weights nothing is trained, and the tables compare trainings. Name the one "
            "setting that the file was trained in with --setting."
        )
    needs_masks = any(setting.needs_masks for setting in settings)
    if data is None and needs_masks:
        raise UsageError(
            f"--setting {name} is trained with saliency masks. Name the SOD dataset with --data, "
            "duts as in the paper; only S and SS need none."
        )
    if data is not None and not needs_masks:
        raise UsageError(f"--setting {name} is trained without saliency masks; leave --data out.")
    writes = name != ALL and settings[0].learns_saliency
    if options.saliency_crf is not None and not writes:
        raise UsageError(f"--setting {name} writes no saliency maps; leave --saliency-crf out.")
    if data is not None and data not in SOD_DATASETS:
        raise UsageError(
            f"There is no SOD dataset {data!r}.{did_you_mean(data, SOD_DATASETS)} "
            f"SOD datasets are {', '.join(SOD_DATASETS)}."
        )
    return settings


def _make_artifacts(request: _Request, setting: Setting) -> None:
    """Train, label, measure and write, seed after seed; what is there is not made again.

    Several seeds make artifacts ``…-seed0`` and so on; their weights all state the mean over the
    seeds and its standard error.
    """
    study = request.study
    if study.is_finished({seed: request.artifacts(setting, seed) for seed in study.seeds}):
        return
    measured = {seed: request.make(setting, seed) for seed in study.seeds}
    benchmarks = request.benchmarks(setting)
    artifact = partial(request.weights, setting)
    study.write_weights(artifact, measured, benchmarks, request.target, setting=setting.name)
    if len(measured) > 1:  # one seed's numbers were told when measured
        for one in benchmarks:
            say(one.words(scores_of(one, measured).values()))


def _make_tables(request: _Request) -> None:
    """Train and measure every setting with every seed; print the tables and write them.

    They lie in the folder of the main setting's trainings, as ``tables.json`` and ``tables.md``.
    No artifacts are written; trainings that are there are taken.
    """
    folder, settings = request.root(MAIN), request.table_settings()
    tables = None if request.options.fresh else finished_tables(folder, settings)
    if tables is not None:
        say(f"The tables are finished, in {folder}: nothing to do.")
        show_tables(tables)
        return
    scores: dict[str, dict[Seed, dict[str, Score]]] = {name: {} for name in SETTINGS}
    for seed in request.study.seeds:
        for name, setting in SETTINGS.items():
            benchmarks = request.benchmarks(setting, saliency=name in IN_TABLE_6)
            training = request.training(setting, seed)
            trained = request.study.train(training)
            measured = request.study.measure(training, trained, benchmarks, name)
            scores[name][seed] = measured.scores
            del trained, measured  # the next one needs the memory
    tables = tables_of(settings, scores)
    write_tables(folder, tables)
    show_tables(tables)
    say(f"{folder / MARKDOWN} and {folder / JSON}")


@dataclass(frozen=True)
class _Request:
    """One command's request, checked: its data, its seeds, and the trainings on them."""

    study: Study
    method: type[Method]
    options: Options
    target: Target
    image_ids: list[str]
    """Of its training split, over which maps are written too."""
    val: list[str]
    sod: SodDataset | None
    """None if nothing is trained on it."""

    @classmethod
    def understood(
        cls,
        session: Session,
        method: type[Method],
        options: Options,
        settings: Sequence[Setting],
        seeds: list[Seed],
    ) -> _Request:
        """Look at everything that the settings need; HubError if it is not there."""
        target = open_target(options.target, options.data_root)
        ids = images_of(target, target.training_split, options.limit)
        segmenting = any(setting.learns_segmentation for setting in settings)
        val = images_of(target, VAL, options.limit) if segmenting else []
        sod = None
        if options.weights is None and options.data is not None:
            sod = open_sod_dataset(options.data, options.data_root)
            require_count(sod.name, len(sod.image_ids), sod.spec.count, sod.name)
        return cls(Study(session, seeds), method, options, target, ids, val, sod)

    @property
    def given(self) -> bool:
        """Whether ``--weights`` names the network, and nothing is trained."""
        return self.options.weights is not None

    @property
    def crf(self) -> CrfSettings | None:
        """Of the saliency maps that are written."""
        return None if self.options.saliency_crf == "none" else SALIENCY_CRF

    @cached_property
    def sod_benchmarks(self) -> list[Saliency]:
        """Those at hand, which is said once."""
        limit, threads = self.options.limit, self.study.session.workers
        crf = asdict(SALIENCY_CRF)
        return [
            Saliency(one, one.image_ids[:limit], _saliencies, crf, threads)
            for one in sod_benchmarks(self.options, self.options.data)
        ]

    def benchmarks(self, setting: Setting, *, saliency: bool = True) -> list[Benchmark]:
        """Benchmarks of the setting, for the tasks that it learns."""
        found: list[Benchmark] = []
        if setting.learns_segmentation:
            threads = self.study.session.workers
            found.append(Segmentation(self.target, self.val, _segmentation, threads=threads))
        return found + (self.sod_benchmarks if setting.learns_saliency and saliency else [])

    # Names and settings.

    def name(self, setting: Setting) -> str:
        """The setting's name in keys: ``ssnet-duts`` for MM, ``ssnet-m-duts``, ``ssnet-ss``."""
        parts = [self.study.session.stage, "" if setting == MAIN else setting.name.lower()]
        parts.append(self.options.data or "" if setting.needs_masks else "")
        return "-".join(filter(None, parts))

    def root(self, setting: Setting) -> Path:
        """Folder of all trainings on the same data."""
        data = f"-{self.options.data}" if setting.needs_masks else ""
        name = f"{self.study.session.stage}-{self.target.name}{data}"
        return self.options.out / "runs" / name

    def settings(self, setting: Setting, seed: Seed) -> dict[str, Any]:
        """Settings of the training, without its pseudo labels: they follow from these."""
        of: dict[str, Any] = {"setting": setting.name, "target": self.target.name}
        if not self.given:
            of |= {one.role.replace("-", "_"): one.digest for one in self.lists(setting)}
            of["seed"] = seed
        return self.study.session.settings | of

    def table_settings(self) -> dict[str, Any]:
        """All that the tables depend on."""
        settings = self.settings(MAIN, self.study.seeds[0])
        del settings["setting"], settings["seed"]
        return settings | {
            "device": self.study.session.device.type,
            "processes": distributed.size(),
            "seeds": self.study.seeds,
            "sod_dataset": self.options.data,
            "val": _images(self.val),
            "benchmarks": {b.dataset.name: _images(b.image_ids) for b in self.sod_benchmarks},
            "saliency_crf": asdict(SALIENCY_CRF),
        }

    def lists(self, setting: Setting) -> list[Ingredient]:
        """The images that the network is trained on, and those of its labels."""
        if self.given:
            return []
        found = [self.over("training-list")] if setting.learns_segmentation else []
        if self.sod is not None and setting.needs_masks:
            found.append(list_ingredient("sod-list", self.sod.name, self.sod.image_ids))
        return found

    def over(self, role: str) -> Ingredient:
        """The list of the images of the target, in that role."""
        name = f"{self.target.name} {self.target.training_split}"
        return list_ingredient(role, name, self.image_ids)

    # Trainings.

    def training(self, setting: Setting, seed: Seed) -> Training:
        """The training of a setting; what makes its labels is trained now, if it is not yet."""
        settings, ingredients = self.settings(setting, seed), self.lists(setting)
        labels = None
        if setting.base is not None and not self.given:
            artifact = self.label(setting.base, seed)
            base = self.training(setting.base, seed)
            labels = self.study.maps(base, artifact, self._labelling)
            digest = settings["labels"] = ingredient(labels).digest
            key = f"{self.study.of_seed(artifact, seed).key}@{self.options.version}"
            ingredients.append(Ingredient(role="label", key=key, digest=digest))
        recipe, classes = self.study.session.recipe, self.target.num_classes
        return Training(
            folder_of(self.root(setting), seed) / setting.name,
            lambda scratch: self.method(recipe, scratch, classes, setting),
            SsnetData(
                target=self.target,
                image_ids=self.image_ids if setting.learns_segmentation else [],
                sod=self.sod if setting.learns_saliency else None,
                labels=labels,
            ),
            settings,
            seed,
            ingredients,
        )

    # Artifacts.

    def artifacts(self, setting: Setting, seed: Seed) -> list[Artifact]:
        """All that the command leaves of a seed."""
        found = [self.weights(setting, seed)]
        if setting.learns_saliency:
            found.append(self.saliency(setting, seed))
        labels_of = self._labels_of(setting)
        if labels_of is not None:
            found.append(self.label(labels_of, seed))
        return found

    def _labels_of(self, setting: Setting) -> Setting | None:
        """The setting whose labels are written: the own one, or that which it is trained on."""
        if setting.is_base:
            return setting
        return None if self.given else setting.base

    def label(self, setting: Setting, seed: Seed) -> Artifact:
        """The pseudo labels of a setting; those that MM is trained on are the main ones."""
        name = self.name(MAIN if setting == MAIN.base else setting)
        return self._artifact(f"label/{name}", "Pseudo labels of {}", setting, seed)

    def saliency(self, setting: Setting, seed: Seed) -> Artifact:
        return self._artifact(
            f"sal/{self.name(setting)}",
            "Saliency maps of {}" + f", trained on {self.options.data}",
            setting,
            seed,
            split=self.target.training_split,
            limit=self.options.limit,
            saliency_crf=asdict(self.crf) if self.crf else None,
        )

    def weights(self, setting: Setting, seed: Seed) -> Artifact:
        title = "{}" + f", for {self.target.name}"
        more = {"limit": self.options.limit, "seeds": self.study.seeds}
        return self._artifact(f"weights/{self.name(setting)}", title, setting, seed, **more)

    def _artifact(
        self, key: str, title: str, setting: Setting, seed: Seed, **more: Any
    ) -> Artifact:
        trained_on = []
        if setting.learns_segmentation:
            seen = None if self.given else len(self.image_ids)
            trained_on.append(
                TrainedOn(dataset=self.target.name, images=seen, supervision="image labels")
            )
        if setting.needs_masks:
            seen = None if self.sod is None else len(self.sod.image_ids)
            trained_on.append(
                TrainedOn(dataset=self.options.data, images=seen, supervision="pixel masks")
            )
        return Artifact(
            key=key,
            title=title.format(f"{self.method.card.name}, setting {setting.name}"),
            method=self.method.card,
            trained_on=trained_on,
            settings=self.settings(setting, seed) | more,
            options=self.options,
            image_ids=None if key.startswith("weights/") else self.image_ids,
        )

    def make(self, setting: Setting, seed: Seed) -> Measured:
        """Train and measure with one seed; write the maps that are not there."""
        study, labels_of = self.study, self._labels_of(setting)
        if labels_of is not None and not self.given:
            base, artifact = self.training(labels_of, seed), self.label(labels_of, seed)
            study.publish(base, artifact, self._labelling)
        training = self.training(setting, seed)
        trained = study.train(training)
        write = partial(study.write_maps, training, trained, more=[self.over("target-list")])
        if setting.is_base and self.given:
            write(self.label(setting, seed), self._labelling)
        measured = study.measure(training, trained, self.benchmarks(setting), setting.name)
        if setting.learns_saliency:
            make = partial(_saliency_map, crf=self.crf)
            write(self.saliency(setting, seed), Inference("sal", self._image, make))
        return measured

    @property
    def _labelling(self) -> Inference:
        return Inference("label", self._image_with_classes, _pseudo_label)

    def _image(self, image_id: str) -> Image:
        return Image(image_id, self.target.read_image(image_id))

    def _image_with_classes(self, image_id: str) -> Image:
        class_ids = np.array(self.target.image_labels(image_id), np.int64)
        return replace(self._image(image_id), class_ids=class_ids)


def _pseudo_label(trained: Trained, image: Image) -> np.ndarray:
    return without_gradients(partial(trained.method.pseudo_label, trained.network), image)


def _saliency_map(trained: Trained, image: Image, *, crf: CrfSettings | None) -> np.ndarray:
    return without_gradients(partial(trained.method.saliency, trained.network, crf=crf), image)


def _segmentation(trained: Trained, image: Image) -> Predicted:
    return trained.method.segmentation(trained.network, image), None


def _saliencies(trained: Trained, image: Image) -> dict[str, np.ndarray]:
    crfs = {RAW: None, CRF: SALIENCY_CRF}
    return trained.method.saliencies(trained.network, image, crfs)


def _images(ids: Sequence[str]) -> dict[str, Any]:
    return {"images": len(ids), "image_list": list_digest(ids)}
