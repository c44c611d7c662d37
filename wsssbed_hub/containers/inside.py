"""A stage that runs in its image: whether it was given the folders that it reads and writes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from wsssbed_hub.artifacts.stage_command import ARTIFACTS, DATA, parse
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.settings import data_root

_MOUNTS = Path("/proc/self/mountinfo")
# The digest that a registry knows the image by; of one that never was in any, its id.
_DIGEST = "{{with .RepoDigests}}{{index . 0}}{{else}}{{.Id}}{{end}}"


def require_mounts(stage: str, arguments: Sequence[str], *, mounts: Path = _MOUNTS) -> None:
    """Raises UsageError if a stage in its image has nothing at ``/data`` or at ``/artifacts``.

    The first would be found out soon, the second when hours of work went with the container. The
    error gives the command with both. ``mounts`` is what the kernel says of this process. Outside
    of an image, for ``--help``, and where the arguments name other folders nothing is required.
    """
    image = os.environ.get("WSSSBED_IMAGE")
    if not image or "--help" in arguments or "-h" in arguments:
        return
    given = {part.option for part in parse(arguments)}
    there = _mount_points(mounts)
    missing = []
    if "--data-root" not in given and not _has_data(data_root(), there):
        missing.append(DATA)
    if "--out" not in given and not _mounted(Path(ARTIFACTS), there):
        missing.append(ARTIFACTS)
    if missing:
        raise UsageError(
            f"Nothing is mounted at {' and '.join(missing)} in this container: datasets are read "
            f"from {DATA}, and what is made in {ARTIFACTS} stays only if that is a folder of "
            f"yours. In full:\n\n{_command(image, arguments)}\n\n"
            f"(without --gpus all on a machine without a GPU). `wsssbed-hub run {stage} …` writes "
            "it for you; --help tells the options of the stage."
        )


def _has_data(folder: Path, there: Collection[Path]) -> bool:
    """Whether something is mounted there, or the image was given data of its own."""
    return _mounted(folder, there) or (folder.is_dir() and any(folder.iterdir()))


def _mounted(folder: Path, there: Collection[Path]) -> bool:
    """Whether ``folder`` is on a mount of its own, or something below it is."""
    return any(
        point.is_relative_to(folder) or (folder.is_relative_to(point) and point != Path("/"))
        for point in there
    )


def _mount_points(mounts: Path) -> list[Path]:
    """The fifth field of each line; a space in it is written \\040."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return []
    fields = (line.split()[4] for line in lines)
    return [Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), one)) for one in fields]


def _command(image: str, arguments: Sequence[str]) -> str:
    lines = [
        "docker run --rm --init --gpus all --user $(id -u):$(id -g) --shm-size 8g",
        '-v "$PWD/data:/data:ro" -v "$PWD/artifacts:/artifacts" -v "$PWD/cache:/cache"',
        f"-e WSSSBED_IMAGE_DIGEST=$(docker image inspect -f '{_DIGEST}' {shlex.quote(image)})",
        f"{shlex.quote(image)} {shlex.join(arguments)}".rstrip(),
    ]
    return "mkdir -p artifacts cache\n" + " \\\n  ".join(lines)
