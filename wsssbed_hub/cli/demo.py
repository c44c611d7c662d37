"""demo: the whole benchmark on a synthetic dataset, as the commands that a person would type.

Each is printed, then run. All of them can be interrupted and repeated, so the demo can: what is
done is found done.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsssbed_hub.utils.arithmetic import portable_settings
from wsssbed_hub.utils.errors import HubError

TARGET = "shapes"
SOD_DATASETS = ("shapes-small", "shapes")  # the same pictures' worth of saliency, few and many
GROUND_TRUTH = "ground-truth"
CAM = "cam/cam"
OTHERS = {  # stages of methods that --with adds, and what they make when trained on `shapes`
    "ssnet": ("sal/ssnet-shapes", "label/ssnet-shapes", "weights/ssnet-shapes"),
    "sod-vst": ("sal/vst-shapes",),
    "sod-dss": ("sal/dss-shapes",),
    "sod-deepusps": ("sal/deepusps",),
    "sod-move": ("sal/move",),
}
_SHOWN = {"sal": "--sal", "label": "--labels", "weights": "--segmentation"}  # options of report


@dataclass(frozen=True)
class Scale:
    """How much of everything: options of ``data make shapes`` and of the stages' training."""

    shapes: tuple[str, ...]
    stages: Mapping[str, tuple[str, ...]]


FULL = Scale((), {})
# Enough to run every part of it, too little to learn much: what CI has time for.
QUICK = Scale(
    ("--train", "48", "--val", "24", "--sod", "32"),
    {
        "sod-poolnet": ("--steps", "20"),
        "cam-cam": ("--steps", "20"),
        "seg-deeplabv2": ("--steps", "20"),
        "ssnet": ("--steps", "20"),
        "sod-vst": ("--steps", "20"),
        "sod-dss": ("--steps", "20"),
        "sod-deepusps": ("--set", "round_epochs=1", "--set", "fusion_epochs=1"),
        "sod-move": ("--steps", "20"),
    },
)


@dataclass(frozen=True)
class Step:
    """One command: what it is for, and its words after ``wsssbed-hub`` or ``python -m stages``."""

    title: str
    program: str
    words: tuple[str, ...]
    output: Path | None = None
    """The file that takes what it prints."""

    @property
    def line(self) -> str:
        """As a person would type it."""
        start = "wsssbed-hub" if self.program == "hub" else "python -m stages"
        into = "" if self.output is None else f" > {shlex.quote(str(self.output))}"
        return f"{start} {shlex.join(self.words)}{into}"

    @property
    def argv(self) -> list[str]:
        module = "wsssbed_hub" if self.program == "hub" else "stages"
        return [sys.executable, "-m", module, *self.words]


def steps(folder: Path, scale: Scale, seed: int, extra: Collection[str] = ()) -> Iterator[Step]:
    """The demo below ``folder``, in order; with ``extra`` methods (of ``OTHERS``) last."""
    data, out, registry, pulled = (
        folder / name for name in ("data", "artifacts", "registry", "pulled")
    )
    rooted = ("--data-root", str(data))

    def stage(title: str, name: str, *words: str) -> Step:
        common = ("--target", TARGET, *rooted, "--out", str(out))
        given = ("--recipe", "shapes", "--seed", str(seed), "--deterministic")
        trained = given if name != "pseudo" else ()
        return Step(title, "stage", (name, *words, *common, *trained, *scale.stages.get(name, ())))

    def hub(title: str, *words: str) -> Step:
        return Step(title, "hub", words)

    def publish(*keys: str) -> Iterator[Step]:
        for key in keys:
            words = ("push", str(out / key), "--registry", str(registry))
            yield hub(f"publish {key}", *words)

    def share(*keys: str) -> Iterator[Step]:
        yield from publish(*keys)
        for key in keys:
            words = ("pull", key, "--target", TARGET, "--to", str(pulled / key))
            yield hub(f"pull {key}, verified", *words, "--registry", str(registry))

    sals = [f"sal/poolnet-{name}" for name in SOD_DATASETS]
    labels = [f"label/cam-poolnet-{name}" for name in SOD_DATASETS]
    yield hub(
        "draw the dataset", "data", "make", "shapes", *rooted, "--seed", str(seed), *scale.shapes
    )
    for name in SOD_DATASETS:
        yield stage(f"train PoolNet on {name}, write saliency maps", "sod-poolnet", "--data", name)
    yield stage("train CAM on image-level labels, write activation maps", "cam-cam")
    yield from share(*sals, CAM)
    for sal, label in zip(sals, labels, strict=True):
        maps = ("--cam", str(pulled / CAM), "--sal", str(pulled / sal))
        yield stage(f"make {label} at the published tau", "pseudo", *maps)
    yield from share(*labels)
    for name in (*(str(pulled / label) for label in labels), GROUND_TRUTH):
        title = f"train DeepLab-V2 on {Path(name).name}, score it on val"
        yield stage(title, "seg-deeplabv2", "--labels", name)
    networks = [f"weights/seg-deeplabv2-{Path(name).name}" for name in (*labels, GROUND_TRUTH)]
    yield from publish(*networks)
    shown = [*sals, *networks]
    for name in (stage for stage in OTHERS if stage in extra):
        yield stage(f"train {name}, write its maps", name, "--data", SOD_DATASETS[-1])
        shared = [key for key in OTHERS[name] if not key.startswith("weights/")]
        yield from share(*shared)
        yield from publish(*(key for key in OTHERS[name] if key not in shared))
        shown += OTHERS[name]
    options = (word for key in shown for word in (_SHOWN[key.partition("/")[0]], key))
    words = (
        *("report", "--cam", CAM, *options),
        *("--target", TARGET, *rooted, "--registry", str(registry)),
        *("--to", str(folder / "report.html"), "--json"),
    )
    yield Step("compare", "hub", words, folder / "report.json")


def run(
    folder: Path,
    scale: Scale,
    seed: int,
    say: Callable[[str], None],
    extra: Collection[str] = (),
) -> float | None:
    """Run every step, also those of ``extra`` methods; ``say`` prints the headings.

    Returns the minutes that it took, None if an earlier run had begun. Raises HubError at the
    first step that fails; run it again to go on from there.
    """
    todo = list(steps(folder, scale, seed, extra))
    environment = os.environ | portable_settings() | {"WSSSBED_CACHE": str(folder / "cache")}
    resumed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    for number, step in enumerate(todo, start=1):
        minutes, seconds = divmod(int(time.monotonic() - begin), 60)
        say(f"\n[{number}/{len(todo)}, {minutes}:{seconds:02}] {step.title}\n$ {step.line}")
        with open(step.output, "w") if step.output else nullcontext() as out:
            code = subprocess.run(step.argv, env=environment, stdout=out, check=False).returncode
        if code != 0:
            raise HubError(
                f"Step {number} of the demo ({step.title}) ended with exit code {code}. What is "
                "done is kept: run the demo again to go on from here."
            )
    return None if resumed else (time.monotonic() - begin) / 60


Extra = StrEnum("Extra", {name: name for name in OTHERS})  # type: ignore[misc]


def demo(
    to: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the data and of the trainings.", min=0)] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run every part, but train too little to learn much.")
    ] = False,
    extra: Annotated[
        list[Extra] | None,
        typer.Option("--with", help="Another method, beside the others in the report."),
    ] = None,
) -> None:
    """Run the whole benchmark on a synthetic dataset, from images to mIoU, with a report.

    It needs the extra `stages` and about 10 minutes on two cores, a few more with each method
    beside. Stopped, it goes on where it was.
    """
    minutes = run(to, QUICK if quick else FULL, seed, say=typer.echo, extra=extra or ())
    words = ["wsssbed-hub", "demo"] + (["--seed", str(seed)] if seed else [])
    words += (["--quick"] if quick else []) + [w for name in extra or () for w in ("--with", name)]
    _finish(to, shlex.join(words), minutes)


def _finish(folder: Path, command: str, minutes: float | None) -> None:
    """Print the report's table, and write ``summary.json`` beside it."""
    from rich.console import Console

    from wsssbed_hub.artifacts.key_folder import read_manifest
    from wsssbed_hub.report import Report, terminal_table
    from wsssbed_hub.report.summary import summarise
    from wsssbed_hub.utils.files import write_whole

    report = Report.model_validate_json((folder / "report.json").read_text())
    Console().print(terminal_table(report))
    made = read_manifest(folder / "artifacts" / CAM).choose(TARGET).entry.provenance
    assert made is not None  # every stage writes it
    summary = summarise(report, command, made.environment, minutes)
    write_whole(folder / "summary.json", summary.dump().encode())
    time = "" if minutes is None else f" in {minutes:.0f} minutes"
    typer.echo(f"\nDone{time}. The report: {(folder / 'report.html').resolve().as_uri()}")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(demo)
