"""demo: the whole benchmark on a synthetic dataset, as the commands that a person would type.

Each is printed, then run. All of them can be interrupted and repeated, so the demo can: what is
done is found done. The zoo is the demo with every stage that there is.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from wsssbed_hub.cli.demo_plan import (
    CAM_METHOD,
    DEEPLAB,
    FULL,
    POOLNET,
    QUICK,
    SSNET,
    ActivationMethod,
    Demo,
    SaliencyModel,
)
from wsssbed_hub.utils.arithmetic import portable_settings
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.utils.options import refuse

ALWAYS = (POOLNET.stage, CAM_METHOD.stage, DEEPLAB)


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
        if step.output:
            step.output.parent.mkdir(exist_ok=True)
        with open(step.output, "w") if step.output else nullcontext() as out:
            code = subprocess.run(step.argv, env=environment, stdout=out, check=False).returncode
        if code != 0:
            raise HubError(
                f"Step {number} of the demo ({step.title}) ended with exit code {code}. What is "
                "done is kept: run the demo again to go on from here."
            )
    return None if resumed else (time.monotonic() - begin) / 60


def stage_keys() -> dict[str, str]:
    """The stages that make saliency maps, activation maps or networks, as their program tells.

    By name the key of what they make, with ``{data}``, ``{sal}`` or ``{labels}`` for what they are
    trained on. Raises HubError if the program does not run.
    """
    command = [sys.executable, "-m", "stages", "keys"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().removeprefix("error: ") or "`python -m stages` does not run."
        raise HubError(said)
    return json.loads(done.stdout)


def more_stages(wanted: Sequence[str], *, all_of_them: bool) -> dict[str, str]:
    """The stages that come beside those of every demo, and the keys of what they make.

    Raises UsageError for what is no such stage; HubError if the stages' program does not run.
    """
    for name in wanted:
        if name in ALWAYS:
            raise UsageError(f"--with {name}: it is a part of every demo.")
    if not wanted and not all_of_them:
        return {}
    known = {name: key for name, key in stage_keys().items() if name not in ALWAYS}
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"--with {name}: it is no stage that can be added."
                f"{did_you_mean(name, [*known, SSNET])} Those are {', '.join([*known, SSNET])}."
            )
    return known if all_of_them else {name: known[name] for name in wanted}


def plan(folder: Path, stages: dict[str, str], **how: object) -> Demo:
    """The demo with further stages, each where the key of what it makes says that it belongs."""

    def making(kind: str) -> list[tuple[str, str]]:
        return [(name, key) for name, key in stages.items() if key.startswith(f"{kind}/")]

    return Demo(
        folder,
        models=[SaliencyModel(*pair) for pair in making("sal")],
        methods=[ActivationMethod(*pair) for pair in making("cam")],
        networks=[name for name, _ in making("weights")],
        **how,  # type: ignore[arg-type]
    )


def demo(
    context: typer.Context,
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
            help="Another saliency model, activation method or network beside PoolNet, CAM and "
            "DeepLab-V2, or ssnet; repeatable.",
            metavar="STAGE",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="With every stage that there is, but ssnet: the zoo.")
    ] = False,
    without_segmentation: Annotated[
        bool,
        typer.Option(
            "--without-segmentation", help="Measure the labels, and train nothing on them."
        ),
    ] = False,
    labels_of: Annotated[
        list[str] | None,
        typer.Option(
            help="Saliency maps of whose labels with CAM networks learn; repeatable.",
            metavar="KEY",
            show_default="both of PoolNet's",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Train each network once for each of these, as in 0,1,2.",
            show_default="that of --seed",
        ),
    ] = None,
) -> None:
    """Run the whole benchmark on a synthetic dataset, from images to mIoU, with a report.

    It needs the extra `stages` and about 10 minutes on two cores, a few more with each stage.
    Stopped, it goes on where it was.
    """
    if without_segmentation:
        refuse(context, ["labels_of", "seeds"], "With --without-segmentation no network learns")
    wanted = list(dict.fromkeys(extra or ()))
    stages = more_stages([one for one in wanted if one != SSNET], all_of_them=everything)
    todo = plan(
        to,
        stages,
        scale=QUICK if quick else FULL,
        seed=seed,
        ssnet=SSNET in wanted,
        segmentation=not without_segmentation,
        labels_of=tuple(labels_of or POOLNET.trained_on),
        seeds=_numbers(seeds),
    )
    for key in todo.labels_of:
        if key not in todo.trainings:
            near = did_you_mean(key, todo.trainings)
            made = ", ".join(todo.trainings)
            raise UsageError(f"--labels-of {key}: no such maps are made.{near} There are {made}.")
    minutes = run(todo, say=typer.echo)
    words = ["wsssbed-hub", "demo"] + (["--seed", str(seed)] if seed else [])
    words += ["--quick"] if quick else []
    words += ["--all"] if everything else []
    words += ["--without-segmentation"] if without_segmentation else []
    words += [word for name in wanted for word in ("--with", name)]
    words += [word for key in labels_of or () for word in ("--labels-of", key)]
    words += ["--seeds", seeds] if seeds else []
    _finish(todo, shlex.join(words), minutes)


def _numbers(seeds: str | None) -> tuple[int, ...]:
    """``0,1,2``. Raises UsageError for anything else."""
    parts = seeds.split(",") if seeds else []
    if not all(part.isdecimal() for part in parts) or len({*parts}) != len(parts):
        raise UsageError(f"--seeds {seeds}: give different numbers, separated by commas: 0,1,2.")
    return tuple(map(int, parts))


def _finish(demo: Demo, command: str, minutes: float | None) -> None:
    """Print the tables; write ``summary.json`` and ``maps.png`` beside the report."""
    from rich.console import Console

    from wsssbed_hub.cli.demo_results import picture, read_report, summary_of
    from wsssbed_hub.report import terminal_table
    from wsssbed_hub.utils.files import write_whole

    Console().print(terminal_table(read_report(demo)))
    write_whole(demo.folder / "summary.json", summary_of(demo, command, minutes).dump().encode())
    write_whole(demo.folder / "maps.png", picture(demo))
    time = "" if minutes is None else f" in {minutes:.0f} minutes"
    typer.echo(f"\nDone{time}. The report: {(demo.folder / 'report.html').resolve().as_uri()}")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(demo)
