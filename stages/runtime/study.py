"""What measuring stages share: scores over several processes, means over seeds, and their results.

A seed is None where weights were given and nothing was trained.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.runtime import distributed
from stages.runtime.options import TrainOptions
from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.manifest import Result
from wsssbed_hub.evaluation.metrics import SegmentationScore
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.files import expect_trouble, write_whole

VAL = "val"
Seed = int | None
Spread = dict[str, float | None]
"""``mean`` and ``standard_error``."""


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


def of_all_processes(score: SegmentationScore, images: int, device: torch.device) -> dict[str, Any]:
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
