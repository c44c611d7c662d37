"""Container engines: which one is here, what it says of an image, and whether there is a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsssbed_hub.containers.command import ENGINES, without_tag
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean

_PATIENCE = 60  # seconds that an engine may take to answer a question
_CDI = (Path("/etc/cdi"), Path("/var/run/cdi"))
STAGE_LABEL = "wsssbed.stage"


class LocalImage(NamedTuple):
    """An image that is here: a name that means exactly it, and what pins it."""

    reference: str
    """``name@sha256:…`` if it came from or went to a registry, else its local id."""
    digest: str
    """``sha256:…`` of that."""

    @property
    def published(self) -> bool:
        """Whether a registry knows it by this digest."""
        return "@" in self.reference


def find_engine(wanted: str | None = None) -> str:
    """The engine that ``wanted`` names, else the first of docker and podman that is installed.

    Raises HubError if there is none, or if it does not answer.
    """
    if wanted is not None and wanted not in ENGINES:
        raise UsageError(f"--engine {wanted}: choose {' or '.join(ENGINES)}.")
    found = [engine for engine in (wanted or "", *ENGINES) if engine and shutil.which(engine)]
    if not found or (wanted and found[0] != wanted):
        raise HubError(
            f"{wanted or 'Neither docker nor podman'} is {'not ' if wanted else ''}installed. "
            "Install one (https://docs.docker.com/engine/install/), or run the stage without a "
            "container: pip install 'wsssbed-hub[stages]', then python -m stages STAGE …"
        )
    answer = _ask(found[0], "ps", "--quiet")
    if answer.returncode != 0:
        raise HubError(_silent(found[0], answer.stderr))
    return found[0]


def _silent(engine: str, said: str) -> str:
    line = next((line for line in said.splitlines() if "ermission denied" in line), "")
    if line:
        return (
            f"{engine} lets this user in no further: {line.strip()[:300]}. Join the group `docker` "
            "(sudo usermod -aG docker $USER, then log in anew), or use --engine podman."
        )
    return (
        f"{engine} is installed, but its daemon does not answer. Start it: sudo systemctl start "
        f"{engine} (or open Docker Desktop)."
    )


def rootless(engine: str) -> bool:
    """Whether the daemon runs as the user, whom root in a container then stands for."""
    if engine != "docker":
        return False
    return "rootless" in _ask(engine, "info", "--format", "{{.SecurityOptions}}").stdout


def caller(engine: str | None) -> tuple[int, int]:
    """User and group for ``--user``, so that what is written belongs to the caller."""
    return (0, 0) if engine and rootless(engine) else (os.getuid(), os.getgid())


def find_image(engine: str, reference: str) -> LocalImage | None:
    """The image that the engine has under a name, a digest or an id; None if it has none."""
    answer = _ask(engine, "image", "inspect", reference)
    if answer.returncode != 0:
        return None
    found: Mapping[str, Any] = json.loads(answer.stdout)[0]
    names = found.get("RepoDigests") or []
    same = [name for name in names if _repository(name) == _repository(reference)]
    if "@" in reference and reference in names:
        same = [reference]
    elif engine == "podman" and without_tag(reference).startswith("localhost/"):
        same = []  # a digest of podman's own, of an image that was never in a registry
    if same:
        return LocalImage(same[0], same[0].partition("@")[2])
    digest = "sha256:" + str(found["Id"]).removeprefix("sha256:")
    return LocalImage(digest, digest)


def _repository(image: str) -> str:
    return without_tag(image).removeprefix("docker.io/")


def need_image(engine: str, reference: str) -> LocalImage:
    """As ``find_image``. Raises HubError for an image that is not here, naming what is."""
    found = find_image(engine, reference)
    if found is not None:
        return found
    have = stages_here(engine)
    stage = without_tag(reference).rpartition("/")[2]
    listed = f" Stages whose images are here: {', '.join(have)}." if have else ""
    raise HubError(
        f"There is no image {reference} here.{did_you_mean(stage, have)}{listed} Build it in a "
        f"checkout with `make image-{stage}`, fetch it with `{engine} pull {reference}`, or name "
        "another with --image."
    )


def pull_image(engine: str, reference: str) -> bool:
    """Let the engine fetch an image, with its own progress on stderr; False if it cannot."""
    done = subprocess.run([engine, "pull", reference], stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def stages_here(engine: str) -> list[str]:
    """Stages whose images the engine has."""
    label = f'{{{{index .Labels "{STAGE_LABEL}"}}}}' if engine == "podman" else "{{.Repository}}"
    answer = _ask(engine, "image", "ls", "--filter", f"label={STAGE_LABEL}", "--format", label)
    names = (line.rpartition("/")[2] for line in answer.stdout.splitlines())
    return sorted({name for name in names if name and "<" not in name})


def find_gpus(wanted: str, engine: str | None, *, elsewhere: bool = False) -> tuple[str, ...]:
    """GPUs for a job: ``auto`` (all there are), ``all``, ``none``, or numbers such as ``0,1``.

    A job that runs ``elsewhere``, on a node of a cluster, gets what it asks for unseen.
    Raises HubError for GPUs that are not there, or that podman has not been told of.
    """
    if wanted == "none":
        return ()
    numbers = tuple(wanted.split(","))
    if wanted not in ("auto", "all") and not all(number.isdigit() for number in numbers):
        raise UsageError(f"--gpus {wanted}: say auto, all, none, or numbers such as 0,1.")
    if elsewhere:
        return ("all",) if wanted in ("auto", "all") else numbers
    here = _count_gpus()
    if not here and wanted == "auto":
        return ()
    asked = [int(number) for number in numbers if number.isdigit()]
    if not here or max(asked, default=0) >= here:
        raise HubError(
            f"--gpus {wanted}: nvidia-smi lists {here} GPUs here (numbers from 0). Without one, "
            "say --gpus none."
        )
    if engine == "podman" and not any(any(folder.glob("*.*")) for folder in _CDI):
        raise HubError(
            "podman has not been told of the GPUs. Install the NVIDIA container toolkit and run: "
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        )
    return ("all",) if not asked else numbers


def _count_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        answer = _run(["nvidia-smi", "-L"])
    except HubError:
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def _ask(engine: str, *question: str) -> subprocess.CompletedProcess[str]:
    return _run([engine, *question])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise HubError(
            f"`{' '.join(command[:3])}` did not answer within {_PATIENCE} s. Is its daemon well?"
        ) from None
