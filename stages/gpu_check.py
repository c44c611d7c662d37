"""Every stage twice on the GPU, deterministically: ``make gpu-check``.

The two runs must give the same content digests. They are then compared with the committed record of
this GPU model and project version, which holds digests and a coarse summary: means over 8 x 8 cells
of every map, norms of tensors. Another driver or a new torch may change the last bits of a sum, and
so a few cells by a level; a stage that computes something else changes many. A GPU model that has
no record gets one, for a maintainer to commit.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from stages.small_runs import TARGET, SmallRun, contained, outside, run_all
from wsssbed_hub.artifacts.key_folder import open_entry, read_manifest
from wsssbed_hub.artifacts.manifest import Entry
from wsssbed_hub.artifacts.maps import Activations
from wsssbed_hub.artifacts.weights import MODEL, read_header
from wsssbed_hub.containers.engines import find_engine, find_gpus
from wsssbed_hub.datasets.shapes import make_shapes
from wsssbed_hub.evaluation.differences import numbers_of
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import write_whole

RECORDS = Path("docker/gpu-records")
WORK = Path("build/gpu-check")
GRID = 8
CELLS = 0.01  # share of cells that may differ from the record by more than one level
NORMS = 1e-3  # relative difference of a tensor's norm; a step of training moves it by about 1e-2
EXTRA = ("--deterministic", "--device", "cuda")

Execute = Callable[[SmallRun, Path], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one artifact compared with a record."""

    key: str
    verdict: Literal["equal", "within tolerance", "different", "not in the record"]
    figures: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.verdict}{f' ({self.figures})' if self.figures else ''}"


def run_twice(
    execute: Execute, work: Path, names: Sequence[str], say: Callable[[str], None]
) -> Record:
    """The record of this machine. Raises HubError unless both runs of all stages agree."""
    found: Record = {}
    for number in (1, 2):
        shutil.rmtree(work / str(number), ignore_errors=True)
    first, second = (run_all(names, work / str(n), execute, EXTRA) for n in (1, 2))
    for (stage, entries), (_, again) in zip(first, second, strict=True):
        for key, entry in entries.items():
            if key not in again or again[key].content != entry.content:
                other = again[key].content if key in again else "nothing"
                raise HubError(
                    f"{stage} is not deterministic: {key} is {entry.content} in one run and "
                    f"{other} in the other. Both are in {work}."
                )
            _add(found, key, entry, work / "1" / stage / key)
        say(f"{stage}: twice the same")
    return found


def _add(record: Record, key: str, entry: Entry, folder: Path) -> None:
    """One artifact's digest and summary, and the machine that it was made on."""
    if entry.provenance is None:
        raise HubError(f"{key} does not say how it was made.")
    here = entry.provenance.environment
    if here.gpu is not None:
        if here.deterministic is not True:
            raise HubError(f"{key} was asked to be deterministic, and does not say that it is.")
        machine = {"gpu": here.gpu, "torch": here.torch, "cuda": here.cuda}
        if record.setdefault("machine", machine) != machine:
            raise HubError(f"{key} was made on another machine: {machine}.")
    artifacts = record.setdefault("artifacts", {})
    artifacts[key] = {"content": entry.content, "summary": summary(folder)}


def summary(folder: Path) -> dict[str, Any]:
    """An artifact reduced for a comparison: small, and blind to single pixels."""
    manifest = read_manifest(folder)
    chosen = manifest.choose(TARGET)
    if manifest.kind == "weights":
        path = folder / chosen.target / str(chosen.version) / MODEL
        norms = {t.name: np.linalg.norm(numbers_of(path, t)) for t in read_header(path)}
        return {"norms": {name: float(f"{norm:.6g}") for name, norm in norms.items()}}
    cells = {}
    for image_id, maps in open_entry(folder, manifest, chosen):
        pixels = maps.activations if isinstance(maps, Activations) else maps[None]
        cells[image_id] = " ".join(_cells(map_).tobytes().hex() for map_ in pixels)
    return {"cells": cells}


def _cells(map_: np.ndarray) -> np.ndarray:
    """uint8[GRID, GRID]: means over cells of uint8[H, W]."""
    rows = np.array_split(map_.astype(np.float64), GRID, axis=0)
    means = [[c.mean() if c.size else 0 for c in np.array_split(r, GRID, axis=1)] for r in rows]
    return np.rint(means).astype(np.uint8)


def compare_artifacts(found: Record, record: Record) -> list[Verdict]:
    """Each artifact against the record."""
    return [
        _outcome(key, artifact, record["artifacts"].get(key))
        for key, artifact in found["artifacts"].items()
    ]


def _outcome(key: str, now: Mapping[str, Any], then: Mapping[str, Any] | None) -> Verdict:
    if then is None:
        return Verdict(key, "not in the record")
    if now["content"] == then["content"]:
        return Verdict(key, "equal")
    if "norms" in now["summary"]:
        return _outcome_of_weights(key, now["summary"]["norms"], then["summary"].get("norms", {}))
    one, other = now["summary"]["cells"], then["summary"].get("cells", {})
    if {i: len(text) for i, text in one.items()} != {i: len(text) for i, text in other.items()}:
        return Verdict(key, "different", "other images, sizes or classes")
    levels = [
        np.frombuffer(bytes.fromhex("".join(cells[i] for i in sorted(cells))), np.uint8)
        for cells in (one, other)
    ]
    apart = np.abs(levels[0].astype(int) - levels[1])
    share = float((apart > 1).mean())
    figures = f"{share:.2%} of the cells by more than a level, {int(apart.max())} at most"
    return Verdict(key, "within tolerance" if share <= CELLS else "different", figures)


def _outcome_of_weights(key: str, one: dict[str, float], other: dict[str, float]) -> Verdict:
    if one.keys() != other.keys():
        return Verdict(key, "different", "other tensors")
    apart = {n: abs(one[n] - other[n]) / max(one[n], other[n], 1e-12) for n in one}
    worst = max(apart, key=lambda name: apart[name])
    verdict: Literal["within tolerance", "different"] = (
        "within tolerance" if apart[worst] <= NORMS else "different"
    )
    return Verdict(key, verdict, f"norms by {apart[worst]:.1e} at most, that of {worst}")


def compare_or_record(found: Record, records: Path, say: Callable[[str], None]) -> None:
    """Compare with the record of this GPU model and version, or write it.

    Raises HubError if something is different, or is not in the record.
    """
    gpu = re.sub(r"[^a-z0-9]+", "-", found["machine"]["gpu"].lower()).strip("-")
    path = records / f"{gpu}_{version('wsssbed-hub')}.json"
    if not path.exists():
        records.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found, indent=1, sort_keys=True).encode() + b"\n")
        say(f"no record of this GPU and version yet: {path} is one now. Commit it.")
        return
    record = json.loads(path.read_text())
    if record["machine"] != found["machine"]:
        say(f"the record was made on {record['machine']}, this is {found['machine']}")
    outcomes = compare_artifacts(found, record)
    for outcome in outcomes:
        say(str(outcome))
    if any(outcome.verdict in ("different", "not in the record") for outcome in outcomes):
        raise HubError(
            f"This is not what {path} says. If the change is meant, remove the file and run "
            "gpu-check again: it writes another."
        )


def main(
    stages: Annotated[list[str] | None, typer.Argument(help="Only these, and what they need.")] = (
        None
    ),
    without_images: Annotated[
        bool, typer.Option("--without-images", help="Run the stages with this Python instead.")
    ] = False,
    engine: Annotated[str | None, typer.Option(help="docker or podman.")] = None,
) -> None:
    """Run every stage image twice for a few steps on the GPU, and compare."""
    try:
        if not find_gpus("auto", None):
            raise HubError("gpu-check did not run: nvidia-smi shows no GPU on this machine.")
        make_shapes(WORK / "data", train=9, val=6, sod=8, sod_test=2, small=6)
        execute: Execute
        if without_images:
            execute = outside(WORK / "data")
        else:
            found = find_engine(engine)
            gpus = find_gpus("0", found)
            execute = contained(found, WORK / "data", WORK / "cache", gpus=gpus)
        compare_or_record(run_twice(execute, WORK, stages or (), _say), RECORDS, _say)
    except HubError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def _say(text: str) -> None:
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
