"""What the trainings of one command share, and each of them in its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.runtime.artifacts import (
    SELECTION,
    Artifact,
    images_of,
    list_ingredient,
    require_count,
    without_gradients,
    write_artifact,
)
from stages.runtime.method import Image
from stages.runtime.provenance import provenance
from stages.runtime.session import Session
from stages.runtime.study import VAL, Seed
from stages.runtime.training import Trained, trained_network
from stages.ssnet._ssnet import SETTINGS, Method, Setting, SsnetData
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.artifacts.manifest import Ingredient, Provenance, TrainedOn
from wsssbed_hub.datasets import (
    SOD_DATASETS,
    SodDataset,
    Target,
    open_sod_dataset,
    open_target,
)
from wsssbed_hub.evaluation.labelling import ingredient
from wsssbed_hub.registry.open_artifact import Maps, open_artifact
from wsssbed_hub.utils.errors import UsageError, did_you_mean

_VERSION = "1.0.0"  # of the labels in a training's folder
MAIN = "MM"
"""The paper's own setting: the one whose artifacts are called after the stage alone."""


def base_of(setting: Setting) -> Setting | None:
    """The setting whose network labels the images that ``setting`` is trained on."""
    return SETTINGS[setting.labels_from] if setting.labels_from else None


def needs_sod(setting: Setting) -> bool:
    """Whether a SOD dataset takes part in the training, or in that of its labels."""
    base = base_of(setting)
    return has_saliency(setting) or (base is not None and needs_sod(base))


def has_saliency(setting: Setting) -> bool:
    """Whether the network learns to make saliency maps."""
    return "saliency" in setting.losses


def has_segmentation(setting: Setting) -> bool:
    """Whether the network learns to segment."""
    return bool({"class", "segmentation"} & {*setting.losses})


def makes_labels(setting: Setting) -> bool:
    """Whether other settings are trained on its labels."""
    return any(other.labels_from == setting.name for other in SETTINGS.values())


@dataclass(frozen=True)
class Study:
    """The data of one command, and the trainings on it."""

    session: Session
    method: type[Method]
    target: Target
    image_ids: list[str]
    """Of its training split, over which maps are written too."""
    val_ids: list[str]
    data: str | None
    """Name of the SOD dataset."""
    sod: SodDataset | None
    """None if nothing is trained on it."""
    _begun: set[tuple[str, Seed]] = field(default_factory=set)
    _labels: dict[tuple[str, Seed], Maps] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, session: Session, method: type[Method], settings: Sequence[Setting], data: str | None
    ) -> Study:
        """Look at everything that the settings need; HubError or UsageError if it is not there."""
        options = session.options
        if data is not None and data not in SOD_DATASETS:
            raise UsageError(
                f"There is no SOD dataset {data!r}.{did_you_mean(data, SOD_DATASETS)} "
                f"SOD datasets are {', '.join(SOD_DATASETS)}."
            )
        target = open_target(options.target, options.data_root)
        ids = images_of(target, target.training_split, options.limit)
        val = images_of(target, VAL, options.limit) if any(map(has_segmentation, settings)) else []
        sod = None
        if options.weights is None and data is not None:
            sod = open_sod_dataset(data, options.data_root)
            require_count(sod.name, len(sod.image_ids), sod.spec.count, sod.name)
        return cls(session, method, target, ids, val, data, sod)

    @property
    def given(self) -> bool:
        """Whether ``--weights`` names the network, and nothing is trained."""
        return self.session.options.weights is not None

    def name(self, setting: Setting) -> str:
        """What keys call the setting: ``ssnet-duts`` for MM, ``ssnet-m-duts``, ``ssnet-ss``."""
        parts = [self.session.stage, "" if setting.name == MAIN else setting.name.lower()]
        parts.append(self.data or "" if needs_sod(setting) else "")
        return "-".join(filter(None, parts))

    def label_name(self, setting: Setting) -> str:
        """What the key of its pseudo labels calls it: those that MM is trained on are the main."""
        return self.name(SETTINGS[MAIN] if setting == base_of(SETTINGS[MAIN]) else setting)

    def root(self, setting: Setting) -> Path:
        """Folder of all trainings on the same data."""
        data = f"-{self.data}" if needs_sod(setting) else ""
        return self.session.options.out / "runs" / f"{self.session.stage}-{self.target.name}{data}"

    def folder(self, setting: Setting, seed: Seed) -> Path:
        """Folder of one training, or of what is known of weights that were given."""
        return self.root(setting) / ("given" if seed is None else f"seed{seed}") / setting.name

    def settings(self, setting: Setting, seed: Seed) -> dict[str, Any]:
        """What the training depends on, its pseudo labels left out: they follow from it."""
        settings = self.session.settings | {"setting": setting.name, "target": self.target.name}
        if self.given:
            return settings
        lists = {item.role.replace("-", "_"): item.digest for item in self.lists(setting)}
        return settings | lists | {"seed": seed}

    def lists(self, setting: Setting) -> list[Ingredient]:
        """The images that the network is trained on, and those of its labels."""
        if self.given:
            return []
        found = []
        if has_segmentation(setting):
            found.append(self.over("training-list"))
        if self.sod is not None and needs_sod(setting):
            found.append(list_ingredient("sod-list", self.sod.name, self.sod.image_ids))
        return found

    def over(self, role: str) -> Ingredient:
        """The list of the images of the target, in that role."""
        name = f"{self.target.name} {self.target.training_split}"
        return list_ingredient(role, name, self.image_ids)

    def trained_on(self, setting: Setting) -> list[TrainedOn]:
        """The datasets, as the manifest tells them."""
        found = []
        if has_segmentation(setting):
            images = None if self.given else len(self.image_ids)
            found.append(
                TrainedOn(dataset=self.target.name, images=images, supervision="image labels")
            )
        if needs_sod(setting):
            images = None if self.sod is None else len(self.sod.image_ids)
            found.append(TrainedOn(dataset=self.data, images=images, supervision="pixel masks"))
        return found

    def train(self, setting: Setting, seed: Seed) -> Trained:
        """The network of ``setting``, trained now if it is not yet, like all that it builds on."""
        base = base_of(setting)
        labels = None if base is None or self.given else self.labels(base, seed)
        settings = self.settings(setting, seed)
        if labels is not None:
            settings["labels"] = ingredient(labels).digest
        segmented = has_segmentation(setting)
        data = SsnetData(
            target=self.target,
            image_ids=self.image_ids if segmented else [],
            sod=self.sod if has_saliency(setting) else None,
            labels=labels,
        )
        return trained_network(
            self._session(setting, seed),
            lambda scratch: self.method(
                self.session.recipe, scratch, self.target.num_classes, setting
            ),
            data,
            self.folder(setting, seed),
            settings=settings,
            seed=seed or 0,
        )

    def _session(self, setting: Setting, seed: Seed) -> Session:
        """The command's, in which ``--fresh`` discards each training once: more need its labels."""
        if (setting.name, seed) in self._begun:
            return replace(self.session, options=replace(self.session.options, fresh=False))
        self._begun.add((setting.name, seed))
        return self.session

    def labels(self, setting: Setting, seed: Seed) -> Maps:
        """What the network of ``setting`` labels the training images with, made now if need be.

        They lie in the training's folder, whatever the command makes of them.
        """
        known = self._labels.get((setting.name, seed))
        if known is not None:
            return known
        trained = self.train(setting, seed)
        artifact = self.label_artifact(setting, seed)
        options = self.session.options
        options = replace(options, out=self.folder(setting, seed), version=_VERSION, fresh=False)
        artifact = replace(artifact, options=options)
        if not artifact.is_there():
            write_artifact(
                artifact,
                "label",
                self.labeller(trained),
                lambda: self.provenance(trained, setting, seed),
            )
        made = open_artifact(artifact.folder, self.target.name, kind="label")
        return self._labels.setdefault((setting.name, seed), made)

    def label_provenance(self, setting: Setting, seed: Seed) -> Provenance:
        """How ``labels`` were made, as this command would make them: another may have been first.

        That one may leave no artifacts, so that nobody could make them again with it.
        """
        folder = self.folder(setting, seed) / self.label_artifact(setting, seed).key
        made = read_manifest(folder).entry(_VERSION, self.target.name).provenance
        assert made is not None  # ``labels`` wrote it
        return self._provenance(made.made_from, seed)

    def label_artifact(self, setting: Setting, seed: Seed, suffix: str = "") -> Artifact:
        """The pseudo labels that the network of ``setting`` makes."""
        return Artifact(
            key=f"label/{self.label_name(setting)}{suffix}",
            title=f"Pseudo labels of {self.method.card.name}, setting {setting.name}",
            method=self.method.card,
            trained_on=self.trained_on(setting),
            settings=self.settings(setting, seed),
            options=self.session.options,
            image_ids=self.image_ids,
        )

    def labeller(self, trained: Trained) -> Callable[[str], np.ndarray]:
        """Makes the pseudo label of an image, from its image-level labels."""

        def label(image_id: str) -> np.ndarray:
            class_ids = np.array(self.target.image_labels(image_id), np.int64)
            return without_gradients(
                lambda image: trained.method.pseudo_label(trained.network, image.rgb, class_ids),
                Image(image_id, self.target.read_image(image_id), class_ids),
            )

        return label

    def provenance(
        self, trained: Trained, setting: Setting, seed: Seed, more: Sequence[Ingredient] = ()
    ) -> Provenance:
        """Of what the network makes; ``more`` are ingredients beside those of its training."""
        return self._provenance([*trained.made_from, *self.lists(setting), *more], seed)

    def _provenance(self, made_from: Sequence[Ingredient], seed: Seed) -> Provenance:
        return provenance(
            self.session.stage,
            self.session.environment,
            made_from,
            seed=seed,
            selection=None if self.given else SELECTION,
        )
