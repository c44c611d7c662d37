"""What a trained network is worth: mIoU on the target's val, saliency measures on benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.runtime import distributed
from stages.runtime.artifacts import list_ingredient, require_count
from stages.runtime.densecrf import SSNET
from stages.runtime.progress import progress, say
from stages.runtime.study import (
    VAL,
    Seed,
    of_all_processes,
    read_json,
    results,
    write_json,
)
from stages.runtime.training import Trained
from stages.ssnet._ssnet import Setting
from stages.ssnet._training import Study, has_saliency, has_segmentation
from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.manifest import Ingredient, Result
from wsssbed_hub.datasets import SOD_DATASETS, SodDataset, open_sod_dataset
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.evaluation.saliency_metrics import SSNetSaliencyMetrics

BENCHMARKS = ("ecssd", "pascal-s", "hku-is", "sod", "duts-te")
SYNTHETIC = dict.fromkeys(("shapes", "shapes-coco"), ("shapes-te",))
"""Benchmarks of the targets that are drawn."""
RAW, CRF = "raw", "crf"
CRF_SETTINGS = SSNET
PROTOCOL = "SSNet's protocol"

Score = dict[str, Any]
"""``segmentation``: see ``SegmentationMetrics.as_dict``; ``saliency``: by benchmark, ``raw`` and
``crf``, the measures of ``SSNetSaliencyMetrics``. What was not measured is absent."""


@dataclass(frozen=True)
class Benchmark:
    """A SOD dataset, or the first images of it, to measure saliency maps on."""

    dataset: SodDataset
    image_ids: list[str]

    @property
    def name(self) -> str:
        return self.dataset.name


def benchmarks_at_hand(study: Study) -> list[Benchmark]:
    """The benchmarks below the data root; says which are not there, or were trained on.

    Raises HubError for one that has not the published number of images.
    """
    options = study.session.options
    trained_on = _parts(study.data) if study.data else set()
    found = []
    for name in SYNTHETIC.get(study.target.name, BENCHMARKS):
        spec = SOD_DATASETS[name]
        if name in trained_on:
            say(f"{name} is not measured: the training sees it.")
        elif not spec.is_there(options.data_root):
            say(
                f"{name} is not measured: it is not below {options.data_root}. `wsssbed-hub data "
                f"check {name}` says where to get it."
            )
        else:
            dataset = open_sod_dataset(name, options.data_root)
            require_count(name, len(dataset.image_ids), spec.count, name)
            found.append(Benchmark(dataset, dataset.image_ids[: options.limit]))
    return found


def _parts(name: str) -> set[str]:
    spec = SOD_DATASETS[name]
    return {name, *(part.name for part in spec.parts)}


def lists_of(study: Study, setting: Setting, benchmarks: Sequence[Benchmark]) -> list[Ingredient]:
    """The images that the setting is measured on."""
    found = []
    if has_segmentation(setting):
        found.append(list_ingredient("val-list", f"{study.target.name} {VAL}", study.val_ids))
    if has_saliency(setting):
        found += [list_ingredient("benchmark-list", b.name, b.image_ids) for b in benchmarks]
    return found


def measure(
    study: Study,
    setting: Setting,
    seed: Seed,
    trained: Trained,
    benchmarks: Sequence[Benchmark],
) -> Score:
    """The scores of one network, by all processes; what is known of it is not measured again."""
    notes = _Notes(study.folder(setting, seed) / "score.json", trained.made_from[-1].digest)
    who = setting.name if seed is None else f"{setting.name}, seed {seed}"
    score: Score = {}
    if has_segmentation(setting):
        score["segmentation"] = notes.known_or(
            "segmentation",
            {"images": list_digest(study.val_ids)},
            partial(_segmentation, study, trained),
        )
        say(f"{who}: mIoU {score['segmentation']['miou']:.4f} on {study.target.name} {VAL}")
    if has_saliency(setting):
        score["saliency"] = {}
        for benchmark in benchmarks:
            found = score["saliency"][benchmark.name] = notes.known_or(
                f"saliency {benchmark.name}",
                {"images": list_digest(benchmark.image_ids), "crf": asdict(CRF_SETTINGS)},
                partial(_saliency, benchmark, trained),
            )
            raw, crf = (f"MAE {found[k]['mae']:.4f}, max F {found[k]['max_f']:.4f}" for k in found)
            say(f"{who}: {raw}; with CRF {crf} on {benchmark.name}")
    return score


@dataclass(frozen=True)
class _Notes:
    """The file that keeps what was measured of one network."""

    path: Path
    weights: str

    def known_or(self, name: str, of: Mapping[str, Any], measure: Callable[[], Score]) -> Score:
        """The score that the file has under ``name`` of these images, else a new one."""
        of = {"weights": self.weights, **of}
        known = distributed.on_main(lambda: read_json(self.path).get(name, {}))
        if isinstance(known, dict) and known.get("of") == of:
            return known["score"]
        score = measure()

        def keep() -> None:
            write_json(self.path, read_json(self.path) | {name: {"of": of, "score": score}})

        distributed.on_main(keep)
        return score


def _segmentation(study: Study, trained: Trained) -> Score:
    score = SegmentationMetrics(study.target.num_classes)
    truth = study.target.ground_truth(VAL)
    share = study.val_ids[distributed.rank() :: distributed.size()]
    with progress("measuring mIoU", len(share), "image") as show:
        for image_id in share:
            with torch.inference_mode():
                label = trained.method.segmentation(
                    trained.network, study.target.read_image(image_id)
                )
            score.add(label, np.asarray(truth.read(image_id)), image_id)
            show(score.images, "")
    return of_all_processes(score, len(study.val_ids), study.session.device)


def _saliency(benchmark: Benchmark, trained: Trained) -> Score:
    scores = {kind: SSNetSaliencyMetrics(resize=None) for kind in (RAW, CRF)}
    share = benchmark.image_ids[distributed.rank() :: distributed.size()]
    with progress(f"measuring saliency on {benchmark.name}", len(share), "image") as show:
        for done, image_id in enumerate(share, start=1):
            rgb = benchmark.dataset.read_image(image_id)
            mask = benchmark.dataset.read_mask(image_id)
            with torch.inference_mode():
                maps = trained.method.saliencies(trained.network, rgb, (None, CRF_SETTINGS))
            for kind, saliency in zip((RAW, CRF), maps, strict=True):
                scores[kind].add(saliency, mask, image_id)
            show(done, "")
    return {kind: _together(score).result() for kind, score in scores.items()}


def _together(score: SSNetSaliencyMetrics) -> SSNetSaliencyMetrics:
    """The score over the images of all processes."""
    total = SSNetSaliencyMetrics(resize=None)
    for part in distributed.gathered(score):
        total.merge(part)
    return total


def results_of(
    study: Study,
    setting: Setting,
    seed: Seed,
    scores: Mapping[Seed, Score],
    benchmarks: Sequence[Benchmark],
) -> list[Result]:
    """What the manifest of one seed's weights states: mIoU, the classes' IoU, MAE and max F."""
    initial = study.session.initial_names
    stated: list[Result] = []
    if has_segmentation(setting):
        found = {s: score["segmentation"] for s, score in scores.items()}
        common: dict[str, Any] = {"split": VAL, "initial": initial}
        mious = {s: score["miou"] for s, score in found.items()}
        stated += results("mIoU", mious, seed, study.val_ids, **common)
        for place, name in enumerate(("background", *study.target.classes)):
            values = {s: score["class_iou"][place] for s, score in found.items()}
            stated += results(f"IoU {name}", values, seed, study.val_ids, own=False, **common)
    if has_saliency(setting):
        for benchmark in benchmarks:
            stated += _saliency_results(benchmark, seed, scores, initial)
    return stated


def _saliency_results(
    benchmark: Benchmark, seed: Seed, scores: Mapping[Seed, Score], initial: str | None
) -> list[Result]:
    stated = []
    for kind in (RAW, CRF):
        for metric, field in (("MAE", "mae"), ("max F", "max_f")):
            values = {
                s: score["saliency"][benchmark.name][kind][field] for s, score in scores.items()
            }
            stated += results(
                metric,
                values,
                seed,
                benchmark.image_ids,
                split=benchmark.name,
                initial=initial,
                crf=kind == CRF,
                note=PROTOCOL,
            )
    return stated
