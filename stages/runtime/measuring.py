"""Benchmarks that trained networks are measured on, by all processes: mIoU on a target's val split,
MAE and max F on SOD datasets; means over seeds, and what manifests state of them.

A seed is None where weights were given and nothing was trained.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stages.runtime import distributed
from stages.runtime.artifacts import list_ingredient, require_count
from stages.runtime.inference import through_network
from stages.runtime.method import Image
from stages.runtime.options import TrainOptions
from stages.runtime.progress import progress, say
from stages.runtime.training import Trained
from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.manifest import Ingredient, Result
from wsssbed_hub.datasets import SOD_DATASETS, SodDataset, Target, open_sod_dataset
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.evaluation.saliency_metrics import SSNetSaliencyMetrics

VAL = "val"
SOD_BENCHMARKS = ("ecssd", "pascal-s", "hku-is", "sod", "duts-te")
DRAWN = dict.fromkeys(("shapes", "shapes-coco"), ("shapes-te",))
"""SOD benchmarks of the targets that are drawn."""
RAW, CRF = "raw", "crf"
"""Maps as the network makes them, and refined."""
Seed = int | None
Spread = dict[str, float | None]
"""``mean`` and ``standard_error``."""
Score = dict[str, Any]
"""Measures by name, as JSON."""


class Benchmark(ABC):
    """Images with the truth about them, on which networks are measured."""

    name: str
    """Of the score, among all of a network."""
    image_ids: Sequence[str]

    @property
    @abstractmethod
    def images(self) -> Ingredient:
        """The list of images, for the provenance."""

    @property
    def depends_on(self) -> dict[str, Any]:
        """Settings that scores depend on, beside the weights."""
        return {"images": list_digest(self.image_ids)}

    @abstractmethod
    def measure(self, trained: Trained) -> Score:
        """The score of a network, by all processes."""

    @abstractmethod
    def words(self, scores: Collection[Score]) -> str:
        """A score for people, or the mean of several with its standard error."""

    @abstractmethod
    def results(
        self, scores: Mapping[Seed, Score], seed: Seed, initial: str | None
    ) -> list[Result]:
        """Results for the manifest of one seed's weights; ``initial`` weights in words."""

    def share(self) -> Sequence[str]:
        """The images that this process measures."""
        return self.image_ids[distributed.rank() :: distributed.size()]


Predicted = tuple[np.ndarray, Callable[[], np.ndarray] | None]
"""The label uint8[H, W] of an image, and what makes a refined one of it, in a thread."""


@dataclass(frozen=True)
class Segmentation(Benchmark):
    """The val split of a target. Scores are those of ``SegmentationMetrics.as_dict``.

    With ``crf`` a field ``crf`` holds the same scores of the refined labels. These are made on the
    CPU, by so many ``threads`` of each process, which also read ahead, while a GPU goes on.
    """

    target: Target
    image_ids: Sequence[str]
    predict: Callable[[Trained, Image], Predicted]
    crf: str | None = None
    """What the CRF is called that makes the refined labels."""
    threads: int = 1
    name: str = "segmentation"

    @property
    def images(self) -> Ingredient:
        return list_ingredient("val-list", f"{self.target.name} {VAL}", self.image_ids)

    @property
    def depends_on(self) -> dict[str, Any]:
        return super().depends_on | ({"crf": self.crf} if self.crf else {})

    def measure(self, trained: Trained) -> Score:
        raw, refined = (SegmentationMetrics(self.target.num_classes) for _ in range(2))
        truth, share = self.target.ground_truth(VAL), self.share()

        def read(image_id: str) -> tuple[Image, np.ndarray]:
            rgb = self.target.read_image(image_id)
            return Image(image_id, rgb), np.asarray(truth.read(image_id))

        def predict(found: tuple[Image, np.ndarray]) -> tuple[str, np.ndarray, Predicted]:
            with torch.inference_mode():
                return found[0].id, found[1], self.predict(trained, found[0])

        def finish(
            found: tuple[str, np.ndarray, Predicted],
        ) -> tuple[str, np.ndarray, np.ndarray, np.ndarray | None]:
            image_id, expected, (label, refine) = found
            return image_id, expected, label, None if refine is None else refine()

        title = "measuring mIoU" + (f" without and with CRF {self.crf}" if self.crf else "")
        device = next(trained.network.parameters()).device
        made = through_network(share, read, predict, finish, device=device, workers=self.threads)
        with progress(title, len(share), "image") as show, closing(made):
            for image_id, expected, label, better in made:
                raw.add(label, expected, image_id)
                if better is not None:
                    refined.add(better, expected, image_id)
                show(raw.images, "")
        found = of_all_processes(raw, len(self.image_ids), device)
        if self.crf is not None:
            found["crf"] = of_all_processes(refined, len(self.image_ids), device)
        return found

    def words(self, scores: Collection[Score]) -> str:
        said = f"mIoU {in_words(score['miou'] for score in scores)}"
        if self.crf is not None:
            refined = in_words(score["crf"]["miou"] for score in scores)
            said += f", {refined} with CRF {self.crf}"
        return f"{said} on {self.target.name} {VAL}"

    def results(
        self, scores: Mapping[Seed, Score], seed: Seed, initial: str | None
    ) -> list[Result]:
        """mIoU, and the IoU of each class that val has; the same again of the refined labels."""
        found = self._results(scores, seed, initial=initial)
        if self.crf is not None:
            refined = {number: score["crf"] for number, score in scores.items()}
            how = {"initial": initial, "crf": True, "note": f"CRF {self.crf}"}
            found += self._results(refined, seed, **how)
        return found

    def _results(self, scores: Mapping[Seed, Score], seed: Seed, **how: Any) -> list[Result]:
        how |= {"split": VAL}
        mious = {number: score["miou"] for number, score in scores.items()}
        found = results("mIoU", mious, seed, self.image_ids, **how)
        for place, name in enumerate(("background", *self.target.classes)):
            values = {number: score["class_iou"][place] for number, score in scores.items()}
            found += results(f"IoU {name}", values, seed, self.image_ids, own=False, **how)
        return found


def of_all_processes(score: SegmentationMetrics, images: int, device: torch.device) -> Score:
    """``score.as_dict()`` when every process has scored its share of ``images`` images."""
    counts = torch.from_numpy(score.confusion).to(device)
    score.confusion = distributed.all_sum(counts).cpu().numpy()
    score.images = images
    return score.as_dict()


@dataclass(frozen=True)
class Saliency(Benchmark):
    """A SOD dataset, or the first images of it. Scores are those of ``SSNetSaliencyMetrics``, of
    the maps without and with a CRF: ``raw`` and ``crf``.
    """

    dataset: SodDataset
    image_ids: Sequence[str]
    predict: Callable[[Trained, Image], Mapping[str, np.ndarray]]
    """Both saliency maps uint8[H, W] of an image."""
    crf: Mapping[str, Any]
    """The settings of the CRF."""
    threads: int = 0
    """Of each process, which read ahead."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"saliency {self.dataset.name}"

    @property
    def images(self) -> Ingredient:
        return list_ingredient("benchmark-list", self.dataset.name, self.image_ids)

    @property
    def depends_on(self) -> dict[str, Any]:
        return super().depends_on | {"crf": self.crf}

    def measure(self, trained: Trained) -> Score:
        scores = _saliency_metrics()
        title, share = f"measuring saliency on {self.dataset.name}", self.share()

        def read(image_id: str) -> tuple[Image, np.ndarray]:
            image = Image(image_id, self.dataset.read_image(image_id))
            return image, self.dataset.read_mask(image_id)

        def predict(
            found: tuple[Image, np.ndarray],
        ) -> tuple[str, np.ndarray, Mapping[str, np.ndarray]]:
            with torch.inference_mode():
                return found[0].id, found[1], self.predict(trained, found[0])

        device = next(trained.network.parameters()).device
        made = through_network(
            share, read, predict, lambda found: found, device=device, workers=self.threads
        )
        with progress(title, len(share), "image") as show, closing(made):
            for done, (image_id, mask, maps) in enumerate(made, start=1):
                for kind, score in scores.items():
                    score.add(maps[kind], mask, image_id)
                show(done, "")
        total = _saliency_metrics()
        for part in distributed.gathered(scores):
            for kind, score in part.items():
                total[kind].merge(score)
        return {kind: score.result() for kind, score in total.items()}

    def words(self, scores: Collection[Score]) -> str:
        raw, refined = (
            ", ".join(
                f"{metric} {in_words(score[kind][field] for score in scores)}"
                for metric, field in _SALIENCY_MEASURES
            )
            for kind in (RAW, CRF)
        )
        return f"{raw}; with CRF {refined} on {self.dataset.name}"

    def results(
        self, scores: Mapping[Seed, Score], seed: Seed, initial: str | None
    ) -> list[Result]:
        """MAE and max F, without and with CRF."""
        found = []
        for kind in (RAW, CRF):
            for metric, field in _SALIENCY_MEASURES:
                found += results(
                    metric,
                    {number: score[kind][field] for number, score in scores.items()},
                    seed,
                    self.image_ids,
                    split=self.dataset.name,
                    initial=initial,
                    crf=kind == CRF,
                    note="SSNet's protocol",
                )
        return found


_SALIENCY_MEASURES = (("MAE", "mae"), ("max F", "max_f"))


def _saliency_metrics() -> dict[str, SSNetSaliencyMetrics]:
    return {kind: SSNetSaliencyMetrics(resize=None) for kind in (RAW, CRF)}


def sod_benchmarks(options: TrainOptions, trained_on: str | None) -> list[SodDataset]:
    """The SOD datasets below the data root that saliency maps are measured on.

    Says which are not there, or are part of ``trained_on``. Raises HubError for one that has not
    the published number of images.
    """
    seen = {trained_on}
    if trained_on is not None:
        seen |= {part.name for part in SOD_DATASETS[trained_on].parts}
    found = []
    for name in DRAWN.get(options.target, SOD_BENCHMARKS):
        spec = SOD_DATASETS[name]
        if name in seen:
            say(f"{name} is not measured: the training sees it.")
        elif not spec.is_there(options.data_root):
            say(
                f"{name} is not measured: it is not below {options.data_root}. `wsssbed-hub data "
                f"check {name}` says where to get it."
            )
        else:
            dataset = open_sod_dataset(name, options.data_root)
            require_count(name, len(dataset.image_ids), spec.count, name)
            found.append(dataset)
    return found


def mean_and_error(values: Iterable[float | None]) -> Spread:
    """Mean and its standard error (of two values or more); None if any value is unknown."""
    every = list(values)
    known = [value for value in every if value is not None]
    if not known or len(known) < len(every):
        return {"mean": None, "standard_error": None}
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "standard_error": error}


def in_words(values: Iterable[float]) -> str:
    """The mean and its standard error: ``0.5712 ± 0.0031 (3 seeds)``; one value alone."""
    every = list(values)
    found = mean_and_error(every)
    error = found["standard_error"]
    many = f" ± {error:.4f} ({len(every)} seeds)" if error is not None else ""
    return f"{found['mean']:.4f}{many}"


def results(
    metric: str,
    values: Mapping[Seed, float | None],
    seed: Seed,
    image_ids: Sequence[str],
    *,
    split: str,
    initial: str | None,
    crf: bool = False,
    note: str | None = None,
    own: bool = True,
) -> list[Result]:
    """Results of one metric, ``values`` by seed, for the manifest of one seed's weights.

    The mean over all seeds, then, of several and if ``own``, the value of these weights alone.
    Nothing if a value is unknown.
    """
    seeds = [number for number in values if number is not None]

    def result(value: float, error: float | None, of: list[int], remark: str | None) -> Result:
        return Result(
            metric=metric,
            value=value,
            standard_error=error,
            seeds=of,
            images=len(image_ids),
            image_list=list_digest(image_ids),
            split=split,
            crf=crf,
            initial_weights=initial,
            note=", ".join(filter(None, (remark, note))) or None,
        )

    found = mean_and_error(values.values())
    mean, error = found["mean"], found["standard_error"]
    if mean is None:
        return []
    several = len(seeds) > 1
    stated = [result(mean, error, seeds, f"mean of {len(seeds)} seeds" if several else None)]
    alone = values[seed]
    if own and several and seed is not None and alone is not None:
        stated.append(result(alone, None, [seed], "these weights alone"))
    return stated
