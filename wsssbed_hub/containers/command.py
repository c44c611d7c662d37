"""A stage in its container: the command lines for Docker, Podman and Apptainer.

All keep the same contract: the caller's user id and no privileges, a read-only root file system,
``/data`` read-only, results in ``/artifacts``, whatever libraries like to keep in ``/cache``,
inputs from elsewhere read-only below ``/inputs``. Nothing is asked of the machine here; ``engines``
does that, and ``mounts`` says what lies where.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsssbed_hub.artifacts.stage_command import ARTIFACTS, CACHE
from wsssbed_hub.utils.errors import UsageError

STOP_SECONDS = 120  # between SIGTERM and SIGKILL: time to end a step and write a checkpoint
ENGINES = ("docker", "podman")
_STAGE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine and where it is in the container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a stage in its image: all that a command line says."""

    stage: str
    image: str
    """What the engine is asked for, by digest or id where one is known."""
    digest: str | None = None
    """What the provenance will say of the image."""
    arguments: tuple[str, ...] = ()
    """As the stage sees them: paths are those in the container."""
    mounts: tuple[Mount, ...] = ()
    user: tuple[int, int] = (0, 0)
    gpus: tuple[str, ...] = ()
    """``("all",)``, or their numbers."""
    shm_size: str = "8g"
    offline: bool = False
    processes: int = 1
    """More than one are started by torchrun."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables that fix the arithmetic (see ``wsssbed_hub.utils.arithmetic``)."""
    terminal: bool = False
    """Whether a person sits before it: progress bars, Ctrl-C."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables beside those of the image."""
        found = {}
        if self.digest:
            found["WSSSBED_IMAGE_DIGEST"] = self.digest
        if self.offline:
            found["HF_HUB_OFFLINE"] = "1"
        if self.processes > 1:  # torchrun's own default, said aloud so that it does not warn
            found["OMP_NUM_THREADS"] = "1"
        return found | dict(self.settings)

    @property
    def program(self) -> list[str]:
        """The words that replace the image's entry point; none if nothing does."""
        if self.processes == 1:
            return []
        return [
            "torchrun",
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            *("--local-addr", "localhost"),  # without a network the host's name leads nowhere
            *("--nproc-per-node", str(self.processes)),
            *("-m", "stages", self.stage),
        ]


def engine_command(engine: str, job: Job) -> list[str]:
    """The ``docker run`` or ``podman run`` that does the job, ready for exec.

    Raises UsageError for an engine that is neither.
    """
    if engine not in ENGINES:
        raise UsageError(f"{engine!r} is no container engine known here: {' or '.join(ENGINES)}.")
    user = ["--user", "{}:{}".format(*job.user)]
    if engine == "podman" and job.user[0] != 0:  # as root podman has no other ids to keep apart
        user = ["--userns", "keep-id", *user]
    command = [engine, "run", "--rm", "--init", "--pull", "never"]
    command += ["--interactive", "--tty"] if job.terminal else []
    command += [*user, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    command += ["--security-opt", "no-new-privileges", "--shm-size", job.shm_size]
    command += ["--stop-timeout", str(STOP_SECONDS)]
    command += ["--network", "none"] if job.offline else []
    command += _gpu_options(engine, job.gpus)
    for mount in job.mounts:
        command += ["--mount", _mount_option(mount)]
    for name, value in job.environment.items():
        command += ["--env", f"{name}={value}"]
    program = job.program
    command += ["--entrypoint", program[0]] if program else []
    return [*command, job.image, *program[1:], *job.arguments]


def apptainer_command(job: Job) -> list[str]:
    """The ``apptainer run`` that does the same on a cluster.

    Apptainer runs as the caller anyway, and its images are read-only; the caches, which are HOME in
    the container, are bound as such. Raises UsageError for a path that ``--bind`` cannot hold.
    """
    program = job.program
    command = ["apptainer", "exec" if program else "run", "--containall", "--writable-tmpfs"]
    command += ["--nv"] if job.gpus else []
    command += ["--net", "--network", "none"] if job.offline else []
    command += ["--pwd", ARTIFACTS, "--bind", "/dev/shm"]
    for mount in job.mounts:
        pair = f"{mount.source}:{mount.target}"
        if set(":,") & set(str(mount.source)):
            raise UsageError(f"{mount.source}: Apptainer takes no path with a colon or a comma.")
        if mount.target == CACHE:
            command += ["--home", pair]
        else:
            command += ["--bind", f"{pair}:ro" if mount.read_only else pair]
    environment = dict(job.environment)
    if job.gpus and job.gpus != ("all",):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
    for name, value in environment.items():
        command += ["--env", f"{name}={value}"]
    return [*command, _apptainer_image(job.image), *program, *job.arguments]


def default_image(stage: str, repository: str, version: str) -> str:
    """``wsssbed/sod-poolnet:0.1.0``. Raises UsageError for what cannot be a stage."""
    if not _STAGE.fullmatch(stage):
        raise UsageError(f"{stage!r} is not a stage. Stages are named like sod-poolnet.")
    return f"{repository.rstrip('/')}/{stage}:{version}"


def without_tag(image: str) -> str:
    """``host:5000/wsssbed/x`` of ``host:5000/wsssbed/x:1.0`` or ``…@sha256:…``."""
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def shell(command: Sequence[str]) -> str:
    """The command for a shell, one option a line; a person can copy and paste it."""
    first, *rest = command
    lines = [[first]]
    for number, word in enumerate(rest):
        follows = number > 0 and rest[number - 1].startswith("--") and not word.startswith("-")
        if word.startswith("--") or not (follows or number == 0):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(words) for words in lines if words)


def _gpu_options(engine: str, gpus: Sequence[str]) -> list[str]:
    if not gpus:
        return []
    if engine == "podman":
        devices = [word for gpu in gpus for word in ("--device", f"nvidia.com/gpu={gpu}")]
        return [*devices, "--security-opt", "label=disable"]
    if list(gpus) == ["all"]:
        return ["--gpus", "all"]
    return ["--gpus", f'"device={",".join(gpus)}"']  # the quotes are for docker, which reads CSV


def _mount_option(mount: Mount) -> str:
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    if mount.read_only:
        fields.append("readonly")
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(fields)
    return text.getvalue()


def _apptainer_image(image: str) -> str:
    known = image.endswith(".sif") or "://" in image or image.startswith("docker-daemon:")
    return image if known else f"docker://{image}"
