"""``python -m benchmarks``: every measurement, side by side, as a Markdown table and JSON."""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import inference, training
from benchmarks.pictures import DUTS, VOC, draw
from stages.ops.determinism import compute_exactly, reseed
from stages.runtime.provenance import environment
from stages.seg.deeplabv2 import Method as DeepLab
from stages.sod.poolnet import Method as PoolNet

LIMIT = 420.0  # seconds after which no further measurement begins: eight minutes in all


@dataclass(frozen=True)
class Scale:
    """Sizes of everything; the small ones only show that every part works."""

    recipe: str
    duts: tuple[tuple[int, int], ...]
    voc: tuple[tuple[int, int], ...]
    images: int
    seconds: float
    crf: tuple[int, int, int]
    warm: int = 3
    """Steps that are not counted."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe."""


FULL = Scale("published", DUTS, VOC, 200, 10.0, (375, 500, 21))
SMALL = Scale("shapes", ((112, 140),), ((112, 140),), 8, 0.5, (112, 140, 21), 1, {"batch_size": 2})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--workers", type=int, default=max(1, min(8, (os.cpu_count() or 2) - 1)))
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        parser.exit(2, "torch sees no GPU here; say --device cpu or leave it out\n")
    device = torch.device("cuda" if cuda and options.device != "cpu" else "cpu")
    scale = FULL if device.type == "cuda" else SMALL
    compute_exactly(strict=True)
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, unit, measure in measurements(scale, device, options.workers, Path(folder)):
            row: dict[str, Any] = {"name": name, "unit": unit}
            if time.monotonic() - began > LIMIT:
                row["left out"] = "the time was over"
            else:
                value = measure()
                row |= value if isinstance(value, dict) else {"value": value}
            found.append(row)
            print(_line(row), flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    machine = environment(device, "as each row says", True).model_dump(exclude_none=True)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine | {"cores": os.cpu_count()}, "scale": scale.recipe, "rows": found}
    (options.out / "bench.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
    (options.out / "bench.md").write_text(_markdown(found, device, machine))
    print(f"\n{options.out}/bench.md and bench.json, {time.monotonic() - began:.0f} s")


def measurements(
    scale: Scale, device: torch.device, workers: int, folder: Path
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Name, unit and measurement, in order."""
    duts = draw(folder / "duts", "duts", scale.duts, scale.images)
    voc = draw(folder / "voc", "voc12", scale.voc, scale.images)
    pool, deep = (
        replace(method.recipes[scale.recipe], **scale.changes) for method in (PoolNet, DeepLab)
    )
    subjects = (
        training.Subject("PoolNet", lambda: PoolNet(pool, folder), duts, scale.warm),
        training.Subject("DeepLab-V2", lambda: DeepLab(deep, folder, 20), voc, scale.warm),
    )
    for subject in subjects:
        ours = partial(
            partial, training.of_trainer, subject, device, scale.seconds, workers=workers
        )
        name, steps = f"training {subject.name}", "steps/s"
        yield (
            f"{name}, published-style loop",
            steps,
            partial(training.of_published_loop, subject, device, scale.seconds, workers=workers),
        )
        yield f"{name}, ours, deterministic float32", steps, ours()
        yield f"{name}, ours, not deterministic float32", steps, ours(deterministic=False)
        if device.type == "cuda":
            yield f"{name}, ours, deterministic tf32", steps, ours(precision="tf32")
            yield (
                f"{name}, ours, not deterministic tf32",
                steps,
                ours(precision="tf32", deterministic=False),
            )
        yield f"{name}, ours, deterministic bf16", steps, ours(precision="bf16")
        yield (
            f"{name}, ours, deterministic bf16, channels last",
            steps,
            ours(precision="bf16", channels_last=True),
        )
        yield (
            f"data of {subject.name} alone",
            "batches/s",
            partial(training.of_data, subject, scale.seconds / 2, workers),
        )
    yield from maps(subjects[0], device, workers)
    height, width, classes = scale.crf
    yield (
        f"DenseCRF {height}x{width}x{classes}, 10 iterations, one image",
        "",
        lambda: inference.crf(device, height, width, classes, 10 if device.type == "cuda" else 2),
    )


def maps(
    subject: training.Subject, device: torch.device, workers: int
) -> Iterator[tuple[str, str, Callable[[], float]]]:
    reseed(0, "build")
    method: Any = subject.make()
    network = method.build().to(device).eval().requires_grad_(False)
    yield (
        "writing maps, loop",
        "images/s",
        lambda: inference.maps_in_a_loop(method, network, subject.data),
    )
    yield (
        "writing maps, ours",
        "images/s",
        lambda: inference.maps_written(method, network, subject.data, workers),
    )


def _line(row: dict[str, Any]) -> str:
    numbers = {k: v for k, v in row.items() if k not in ("name", "unit")}
    words = [
        f"{value:.3g} {row['unit']}" if key == "value" else f"{key}: {_short(value)}"
        for key, value in numbers.items()
    ]
    return f"{row['name']}: " + ", ".join(words)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _markdown(rows: list[dict[str, Any]], device: torch.device, machine: dict[str, Any]) -> str:
    where = machine.get("gpu") or "the CPU"
    small = "" if device.type == "cuda" else " Small sizes: only to see that every part works."
    lines = [
        f"On {where}, {os.cpu_count()} cores, torch {torch.__version__}.{small}",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {rest} |" for name, rest in (_line(row).split(": ", 1) for row in rows)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
