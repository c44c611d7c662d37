"""Stages in containers: run one, and run one again to compare."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsssbed_hub.cli.options import DATA_ROOT, AsJson, Registry, Target
from wsssbed_hub.cli.output import print_table
from wsssbed_hub.utils.options import refuse

if TYPE_CHECKING:
    from wsssbed_hub.containers.command import Job
    from wsssbed_hub.containers.mounts import Resolved
    from wsssbed_hub.evaluation.differences import ArtifactDifference

Engine = Annotated[
    str | None, typer.Option(help="docker or podman.", show_default="what is installed")
]
Gpus = Annotated[str, typer.Option(help="auto (all there are), all, none, or numbers: 0,1.")]
ShmSize = Annotated[str, typer.Option(help="Shared memory, which processes load images through.")]
Offline = Annotated[bool, typer.Option("--offline", help="No network in the container.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder for pretrained backbones.", show_default="in the cache"),
]
Repository = Annotated[
    str, typer.Option(envvar="WSSSBED_IMAGES", help="Where images come from, before /STAGE.")
]
Processes = Annotated[
    int, typer.Option(min=1, help="Started by torchrun; with GPUs, one for each of them.")
]


def run(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="Which stage, such as sod-poolnet.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="The stage's own options, with paths of this machine."),
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command only.")] = False,
    apptainer: Annotated[
        bool, typer.Option("--apptainer", help="Print the Apptainer command only, for clusters.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(help="Another image.", show_default="REPOSITORY/STAGE:VERSION"),
    ] = None,
    repository: Repository = "wsssbed",
    engine: Engine = None,
    gpus: Gpus = "auto",
    processes: Processes = 1,
    shm_size: ShmSize = "8g",
    cache: Cache = None,
    offline: Offline = False,
    registry: Registry = None,
) -> None:
    """Run a stage in its container, with the same arguments as outside of one.

    Options of this command stand before STAGE, the stage's behind it. Datasets are below the
    stage's --data-root (else $WSSSBED_DATA, else /data), artifacts go to its --out (else
    ./artifacts), which belong to you; keys are pulled from the registry. The container command is
    printed first. Example: wsssbed-hub run --gpus 0 sod-poolnet --data duts --data-root ~/data
    """
    from importlib.metadata import version

    from wsssbed_hub.containers.command import (
        apptainer_command,
        default_image,
        engine_command,
        shell,
    )

    resolved = _resolved(arguments or [], registry, cache)
    reference = image or default_image(stage, repository, version("wsssbed-hub"))
    looking = only_print or apptainer
    if apptainer:
        refuse(context, ["shm_size"], "Apptainer has the shared memory of the machine")
    if image is not None:
        refuse(context, ["repository"], "--image names the image")
    found = _engine(engine, apptainer, looking)
    job = _job(stage, reference, resolved, found, gpus, looking=looking, elsewhere=apptainer)
    job = _replaced(
        job, shm_size=shm_size, offline=offline, processes=processes, terminal=_terminal(looking)
    )
    if apptainer and job.image.startswith("sha256:"):
        job = _replaced(job, image=f"docker-daemon:{reference}")  # never pushed: only docker has it
    found = found or engine or "docker"
    command = apptainer_command(job) if apptainer else engine_command(found, job)
    folders = [str(folder) for folder in resolved.folders if not folder.exists()]
    prepare = f"{shlex.join(['mkdir', '-p', *folders])}\n" if folders else ""
    typer.echo(prepare + shell(command), err=not looking)
    if looking:
        return
    for folder in resolved.folders:
        folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)  # signals and the exit code are the container's own


def reproduce(
    key: Annotated[str, typer.Argument(help="KEY or KEY@VERSION.")],
    target: Target = None,
    registry: Registry = None,
    data_root: Annotated[
        Path, typer.Option(envvar="WSSSBED_DATA", help="Folder with the datasets.")
    ] = DATA_ROOT,
    inputs: Annotated[
        Path | None, typer.Option(help="Folder with files that the command was given.")
    ] = None,
    to: Annotated[
        Path, typer.Option(help="Folder for what is made; an interrupted run goes on there.")
    ] = Path("reproduced"),
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of pixels that may differ by more than one level of 255."
        ),
    ] = 0.001,
    worst: Annotated[int, typer.Option(min=0, help="List so many images that differ most.")] = 5,
    repository: Annotated[
        str | None, typer.Option(envvar="WSSSBED_IMAGES", help="Where the image is pulled from.")
    ] = None,
    engine: Engine = None,
    gpus: Gpus = "auto",
    shm_size: ShmSize = "8g",
    cache: Cache = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Make an artifact again: same image, same command, then compare.

    Ends with 0 if the result is equal (same content digest) or within the tolerance, and with 1 if
    it is different.
    """
    import json

    from wsssbed_hub.containers.command import engine_command, shell
    from wsssbed_hub.containers.engines import find_engine
    from wsssbed_hub.containers.reproduce import (
        compare_with_published,
        find_published,
        locate_image,
        stage_arguments,
    )
    from wsssbed_hub.utils.errors import HubError

    published = find_published(key, target, registry)
    found = find_engine(engine)
    image = locate_image(published, found, repository)
    resolved = _resolved(
        [
            *stage_arguments(published, inputs),
            *("--data-root", str(data_root), "--out", str(to)),
        ],
        registry,
        cache,
    )
    job = _job(published.provenance.stage, image.reference, resolved, found, gpus)
    job = _replaced(
        job,
        shm_size=shm_size,
        offline=offline,
        processes=published.provenance.environment.processes,
        settings=published.settings,
        terminal=_terminal(looking=False),
    )
    for folder in resolved.folders:
        folder.mkdir(parents=True, exist_ok=True)
    typer.echo(published.circumstances(gpus=bool(job.gpus)), err=True)
    command = engine_command(found, job)
    typer.echo(shell(command), err=True)
    _run_to_the_end(command)
    comparison = compare_with_published(published, to)
    if as_json:
        typer.echo(json.dumps(comparison.as_json(tolerance, worst), indent=2))
    else:
        _print(comparison, tolerance, worst)
    if comparison.verdict(tolerance) == "different":
        raise HubError(f"{key} was not reproduced. What was made is in {to}.")


def _resolved(arguments: list[str], registry: str | None, cache: Path | None) -> Resolved:
    from wsssbed_hub.containers.mounts import resolve
    from wsssbed_hub.registry.pull import pull
    from wsssbed_hub.utils import settings

    return resolve(
        arguments,
        data_root=settings.data_root(),
        out=Path("artifacts"),
        cache=cache or settings.cache_folder() / "stages",
        fetch=lambda key, target: pull(key, target, registry=registry),
    )


def _engine(wanted: str | None, apptainer: bool, looking: bool) -> str | None:
    """The engine to use; without one a command can still be printed."""
    from wsssbed_hub.containers.engines import find_engine
    from wsssbed_hub.utils.errors import HubError, UsageError

    try:
        return find_engine(wanted)
    except UsageError:
        raise
    except HubError as error:
        if not looking:
            raise
        if not apptainer:
            typer.echo(f"note: {error}", err=True)
        return None


def _job(
    stage: str,
    reference: str,
    resolved: Resolved,
    engine: str | None,
    gpus: str,
    *,
    looking: bool = False,
    elsewhere: bool = False,
) -> Job:
    from wsssbed_hub.containers.command import Job
    from wsssbed_hub.containers.engines import caller, find_gpus, find_image, need_image

    pinned = None
    if engine is not None:
        pinned = find_image(engine, reference) if looking else need_image(engine, reference)
    if pinned is None:
        typer.echo(f"note: {reference} is not here, so that no digest pins it.", err=True)
    job = Job(
        stage=stage,
        image=pinned.reference if pinned else reference,
        digest=pinned.digest if pinned else None,
        arguments=resolved.arguments,
        mounts=resolved.mounts,
        user=caller(engine),
        gpus=find_gpus(gpus, engine, elsewhere=elsewhere),
    )
    if gpus == "auto" and not elsewhere:
        typer.echo(f"note: {'all GPUs' if job.gpus else 'no GPU here, so none'}", err=True)
    return job


def _replaced(job: Job, **changes: object) -> Job:
    from dataclasses import replace

    return replace(job, **changes)  # type: ignore[arg-type]


def _terminal(looking: bool) -> bool:
    return not looking and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _run_to_the_end(command: list[str]) -> None:
    import subprocess

    from wsssbed_hub.utils.errors import HubError

    code = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if code != 0:
        raise HubError(f"The container ended with exit code {code}; what it said is above.")


def _print(comparison: ArtifactDifference, tolerance: float, worst: int) -> None:
    typer.echo(comparison.sentence(tolerance))
    rows = comparison.rows(worst)
    if rows:
        print_table(rows, as_json=False)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    behind = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    app.command(context_settings=behind)(run)
    app.command()(reproduce)
