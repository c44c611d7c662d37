"""Anyone's folder or zip of PNGs, looked at closely and turned into a key folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsssbed_hub.artifacts.digests import content_digest, list_digest
from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.keys import Key, Version
from wsssbed_hub.artifacts.manifest import Manifest, MethodCitation, Result, TrainedOn
from wsssbed_hub.artifacts.maps import MAP_KINDS, Activations, Maps, digest_of
from wsssbed_hub.artifacts.png_layout import PngFolder, PngZip
from wsssbed_hub.artifacts.shard_writer import write_maps
from wsssbed_hub.datasets import open_target
from wsssbed_hub.evaluation.inspect import Expectation, Problem, expectation_of, inspect_maps
from wsssbed_hub.evaluation.score import Foreground, score_labels, score_saliency
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.review.recompute import FAST_MEASURES
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import disk_errors, write_whole
from wsssbed_hub.utils.progress import Progress
from wsssbed_hub.utils.text import count

_DIGITS = 4  # of a fraction: a hundredth of a percent


@dataclass(frozen=True)
class Card:
    """The facts of a manifest that nobody can see from the maps."""

    method: MethodCitation
    trained_on: tuple[TrainedOn, ...] = ()
    trained_with: tuple[str, ...] = ()
    licence: str | None = None
    title: str | None = None


class _Read(Maps):
    """Maps that keep the digest of each image that was read, so that it is decoded once less."""

    def __init__(self, maps: PngFolder | PngZip):
        self.kind, self.name, self.image_ids = maps.kind, maps.name, maps.image_ids
        self._maps = maps
        self._digests: dict[str, str] = {}

    def read(self, image_id: str) -> np.ndarray | Activations:
        found = self._maps.read(image_id)
        self._digests[image_id] = digest_of(found)
        return found

    def digest(self, progress: Progress | None = None) -> str:
        if self._digests.keys() != set(self.image_ids):
            return super().digest(progress)
        return content_digest(self.kind, ((name, self._digests[name]) for name in self.image_ids))


class Import:
    """The maps at ``path`` on their way to ``key`` over ``target``.

    Raises UsageError for a key without kind of maps and for what is neither folder nor zip;
    HubError for a hostile or damaged zip and for file names that are not those of the release
    layout.
    """

    def __init__(self, path: Path, key: str, target: str, data_root: Path):
        self.key = Key.parse(key)
        if self.key.kind not in MAP_KINDS:
            raise UsageError(f"{key}: only maps are imported, of kind {', '.join(MAP_KINDS)}.")
        maps = open_artifact(Path(path), kind=None if _is_key_folder(path) else self.key.kind)
        if not isinstance(maps, PngFolder | PngZip):
            raise UsageError(f"{path} is a key folder already: push it as it is.")
        self.maps = _Read(maps)
        self.data_root = data_root
        self.expected: Expectation = expectation_of(target, data_root)

    def problems(self, progress: Progress | None = None) -> list[Problem]:
        """All that is wrong, errors first. Every map is decoded; ``progress(images, of)``."""
        return inspect_maps(self.maps, self.expected, progress)

    def draw(self, path: Path, problems: Sequence[Problem]) -> None:
        """Thumbnails as a PNG file at ``path``: the maps that ``problems`` name first."""
        from wsssbed_hub.review.gallery import gallery

        with disk_errors(path.parent):
            write_whole(path, gallery(self.maps, self.expected, problems))

    def measure(self, split: str, progress: Progress | None = None) -> list[Result]:
        """Measures of saliency maps or labels against the ground truth of a split.

        Raises UsageError for activation maps, whose labels depend on more than them, and for an
        unknown split; HubError if the ground truth is not at hand or the maps do not cover it.
        """
        kind = self.maps.kind
        if kind == "cam":
            raise UsageError(
                "Activation maps have no score of their own: `wsssbed-hub curve` measures the "
                "labels that are made from them."
            )
        target = self.expected.target or open_target(self.expected.name, self.data_root)
        truth = target.ground_truth(split)
        if kind == "sal":
            values = score_saliency(
                self.maps, Foreground(truth), measures=FAST_MEASURES, progress=progress
            )
        else:
            score = score_labels(
                self.maps,
                truth,
                num_classes=target.num_classes,
                undecided=True,
                progress=progress,
            )
            values = {"mIoU": score.mean_iou(), "coverage": score.coverage}
            names = ("background", *target.classes)
            classes = zip(names, score.class_iou.tolist(), strict=True)
            values |= {f"IoU {name}": value for name, value in classes}
        images, image_list = len(truth.image_ids), list_digest(truth.image_ids)
        return [
            Result(
                metric=name,
                value=round(float(value), _DIGITS),
                images=images,
                image_list=image_list,
                split=split,
            )
            for name, value in values.items()
            if not math.isnan(value)
        ]

    def write(
        self,
        folder: Path,
        card: Card,
        *,
        version: str = "1.0.0",
        results: Sequence[Result] = (),
        progress: Progress | None = None,
    ) -> Manifest:
        """The maps as a version of the key in ``folder``; goes on where a killed run stopped.

        Raises HubError if the folder holds another key, or the version with other maps, with other
        facts than ``card`` states, or without ``results``.
        """
        number = self.key.version or Version.parse(version)
        settings = {"imported": self.maps.digest()}
        written = write_maps(
            folder,
            self.maps.kind,
            self.maps.image_ids,
            self.maps.read,
            settings=settings,
            progress=progress,
        )
        if written.content != settings["imported"]:
            raise HubError(f"{self.maps.name} changed while it was imported. Import it again.")
        facts: dict[str, Any] = {
            "title": card.title or _title(self.maps.kind, card),
            "method": card.method,
            "trained_on": _of_target(card.trained_on, self.expected.name),
            "trained_with": list(card.trained_with),
            "licence": card.licence,
        }
        manifest = complete(
            folder,
            written,
            key=str(self.key.unversioned),
            target=self.expected.name,
            version=str(number),
            results=results,
            **facts,
        )
        told = {name: getattr(manifest, name) for name in facts}
        told["trained_on"] = _of_target(manifest.trained_on, self.expected.name)
        others = [name for name, fact in facts.items() if told[name] != fact]
        if any(one not in manifest.entry(number, self.expected.name).results for one in results):
            others.append("results")
        if others:
            raise HubError(
                f"{folder} holds {self.key.unversioned}@{number} already, with other "
                f"{', '.join(others)}. Mend its manifest.yaml, or remove it and import again."
            )
        return manifest


def _of_target(items: Iterable[TrainedOn], target: str) -> list[TrainedOn]:
    """The items that hold for the maps over ``target``, in a fixed order."""
    mine = (item for item in items if item.target in (None, target))
    return sorted((item.model_copy(update={"target": None}) for item in mine), key=str)


def _is_key_folder(path: Path) -> bool:
    return (Path(path) / "manifest.yaml").exists()


def _title(kind: str, card: Card) -> str:
    what = {"sal": "Saliency maps", "cam": "Activation maps", "label": "Pseudo labels"}[kind]
    trained = [item for item in card.trained_on if item.supervision != "none"]
    datasets = [item.dataset for item in trained if item.dataset]
    on = f" trained on {' and '.join(datasets)}" if datasets else ""
    return f"{what} of {card.method.name}{on}"


def parse_trained_on(texts: Sequence[str]) -> tuple[TrainedOn, ...]:
    """``duts:pixel masks`` and the like: a dataset, and what of it supervised the training.

    Raises UsageError for anything else.
    """
    from pydantic import ValidationError

    found = []
    for text in texts:
        dataset, _, supervision = text.partition(":")
        try:
            found.append(
                TrainedOn.model_validate({"dataset": dataset, "supervision": supervision.strip()})
            )
        except ValidationError:
            raise UsageError(
                f"{text!r} does not say what the method was trained on. Write dataset:supervision, "
                "such as 'duts:pixel masks'; supervision is 'pixel masks', 'image labels', "
                "'self-supervised', 'unsupervised' or 'none'."
            ) from None
    return tuple(found)


def raise_errors(problems: Sequence[Problem], path: Path) -> None:
    """Raises HubError if there are errors among the problems."""
    errors = sum(problem.severity == "error" for problem in problems)
    if errors:
        raise HubError(
            f"{path} has {count(errors, 'error')}: nothing was written. Mend "
            f"{'them' if errors > 1 else 'it'} and run it again."
        )
