"""What a trained segmentation network is worth on the target's val split, and what several are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stages.runtime import distributed
from stages.runtime.progress import progress
from stages.runtime.training import Trained
from wsssbed_hub.digests import list_digest
from wsssbed_hub.manifest import Result
from wsssbed_hub.metrics import SegmentationScore
from wsssbed_hub.targets import Target

SPLIT = "val"
Seed = int | None  # None: weights that were given


def measure(
    trained: Trained, target: Target, image_ids: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """The scores over ``image_ids`` (see ``SegmentationScore.as_dict``), by all processes."""
    score = SegmentationScore(target.num_classes)
    truth = target.ground_truth(SPLIT)
    share = image_ids[distributed.rank() :: distributed.size()]
    with progress("measuring mIoU", len(share), "image") as show:
        for image_id in share:
            with torch.inference_mode():
                logits = trained.method.logits(trained.network, target.read_image(image_id))
                prediction = logits.argmax(0).to(torch.uint8).cpu().numpy()
            score.add(prediction, np.asarray(truth.read(image_id)), image_id)
            show(score.images, "")
    counts = torch.from_numpy(score.confusion).to(device)
    score.confusion = distributed.all_sum(counts).cpu().numpy()
    score.images = len(image_ids)
    return score.as_dict()


def summary(scores: Mapping[Seed, dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Mean and standard error over the seeds, and each seed's own scores, as JSON."""
    columns = zip(*(score["class_iou"] for score in scores.values()), strict=True)
    return {
        "split": SPLIT,
        "miou": _mean([score["miou"] for score in scores.values()]),
        "class_iou": {
            name: _mean(values)
            for name, values in zip(("background", *classes), columns, strict=True)
        },
        "seeds": {str(seed): score for seed, score in scores.items() if seed is not None},
    }


def results(
    scores: Mapping[Seed, dict[str, Any]],
    seed: Seed,
    classes: Sequence[str],
    image_ids: Sequence[str],
    initial: str | None,
) -> list[Result]:
    """What the manifest of one seed's weights states.

    The mean over all seeds first, then, of several, the seed's own, then the mean of each class.
    """
    found = summary(scores, classes)
    seeds = [number for number in scores if number is not None]

    def result(metric: str, value: Mapping[str, Any], of: list[int], note: str | None) -> Result:
        return Result(
            metric=metric,
            value=value["mean"],
            standard_error=value["standard_error"],
            seeds=of,
            images=len(image_ids),
            image_list=list_digest(image_ids),
            split=SPLIT,
            initial_weights=initial,
            note=note,
        )

    several = len(seeds) > 1
    note = f"mean of {len(seeds)} seeds" if several else None
    stated = [result("mIoU", found["miou"], seeds, note)]
    if several and seed is not None:
        own = _mean([scores[seed]["miou"]])
        stated.append(result("mIoU", own, [seed], "these weights alone"))
    for name, value in found["class_iou"].items():
        if value["mean"] is not None:  # a class that val has not
            stated.append(result(f"IoU {name}", value, seeds, note))
    return stated


def _mean(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and its standard error (of two values or more); None if any value is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "standard_error": None}
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "standard_error": error}
