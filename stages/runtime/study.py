"""Studies: several trainings of one command, over seeds and over whatever a method compares, each
measured once; means over the seeds, and what manifests state of them.

A seed is None where weights were given and nothing was trained.
"""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.runtime import distributed
from stages.runtime.artifacts import SELECTION, Artifact
from stages.runtime.method import Image, Method
from stages.runtime.options import TrainOptions
from stages.runtime.progress import progress, say
from stages.runtime.provenance import provenance
from stages.runtime.session import Session
from stages.runtime.training import Trained, trained_network
from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.manifest import Ingredient, Provenance, Result
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.datasets import Target
from wsssbed_hub.evaluation.metrics import SegmentationMetrics
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.files import expect_trouble, write_whole

VAL = "val"
Seed = int | None
Spread = dict[str, float | None]
"""``mean`` and ``standard_error``."""
Score = dict[str, Any]
"""Measures by name, as JSON."""


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


@dataclass(frozen=True)
class Measured:
    """What is kept of a trained network while the next one is trained."""

    weights: dict[str, np.ndarray]
    made_from: list[Ingredient]
    score: Score

    @classmethod
    def of(cls, trained: Trained, score: Score) -> Measured:
        weights = {k: v.cpu().numpy() for k, v in trained.network.state_dict().items()}
        return cls(weights, trained.made_from, score)


class Study:
    """The trainings of one command; each is done once, and measured once, whatever asks for it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._begun: set[Path] = set()

    def train(self, training: Training) -> Trained:
        """The network of a training, trained now if it is not yet.

        ``--fresh`` discards it the first time only: others may build on it. Raises what
        ``trained_network`` raises.
        """
        again = training.folder in self._begun
        self._begun.add(training.folder)
        return trained_network(
            self.session.resuming() if again else self.session,
            training.make,
            training.data,
            training.folder,
            settings=training.settings,
            seed=training.seed or 0,
        )

    def score(
        self,
        training: Training,
        trained: Trained,
        name: str,
        of: Mapping[str, Any],
        measure: Callable[[], Score],
    ) -> Score:
        """The score that the training's folder has under ``name``, else that of ``measure``.

        ``of`` is what it depends on beside the weights. All processes call this.
        """
        path = training.folder / "score.json"
        of = {"weights": trained.made_from[-1].digest, **of}
        known = distributed.on_main(lambda: read_json(path).get(name))
        if isinstance(known, dict) and known.get("of") == of:
            return known["score"]
        score = measure()
        entry = {name: {"of": of, "score": score}}
        distributed.on_main(lambda: write_json(path, read_json(path) | entry))
        return score

    def provenance(self, made_from: Sequence[Ingredient], seed: Seed) -> Provenance:
        """Of what a network of this study makes."""
        return provenance(
            self.session.stage,
            self.session.environment,
            made_from,
            seed=seed,
            selection=None if seed is None else SELECTION,
        )

    def write_weights(
        self,
        artifact: Artifact,
        measured: Measured,
        provenance: Provenance,
        results: Sequence[Result],
        target: Target,
        **config: Any,
    ) -> None:
        """Write the weights with what they are worth; by the first process.

        ``config`` goes into ``config.json``, beside stage, recipe, target and classes.
        """
        config = {
            "stage": self.session.stage,
            **config,
            "recipe": asdict(self.session.recipe),
            "target": target.name,
            "classes": ["background", *target.classes],
        }

        def write() -> None:
            written = write_weights(
                artifact.folder, measured.weights, config, settings=artifact.settings
            )
            artifact.complete(written, provenance, results)

        distributed.on_main(write)
        say(f"{artifact.key}@{artifact.options.version}: in {artifact.folder}")


def folder_of(root: Path, seed: Seed) -> Path:
    """Folder of what belongs to a seed, or to weights that were given."""
    return root / ("given" if seed is None else f"seed{seed}")


Predicted = tuple[np.ndarray, Callable[[], np.ndarray] | None]
"""The label uint8[H, W] of an image, and what makes a refined one of it, in a thread."""


def measure_segmentation(
    target: Target,
    image_ids: Sequence[str],
    predict: Callable[[Image], Predicted],
    device: torch.device,
    *,
    title: str = "measuring mIoU",
    refines: bool = False,
    threads: int = 1,
) -> Score:
    """The scores over images of val (see ``SegmentationMetrics.as_dict``), by all processes.

    If ``predict`` ``refines``, a field ``crf`` holds the same scores of
    what came of it. That is made on the CPU, by so many ``threads`` of each process, while the
    network goes on.
    """
    raw, refined = (SegmentationMetrics(target.num_classes) for _ in range(2))
    truth = target.ground_truth(VAL)
    share = image_ids[distributed.rank() :: distributed.size()]
    waiting: deque[tuple[str, np.ndarray, Future[np.ndarray]]] = deque()

    def collect() -> None:
        image_id, expected, label = waiting.popleft()
        refined.add(label.result(), expected, image_id)

    with progress(title, len(share), "image") as show, _single_threads(threads) as pool:
        for image_id in share:
            rgb, expected = target.read_image(image_id), np.asarray(truth.read(image_id))
            with torch.inference_mode():
                label, refine = predict(Image(image_id, rgb))
            raw.add(label, expected, image_id)
            if refine is not None:
                waiting.append((image_id, expected, pool.submit(refine)))
            if len(waiting) > 2 * threads:  # more would only fill the memory
                collect()
            show(raw.images - len(waiting), "")
        while waiting:
            collect()
            show(raw.images - len(waiting), "")
    found = of_all_processes(raw, len(image_ids), device)
    if refines:
        found["crf"] = of_all_processes(refined, len(image_ids), device)
    return found


@contextmanager
def _single_threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch takes one core: a CRF gains nothing from several."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # threads that start later take the number set last


def of_all_processes(score: SegmentationMetrics, images: int, device: torch.device) -> Score:
    """``score.as_dict()`` when every process has scored its share of ``images`` images."""
    counts = torch.from_numpy(score.confusion).to(device)
    score.confusion = distributed.all_sum(counts).cpu().numpy()
    score.images = images
    return score.as_dict()


def mean_and_error(values: Iterable[float | None]) -> Spread:
    """Mean and its standard error (of two values or more); None if any value is unknown."""
    every = list(values)
    known = [value for value in every if value is not None]
    if not known or len(known) < len(every):
        return {"mean": None, "standard_error": None}
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "standard_error": error}


def in_words(found: Mapping[str, float | None], seeds: int) -> str:
    """A mean and its standard error: ``0.5712 ± 0.0031 (3 seeds)``."""
    error = found["standard_error"]
    return f"{found['mean']:.4f}" + (f" ± {error:.4f} ({seeds} seeds)" if error is not None else "")


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
    """What the manifest of one seed's weights states of a metric, whose ``values`` are by seed.

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


def segmentation_results(
    scores: Mapping[Seed, Score],
    seed: Seed,
    classes: Sequence[str],
    image_ids: Sequence[str],
    **how: Any,
) -> list[Result]:
    """What the manifest of one seed's weights states: mIoU and the IoU of each class, on val.

    ``how`` goes to ``results``. A class that val has not is left out.
    """
    mious = {number: score["miou"] for number, score in scores.items()}
    found = results("mIoU", mious, seed, image_ids, split=VAL, **how)
    for place, name in enumerate(("background", *classes)):
        values = {number: score["class_iou"][place] for number, score in scores.items()}
        found += results(f"IoU {name}", values, seed, image_ids, split=VAL, own=False, **how)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object at ``path``; an empty one if there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replaces the file at ``path``, in a folder that is made if it is missing."""
    with expect_trouble(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(data, indent=2).encode() + b"\n")
