"""demo: the whole benchmark on a synthetic dataset, as the commands that a person would type.

Each is printed, then run. All of them can be interrupted and repeated, so the demo can: what is
done is found done. The zoo, the table of all saliency models, is the same without segmentation.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsssbed_hub.utils.arithmetic import portable_settings
from wsssbed_hub.utils.errors import HubError, UsageError

if TYPE_CHECKING:
    from wsssbed_hub.report.summary import SummaryRow

TARGET = "shapes"
SOD_DATASETS = ("shapes-small", "shapes")  # the same pictures' worth of saliency, few and many
GROUND_TRUTH = "ground-truth"
CAM = "cam/cam"
SSNET = "ssnet"
IMAGES = 6  # in the picture of all maps


@dataclass(frozen=True)
class Scale:
    """How much of everything: options of ``data make shapes`` and of every training."""

    shapes: tuple[str, ...] = ()
    training: tuple[str, ...] = ()


FULL = Scale()
# Enough to run every part of it, too little to learn much: what CI has time for.
QUICK = Scale(("--train", "48", "--val", "24", "--sod", "32"), ("--steps", "20"))


@dataclass(frozen=True)
class SaliencyModel:
    """A stage that makes saliency maps, and their key, with ``{data}`` for the SOD dataset."""

    stage: str
    key: str

    @property
    def trained_on(self) -> dict[str, str]:
        """The keys of its maps, and what it is trained on for them: either SOD dataset, or, if its
        key names none since it learns without masks, the images of the larger one."""
        datasets = SOD_DATASETS if "{data}" in self.key else SOD_DATASETS[-1:]
        return {self.key.format(data=name): name for name in datasets}


POOLNET = SaliencyModel("sod-poolnet", "sal/poolnet-{data}")


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


@dataclass(frozen=True)
class Demo:
    """The work to be done, and the folder that it is done in.

    ``models`` come beside PoolNet. Without ``segmentation`` the labels are measured, and nothing
    is trained on them.
    """

    folder: Path
    scale: Scale = FULL
    seed: int = 0
    models: Sequence[SaliencyModel] = ()
    ssnet: bool = False
    segmentation: bool = True

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def trainings(self) -> dict[str, tuple[str, str]]:
        """Saliency maps by key, in order: their stage, and what it is trained on."""
        return {
            key: (model.stage, data)
            for model in (POOLNET, *self.models)
            for key, data in model.trained_on.items()
        }

    def pulled(self, key: str) -> Path:
        return self.folder / "pulled" / key

    def steps(self) -> Iterator[Step]:
        """All of it, in order. What comes on top comes last, so that it can be added later."""
        sals = list(POOLNET.trained_on)
        yield self._hub(
            "draw the dataset",
            *("data", "make", "shapes", *self._rooted),
            *("--seed", str(self.seed), *self.scale.shapes),
        )
        for name in SOD_DATASETS:
            yield self._saliency(POOLNET.stage, name)
        title = "train CAM on image-level labels, write activation maps"
        yield self._training(title, "cam-cam")
        yield from self._share(*sals, CAM)
        shown: list[tuple[str, str]] = []
        if self.segmentation:
            labels = [f"label/cam-{Path(sal).name}" for sal in sals]
            yield from self._label(dict(zip(labels, sals, strict=True)))
            names = [*labels, GROUND_TRUTH]
            shown += [("--segmentation", f"weights/seg-deeplabv2-{Path(n).name}") for n in names]
            yield from self._publish(*(key for _, key in shown))
        for model in self.models:
            for key, name in model.trained_on.items():
                yield self._saliency(model.stage, name)
                yield from self._share(key)
        shown += [("--sal", key) for key in self.trainings]
        if self.ssnet:
            name = f"{SSNET}-{SOD_DATASETS[-1]}"
            title = "train SSNet for saliency and segmentation at once, write its maps and labels"
            yield self._training(title, SSNET, "--data", SOD_DATASETS[-1])
            yield from self._share(f"sal/{name}", f"label/{name}")
            yield from self._publish(f"weights/{name}")
            shown += [("--sal", f"sal/{name}"), ("--labels", f"label/{name}")]
            shown.append(("--segmentation", f"weights/{name}"))
        words = (
            *("report", "--cam", CAM, *(word for pair in shown for word in pair)),
            *("--target", TARGET, *self._rooted, *self._registry),
            *("--to", str(self.folder / "report.html"), "--json"),
        )
        yield Step("compare", "hub", words, self.folder / "report.json")

    def _label(self, labels: Mapping[str, str]) -> Iterator[Step]:
        """Labels from saliency maps, by their keys, and a network on each and on the truth."""
        for label, sal in labels.items():
            maps = ("--cam", str(self.pulled(CAM)), "--sal", str(self.pulled(sal)))
            yield self._stage(f"make {label} at the published tau", "pseudo", *maps)
        yield from self._share(*labels)
        for name in (*(str(self.pulled(label)) for label in labels), GROUND_TRUTH):
            title = f"train DeepLab-V2 on {Path(name).name}, score it on val"
            yield self._training(title, "seg-deeplabv2", "--labels", name)

    def _saliency(self, stage: str, data: str) -> Step:
        name = "PoolNet" if stage == POOLNET.stage else stage
        title = f"train {name} on {data}, write saliency maps"
        return self._training(title, stage, "--data", data)

    def _training(self, title: str, name: str, *words: str) -> Step:
        given = ("--recipe", "shapes", "--seed", str(self.seed), "--deterministic")
        return self._stage(title, name, *words, last=(*given, *self.scale.training))

    def _stage(self, title: str, name: str, *words: str, last: tuple[str, ...] = ()) -> Step:
        common = ("--target", TARGET, *self._rooted, "--out", str(self.artifacts))
        return Step(title, "stage", (name, *words, *common, *last))

    def _publish(self, *keys: str) -> Iterator[Step]:
        for key in keys:
            words = ("push", str(self.artifacts / key), *self._registry)
            yield self._hub(f"publish {key}", *words)

    def _share(self, *keys: str) -> Iterator[Step]:
        yield from self._publish(*keys)
        for key in keys:
            words = ("pull", key, "--target", TARGET, "--to", str(self.pulled(key)))
            yield self._hub(f"pull {key}, verified", *words, *self._registry)

    def _hub(self, title: str, *words: str) -> Step:
        return Step(title, "hub", words)

    @property
    def _rooted(self) -> tuple[str, ...]:
        return "--data-root", str(self.data)

    @property
    def _registry(self) -> tuple[str, ...]:
        return "--registry", str(self.folder / "registry")


def run(demo: Demo, say: Callable[[str], None]) -> float | None:
    """Run every step; ``say`` prints the headings.

    Returns the minutes that it took, None if an earlier run had begun. Raises HubError at the
    first step that fails; run it again to go on from there.
    """
    todo, folder = list(demo.steps()), demo.folder
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


def saliency_models(stages: Sequence[str]) -> list[SaliencyModel]:
    """The saliency models that these stages are, as the stages' own program tells.

    Raises UsageError for what is no stage, or makes no saliency maps; HubError if the program
    does not run.
    """
    if POOLNET.stage in stages:
        raise UsageError(f"--with {POOLNET.stage}: it is a part of every demo.")
    if not stages:
        return []
    command = [sys.executable, "-m", "stages", "saliency-keys", *stages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().removeprefix("error: ") or "`python -m stages` does not run."
        raise (UsageError if done.returncode == UsageError.exit_code else HubError)(said)
    return [SaliencyModel(*pair) for pair in json.loads(done.stdout).items()]


def demo(
    to: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the data and of the trainings.", min=0)] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run every part, but train too little to learn much.")
    ] = False,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="Another saliency model beside PoolNet, or ssnet; repeatable.",
            metavar="STAGE",
        ),
    ] = None,
    without_segmentation: Annotated[
        bool,
        typer.Option(
            "--without-segmentation", help="Measure the labels, and train nothing on them."
        ),
    ] = False,
) -> None:
    """Run the whole benchmark on a synthetic dataset, from images to mIoU, with a report.

    It needs the extra `stages` and about 10 minutes on two cores, a few more with each model.
    Stopped, it goes on where it was.
    """
    more = list(dict.fromkeys(extra or ()))
    todo = Demo(
        to,
        QUICK if quick else FULL,
        seed,
        saliency_models([name for name in more if name != SSNET]),
        ssnet=SSNET in more,
        segmentation=not without_segmentation,
    )
    minutes = run(todo, say=typer.echo)
    words = ["wsssbed-hub", "demo"] + (["--seed", str(seed)] if seed else [])
    words += ["--quick"] if quick else []
    words += ["--without-segmentation"] if without_segmentation else []
    words += [word for name in more for word in ("--with", name)]
    _finish(todo, shlex.join(words), minutes)


def _finish(demo: Demo, command: str, minutes: float | None) -> None:
    """Print the report's table; write ``summary.json`` and ``maps.png`` beside it."""
    from rich.console import Console

    from wsssbed_hub.artifacts.key_folder import read_manifest
    from wsssbed_hub.report import Report, terminal_table
    from wsssbed_hub.report.summary import summarise
    from wsssbed_hub.utils.files import write_whole

    report = Report.model_validate_json((demo.folder / "report.json").read_text())
    Console().print(terminal_table(report))
    made = read_manifest(demo.artifacts / CAM).choose(TARGET).entry.provenance
    assert made is not None  # every stage writes it
    trained = _minutes_of_training(demo)
    more = [_mean_of_the_masks(demo)]
    summary = summarise(report, command, made.environment, minutes, trained=trained, more=more)
    write_whole(demo.folder / "summary.json", summary.dump().encode())
    write_whole(demo.folder / "maps.png", _picture(demo))
    time = "" if minutes is None else f" in {minutes:.0f} minutes"
    typer.echo(f"\nDone{time}. The report: {(demo.folder / 'report.html').resolve().as_uri()}")


def _minutes_of_training(demo: Demo) -> dict[str, float]:
    """The minutes that the trainings' folders tell, by key of the maps."""
    found = {}
    for key, (stage, data) in demo.trainings.items():
        run = json.loads((demo.artifacts / "runs" / f"{stage}-{data}" / "run.json").read_text())
        found[key] = run["seconds"] / 60
    return found


def _mean_of_the_masks(demo: Demo) -> SummaryRow:
    """The measures of the mean mask that the larger dataset has: models have to beat it."""
    from wsssbed_hub.datasets import open_sod_dataset, open_target
    from wsssbed_hub.evaluation.score import Foreground, MeanMask, score_saliency
    from wsssbed_hub.report.comparison import QUALITY
    from wsssbed_hub.report.summary import SummaryRow

    truth = open_target(TARGET, demo.data).ground_truth("train")
    mean = MeanMask(open_sod_dataset(SOD_DATASETS[-1], demo.data), truth)
    measures = score_saliency(mean, Foreground(truth), measures=QUALITY)
    known = {name: measures[name] for name in ("mae", "max_f", "s_measure")}
    return SummaryRow(name="mean of the masks", **known)


def _picture(demo: Demo) -> bytes:
    """A PNG file: some images with the maps of every model and the ground truth."""
    from wsssbed_hub.datasets import open_target
    from wsssbed_hub.registry.open_artifact import open_artifact
    from wsssbed_hub.report import choose_images, thumbnail_gallery

    target = open_target(TARGET, demo.data)
    maps = {Path(key).name: open_artifact(demo.pulled(key), TARGET) for key in demo.trainings}
    columns = [*maps.items(), ("ground truth", target.ground_truth("train"))]
    chosen = choose_images(target, target.image_ids("train"), IMAGES)
    return thumbnail_gallery(target, columns, chosen, longest=128)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(demo)
