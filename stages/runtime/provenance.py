"""The provenance in a manifest: how an artifact was made."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from stages.runtime import distributed
from wsssbed_hub.artifacts.manifest import Environment, Ingredient, Provenance
from wsssbed_hub.artifacts.stage_command import ARTIFACTS, published_command
from wsssbed_hub.utils.arithmetic import processor, settings_at_work
from wsssbed_hub.utils.settings import data_root

PACKAGES = ("numpy", "pillow", "safetensors", "timm", "torchvision")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def environment(device: torch.device, precision: str, deterministic: bool) -> Environment:
    """This machine and the versions at work on it, for a network on ``device``."""
    gpu = device.type == "cuda"
    return machine().model_copy(
        update={
            "torch": torch.__version__,
            "cuda": torch.version.cuda if gpu else None,
            "gpu": torch.cuda.get_device_name(device) if gpu else None,
            "precision": precision,
            "deterministic": deterministic,
            "processes": distributed.size(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        }
    )


def machine() -> Environment:
    """This machine and the versions at work on it, for a stage without a network."""
    packages = {name: found for name in PACKAGES if (found := _installed(name))}
    return Environment(
        python=platform.python_version(),
        packages=packages,
        processor=processor(),
        settings=settings_at_work(),
    )


def provenance(
    stage: str,
    environment: Environment,
    made_from: Sequence[Ingredient],
    *,
    seed: int | None = None,
    selection: str | None = None,
) -> Provenance:
    """The provenance of what this command makes; the maps' settings become its recipe.

    The image and its digest (``sha256:…``, or ``name@sha256:…``) come from the environment
    variables ``WSSSBED_IMAGE`` and ``WSSSBED_IMAGE_DIGEST``, the commit from ``WSSSBED_COMMIT`` or,
    in a clean checkout, from git.
    """
    return Provenance(
        stage=stage,
        command=["python", "-m", "stages", *_arguments()],
        project_version=version("wsssbed-hub"),
        project_commit=_commit(),
        image=os.environ.get("WSSSBED_IMAGE") or None,
        image_digest=os.environ.get("WSSSBED_IMAGE_DIGEST", "").rpartition("@")[2] or None,
        date=datetime.now(UTC).replace(microsecond=0),
        seed=seed,
        selection=selection,
        environment=environment,
        made_from=list(made_from),
    )


def _arguments() -> list[str]:
    """Those of this command, with the places that a container has: nobody's folders."""
    return published_command(sys.argv[1:], data_root(), Path(ARTIFACTS))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that is at work; None where changes are not committed: then none says it."""
    given = os.environ.get("WSSSBED_COMMIT", "")
    if given:
        return given if _COMMIT.fullmatch(given) else None
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        if _git(root, "status", "--porcelain", "--", "stages", "wsssbed_hub"):
            return None
        found = _git(root, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    return found if _COMMIT.fullmatch(found) else None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
