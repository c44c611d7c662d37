"""The whole benchmark on a synthetic dataset, as the commands that a person would type.

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
from dataclasses import dataclass
from pathlib import Path

from wsssbed_hub.utils.errors import HubError

TARGET = "shapes"
SOD_DATASETS = ("shapes-small", "shapes")  # the same pictures' worth of saliency, few and many
GROUND_TRUTH = "ground-truth"
CAM = "cam/cam"
SSNET = "ssnet"


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
        SSNET: ("--steps", "20"),
    },
)


@dataclass(frozen=True)
class Step:
    """One command: what it is for, and its words after ``wsssbed-hub`` or ``python -m stages``."""

    title: str
    program: str
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        """As a person would type it."""
        start = "wsssbed-hub" if self.program == "hub" else "python -m stages"
        return f"{start} {shlex.join(self.words)}"

    @property
    def argv(self) -> list[str]:
        module = "wsssbed_hub" if self.program == "hub" else "stages"
        return [sys.executable, "-m", module, *self.words]


def steps(folder: Path, scale: Scale, seed: int, extra: Collection[str] = ()) -> Iterator[Step]:
    """The demo below ``folder``, in order; with ``extra`` methods (``SSNET``) before the report."""
    data, out, registry = folder / "data", folder / "artifacts", folder / "registry"
    pulled = folder / "pulled"
    rooted = ("--data-root", str(data))

    def stage(title: str, name: str, *words: str) -> Step:
        common = ("--target", TARGET, *rooted, "--out", str(out))
        trained = ("--recipe", "shapes", "--seed", str(seed)) if name != "pseudo" else ()
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
    networks = [
        f"weights/seg-deeplabv2-{name.removeprefix('label/')}" for name in (*labels, GROUND_TRUTH)
    ]
    yield from publish(*networks)
    shown = [("--sal", key) for key in sals]
    if SSNET in extra:
        name = f"{SSNET}-{SOD_DATASETS[-1]}"
        title = "train SSNet for saliency and segmentation at once, write its maps and labels"
        yield stage(title, SSNET, "--data", SOD_DATASETS[-1])
        yield from share(f"sal/{name}", f"label/{name}")
        yield from publish(f"weights/{name}")
        shown += [("--sal", f"sal/{name}"), ("--labels", f"label/{name}")]
        networks.append(f"weights/{name}")
    shown += [("--segmentation", key) for key in networks]
    yield hub(
        "compare",
        "report",
        "--cam",
        CAM,
        *(word for pair in shown for word in pair),
        "--target",
        TARGET,
        *rooted,
        "--registry",
        str(registry),
        "--to",
        str(folder / "report.html"),
    )


def run(
    folder: Path,
    scale: Scale,
    seed: int,
    say: Callable[[str], None],
    extra: Collection[str] = (),
) -> None:
    """Run every step, also those of ``extra`` methods; ``say`` prints the headings.

    Raises HubError at the first step that fails; run it again to go on from there.
    """
    todo = list(steps(folder, scale, seed, extra))
    environment = os.environ | {"WSSSBED_CACHE": str(folder / "cache")}
    begin = time.monotonic()
    for number, step in enumerate(todo, start=1):
        minutes, seconds = divmod(int(time.monotonic() - begin), 60)
        say(f"\n[{number}/{len(todo)}, {minutes}:{seconds:02}] {step.title}\n$ {step.line}")
        code = subprocess.run(step.argv, env=environment, check=False).returncode
        if code != 0:
            raise HubError(
                f"Step {number} of the demo ({step.title}) ended with exit code {code}. What is "
                "done is kept: run the demo again to go on from here."
            )
    minutes, seconds = divmod(int(time.monotonic() - begin), 60)
    report = (folder / "report.html").resolve().as_uri()
    say(f"\nDone in {minutes}:{seconds:02}. The report: {report}")
