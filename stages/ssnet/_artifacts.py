"""The artifacts of one setting: saliency maps, pseudo labels, weights with what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from stages.runtime import distributed
from stages.runtime.artifacts import (
    Artifact,
    without_gradients,
    write_artifact,
)
from stages.runtime.method import Image
from stages.runtime.progress import say
from stages.runtime.study import VAL, Seed, in_words, mean_and_error
from stages.runtime.training import Trained
from stages.ssnet._measure import (
    CRF,
    CRF_SETTINGS,
    RAW,
    Benchmark,
    Score,
    benchmarks_at_hand,
    lists_of,
    measure,
    results_of,
)
from stages.ssnet._ssnet import Setting
from stages.ssnet._training import (
    Study,
    base_of,
    has_saliency,
    has_segmentation,
    makes_labels,
)
from wsssbed_hub.artifacts.manifest import Ingredient, Provenance, Result
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.evaluation.labelling import ingredient


@dataclass(frozen=True)
class _Found:
    """One network: what is left of it."""

    weights: dict[str, np.ndarray]
    provenance: Provenance
    score: Score


def make_artifacts(study: Study, setting: Setting, seeds: Sequence[Seed], *, crf: bool) -> None:
    """Train, label, measure and write, seed after seed; what is there is not made again.

    ``crf`` refines the saliency maps. Several seeds make artifacts ``…-seed0`` and so on; their
    weights all state the mean over the seeds and its standard error.
    """
    makers = {seed: _Maker(study, setting, seed, tuple(seeds), crf) for seed in seeds}
    there = {a.key: a.is_there() for maker in makers.values() for a in maker.artifacts()}
    if all(there.values()):
        return
    benchmarks = benchmarks_at_hand(study) if has_saliency(setting) else []
    found = {seed: maker.make(there, benchmarks) for seed, maker in makers.items()}
    scores = {seed: one.score for seed, one in found.items()}
    for seed, maker in makers.items():
        stated = results_of(study, setting, seed, scores, benchmarks)
        if not there[maker.weights().key]:
            maker.write_weights(found[seed], stated)
    _conclude(study, setting, scores)


@dataclass(frozen=True)
class _Maker:
    """Makes the artifacts of one setting and seed."""

    study: Study
    setting: Setting
    seed: Seed
    seeds: tuple[Seed, ...]
    crf: bool

    @property
    def _suffix(self) -> str:
        return f"-seed{self.seed}" if len(self.seeds) > 1 else ""

    @property
    def _labels_of(self) -> Setting | None:
        """The setting whose labels are written: the own one, or that which it is trained on."""
        if makes_labels(self.setting):
            return self.setting
        return None if self.study.given else base_of(self.setting)

    def artifacts(self) -> list[Artifact]:
        """All that the command leaves."""
        found = [self.weights()]
        if has_saliency(self.setting):
            found.append(self.saliency())
        if self._labels_of is not None:
            found.append(self.label(self._labels_of))
        return found

    def label(self, of: Setting) -> Artifact:
        return self.study.label_artifact(of, self.seed, self._suffix)

    def saliency(self) -> Artifact:
        study, name = self.study, self.study.name(self.setting)
        settings = study.settings(self.setting, self.seed) | {
            "split": study.target.training_split,
            "limit": study.session.options.limit,
            "saliency_crf": asdict(CRF_SETTINGS) if self.crf else None,
        }
        return Artifact(
            key=f"sal/{name}{self._suffix}",
            title=f"Saliency maps of {study.method.card.name}, setting {self.setting.name}, "
            f"trained on {study.data}",
            method=study.method.card,
            trained_on=study.trained_on(self.setting),
            settings=settings,
            options=study.session.options,
            image_ids=study.image_ids,
        )

    def weights(self) -> Artifact:
        study, name = self.study, self.study.name(self.setting)
        more = {"limit": study.session.options.limit, "seeds": list(self.seeds)}
        return Artifact(
            key=f"weights/{name}{self._suffix}",
            title=f"{study.method.card.name}, setting {self.setting.name}, for {study.target.name}",
            method=study.method.card,
            trained_on=study.trained_on(self.setting),
            settings=study.settings(self.setting, self.seed) | more,
            options=study.session.options,
        )

    def make(self, there: Mapping[str, bool], benchmarks: Sequence[Benchmark]) -> _Found:
        """Train and measure; write the maps, all but those that are ``there`` by their key."""
        study, setting, seed = self.study, self.setting, self.seed
        used: list[Ingredient] = []
        base = None if study.given else base_of(setting)
        if base is not None:
            used.append(self._publish_labels(base, there))
        trained = study.train(setting, seed)
        if makes_labels(setting):
            self._write_own_labels(trained, there)
        score = measure(study, setting, seed, trained, benchmarks)
        if has_saliency(setting) and not there[self.saliency().key]:
            self._write_saliency(trained, used)
        lists = [*used, *lists_of(study, setting, benchmarks)]
        weights = {k: v.cpu().numpy() for k, v in trained.network.state_dict().items()}
        return _Found(weights, study.provenance(trained, setting, seed, lists), score)

    def _publish_labels(self, of: Setting, there: Mapping[str, bool]) -> Ingredient:
        """Write the labels of a training as an artifact; what it is, for what is made from it."""
        labels = self.study.labels(of, self.seed)
        artifact = self.label(of)
        if not there[artifact.key]:
            artifact.discard_unfinished()  # they are soon copied
            made = self.study.label_provenance(of, self.seed)
            write_artifact(artifact, "label", lambda i: np.asarray(labels.read(i)), lambda: made)
        key = f"{artifact.key}@{artifact.options.version}"
        return Ingredient(role="label", key=key, digest=ingredient(labels).digest)

    def _write_own_labels(self, trained: Trained, there: Mapping[str, bool]) -> None:
        if not self.study.given:
            self._publish_labels(self.setting, there)
            return
        artifact = self.label(self.setting)
        if not there[artifact.key]:
            if self.study.session.options.fresh:
                artifact.discard_unfinished()
            write_artifact(
                artifact,
                "label",
                self.study.labeller(trained),
                lambda: self.study.provenance(
                    trained, self.setting, self.seed, [self.study.over("target-list")]
                ),
            )

    def _write_saliency(self, trained: Trained, used: Sequence[Ingredient]) -> None:
        artifact, study = self.saliency(), self.study
        if trained.now or study.session.options.fresh:
            artifact.discard_unfinished()
        crf = CRF_SETTINGS if self.crf else None
        write_artifact(
            artifact,
            "sal",
            lambda image_id: without_gradients(
                lambda image: trained.method.saliency(trained.network, image.rgb, crf),
                Image(image_id, study.target.read_image(image_id)),
            ),
            lambda: study.provenance(
                trained, self.setting, self.seed, [*used, study.over("target-list")]
            ),
        )

    def write_weights(self, found: _Found, stated: Sequence[Result]) -> None:
        """The weights and what they are worth; by the first process."""
        session, target = self.study.session, self.study.target
        config = {
            "stage": session.stage,
            "setting": self.setting.name,
            "recipe": asdict(session.recipe),
            "target": target.name,
            "classes": ["background", *target.classes],
        }
        artifact = self.weights()

        def write() -> None:
            written = write_weights(
                artifact.folder, found.weights, config, settings=artifact.settings
            )
            artifact.complete(written, found.provenance, stated)

        distributed.on_main(write)
        say(f"{artifact.key}@{session.options.version}: in {artifact.folder}")


def _conclude(study: Study, setting: Setting, scores: Mapping[Seed, Score]) -> None:
    """The means, where there are several seeds; one seed's numbers were told when measured."""
    if len(scores) < 2:
        return
    many = len(scores)
    if has_segmentation(setting):
        miou = mean_and_error(score["segmentation"]["miou"] for score in scores.values())
        say(f"mIoU {in_words(miou, many)} on {study.target.name} {VAL}")
    if has_saliency(setting):
        for name in next(iter(scores.values()))["saliency"]:
            for kind, words in ((RAW, ""), (CRF, " with CRF")):
                found = [score["saliency"][name][kind] for score in scores.values()]
                mae, f = (mean_and_error(one[field] for one in found) for field in ("mae", "max_f"))
                say(f"MAE {in_words(mae, many)}, max F {in_words(f, many)}{words} on {name}")
