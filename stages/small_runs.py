"""A few steps of every stage on ``shapes``: what checks of the images and of GPUs run.

Which arguments a stage needs follows from its family, so that a new stage is checked unasked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from stages.runtime.catalogue import Stage, all_stages
from wsssbed_hub.artifacts.key_folder import MANIFEST, read_manifest
from wsssbed_hub.artifacts.manifest import Entry
from wsssbed_hub.containers.command import Job, default_image, engine_command
from wsssbed_hub.containers.engines import caller, need_image
from wsssbed_hub.containers.mounts import resolve
from wsssbed_hub.utils.errors import HubError, UsageError

REPOSITORY = os.environ.get("WSSSBED_IMAGES", "wsssbed")
ORDER = ("sod", "cam", "pseudo", "seg")  # what is made before it can be used; others come last
TARGET = "shapes"
STEPS, LIMIT, BATCH = 3, 6, 2
NEEDS = {"cam": ("sal",), "pseudo": ("sal", "cam"), "seg": ("label",)}
_OPTIONS = {"sal": "--sal", "cam": "--cam", "label": "--labels"}

Made = dict[str, Path]
"""The first key folder of each kind, for the stages that need one."""


@dataclass(frozen=True)
class SmallRun:
    """One stage and its arguments, without ``--data-root`` and ``--out``."""

    stage: str
    arguments: tuple[str, ...]


def in_order(names: Sequence[str] = ()) -> list[Stage]:
    """The stages of these names and all before them that they need; all if none is named."""
    stages = sorted(all_stages().values(), key=lambda stage: (_place(stage), stage.name))
    unknown = sorted(set(names) - {stage.name for stage in stages})
    if unknown:
        raise UsageError(f"There is no stage {unknown[0]!r}. `python -m stages` lists them.")
    last = max((_place(stage) for stage in stages if stage.name in names), default=0)
    return [stage for stage in stages if not names or stage.name in names or _place(stage) < last]


def small_run(stage: Stage, made: Made, extra: Sequence[str] = ()) -> SmallRun:
    """The smallest run of a stage that trains and writes; ``extra`` goes to those that train."""
    family = _family(stage)
    arguments = ["--target", TARGET, "--limit", str(LIMIT)]
    if family != "pseudo":
        arguments += ["--recipe", "shapes", "--workers", "1", *_random(stage)]
        arguments += ["--steps", str(STEPS), "--batch-size", str(BATCH), *extra]
    if family not in NEEDS:
        arguments += ["--data", "shapes-small"]
    for kind in NEEDS.get(family, ()):
        if family != "cam" or stage.load()[1].needs_saliency:
            arguments += [_OPTIONS[kind], str(made[kind])]
    return SmallRun(stage.name, tuple(arguments))


def _random(stage: Stage) -> Iterator[str]:
    """Every network of the stage starts from nothing."""
    names = stage.load()[1].initial
    for name in names if len(names) > 1 else [None]:
        yield from ("--init", f"{name}=random" if name else "random")


def run_all(
    names: Sequence[str],
    out: Path,
    execute: Callable[[SmallRun, Path], None],
    extra: Sequence[str] = (),
) -> Iterator[tuple[str, dict[str, Entry]]]:
    """Runs stage after stage into ``out``; yields the stage and what it made, by key.

    ``execute`` runs one with its artifacts below the given folder, or raises HubError.
    """
    made: Made = {}
    for stage in in_order(names):
        execute(small_run(stage, made, extra), out / stage.name)
        entries = made_in(out / stage.name)
        for key in entries:
            made.setdefault(key.partition("/")[0], out / stage.name / key)
        yield stage.name, entries


def made_in(out: Path) -> dict[str, Entry]:
    """Entries of the artifacts below an ``--out`` folder, by key. Raises HubError for none."""
    folders = sorted(path.parent for path in out.glob(f"*/*/{MANIFEST}"))
    if not folders:
        raise HubError(f"The stage ended well and left no artifact in {out}.")
    manifests = [read_manifest(folder) for folder in folders]
    return {manifest.key: manifest.choose(TARGET).entry for manifest in manifests}


def outside(data_root: Path, *, threads: int | None = None) -> Callable[[SmallRun, Path], None]:
    """Runs a stage with this Python, on ``threads`` threads (what torch likes, if none is said)."""

    def execute(run: SmallRun, out: Path) -> None:
        command = [sys.executable, "-m", "stages", run.stage, *run.arguments]
        command += ["--data-root", str(data_root), "--out", str(out)]
        number = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        run_command(run.stage, command, os.environ | number)

    return execute


def contained(
    engine: str,
    data_root: Path,
    cache: Path,
    *,
    user: tuple[int, int] | None = None,
    gpus: tuple[str, ...] = (),
) -> Callable[[SmallRun, Path], None]:
    """Runs a stage in its image, without a network, by default as the caller.

    ``user`` is for checks that run as root: what is written then belongs to that user.
    """

    def execute(run: SmallRun, out: Path) -> None:
        command = engine_command(
            engine, container_job(engine, run, data_root, out, cache, user=user, gpus=gpus)
        )
        run_command(run.stage, command)

    return execute


def container_job(
    engine: str,
    run: SmallRun,
    data_root: Path,
    out: Path,
    cache: Path,
    *,
    user: tuple[int, int] | None = None,
    gpus: tuple[str, ...] = (),
) -> Job:
    """The job that ``contained`` runs. Raises HubError if the stage has no image here."""

    def no_keys(key: str, target: str) -> Path:
        raise UsageError(f"{key}: small runs are made from folders.")

    image = need_image(engine, default_image(run.stage, REPOSITORY, version("wsssbed-hub")))
    resolved = resolve(run.arguments, data_root=data_root, out=out, cache=cache, fetch=no_keys)
    for folder in resolved.folders:
        folder.mkdir(parents=True, exist_ok=True)
        if user is not None:
            os.chown(folder, *user)
    return Job(
        stage=run.stage,
        image=image.reference,
        digest=image.digest,
        arguments=resolved.arguments,
        mounts=resolved.mounts,
        user=user or caller(engine),
        gpus=gpus,
        offline=True,
    )


def run_command(
    what: str, command: Sequence[str], environment: dict[str, str] | None = None
) -> None:
    """Runs a command. Raises HubError with the end of what it said, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise HubError(f"{what} ended with exit code {done.returncode}:\n{said}")


def _family(stage: Stage) -> str:
    return stage.family.rpartition(".")[2]


def _place(stage: Stage) -> int:
    family = _family(stage)
    return ORDER.index(family) if family in ORDER else len(ORDER)
