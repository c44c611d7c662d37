"""What of this machine a stage gets to see: its command line, rewritten for the container.

The arguments are those of the same command outside a container. ``--data-root`` and ``--out``
become ``/data`` and ``/artifacts``; a path in them becomes the one in the container; anything else
that an argument names is mounted read-only below ``/inputs``, in a folder of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsssbed_hub.artifacts.keys import names_artifact
from wsssbed_hub.containers.command import ARTIFACTS, CACHE, DATA, INPUTS, Mount
from wsssbed_hub.utils.errors import HubError, UsageError

MAPS_OPTIONS = ("--sal", "--cam", "--labels")  # a key, a path, or a word of the stage's own
FILE_OPTIONS = ("--weights", "--init")  # a path, or a word of the stage's own
ROOT_OPTIONS = ("--data-root", "--out")
_PATH_BEGINS = ("/", "./", "../", "~")
_DEPTH = 3  # of a data root: /data/VOCdevkit/VOC2012/JPEGImages
_MOST_LINKS = 64
_SYSTEM = {
    *("artifacts", "bin", "boot", "cache", "dev", "etc", "inputs", "lib", "lib64", "proc", "run"),
    *("sbin", "sys", "usr"),
}
_IN_USE = {"/", "/opt", "/opt/venv", "/opt/wsssbed", "/root", "/tmp", "/var"}

Fetch = Callable[[str, str], Path]
"""A key and a target to the key folder of the maps, whole and verified."""


@dataclass(frozen=True)
class Placed:
    """A stage's arguments as it will see them, and what has to be mounted for that."""

    arguments: tuple[str, ...]
    mounts: tuple[Mount, ...]
    folders: tuple[Path, ...]
    """Have to be there beforehand: an engine would make them, and they would belong to root."""


def place(
    arguments: Sequence[str], *, data_root: Path, out: Path, cache: Path, fetch: Fetch
) -> Placed:
    """Rewrite the arguments of a stage. ``data_root`` and ``out`` are for when they name none.

    Raises HubError for a path that is not there, UsageError for an option without its value.
    """
    pairs = list(_pairs(arguments))
    given = {option: value for option, value in pairs if option is not None}
    roots = {DATA: Path(given.get("--data-root") or data_root).expanduser().resolve()}
    roots[ARTIFACTS] = Path(given.get("--out") or out).expanduser().resolve()
    if not roots[DATA].is_dir():
        raise HubError(
            f"There is no folder {roots[DATA]}. Name the one with the datasets with --data-root."
        )
    cache = cache.expanduser().resolve()
    inputs: dict[Path, str] = {}
    rewritten: list[str] = []
    for option, value in pairs:
        if option in ROOT_OPTIONS:
            continue
        rewritten += [option] if option is not None else []
        if value is None:
            continue
        path = _path_in(option, value, given.get("--target") or "voc12", fetch)
        rewritten.append(value if path is None else _inside(path, roots, inputs))
    mounts = (
        Mount(roots[DATA], DATA),
        *_linked_outside(roots[DATA]),
        Mount(roots[ARTIFACTS], ARTIFACTS, read_only=False),
        Mount(cache, CACHE, read_only=False),
        *(Mount(source, target) for source, target in inputs.items()),
    )
    return Placed(tuple(rewritten), mounts, (roots[ARTIFACTS], cache))


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    """(option, value) of each argument: an option alone has no value, a value alone no option."""
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("--"):
            yield None, word
        elif equals:
            yield option, value
        elif option in (*MAPS_OPTIONS, *FILE_OPTIONS, *ROOT_OPTIONS, "--target"):
            following = next(words, None)
            if following is None:
                raise UsageError(f"{option} needs a value.")
            yield option, following
        else:
            yield option, None


def _path_in(option: str | None, value: str, target: str, fetch: Fetch) -> Path | None:
    """The path on this machine that a value means; None if it means none."""
    if option in MAPS_OPTIONS and names_artifact(value):
        return fetch(value, target).resolve()
    named = value.startswith(_PATH_BEGINS)
    path = Path(value).expanduser()
    if path.exists() and (named or option in (*MAPS_OPTIONS, *FILE_OPTIONS)):
        return path.resolve()
    if named or (option in FILE_OPTIONS and "/" in value):
        raise HubError(f"{option or 'argument'} {value}: there is no such file or folder.")
    return None


def _inside(path: Path, roots: dict[str, Path], inputs: dict[Path, str]) -> str:
    for target, root in roots.items():
        if path.is_relative_to(root):
            return str(Path(target) / path.relative_to(root))
    if path not in inputs:
        inputs[path] = f"{INPUTS}/{len(inputs) + 1}/{path.name}"
    return inputs[path]


def _linked_outside(root: Path) -> list[Mount]:
    """Mounts that make the symbolic links near the top of a data root lead where they lead here.

    Datasets are often linked together from several disks. Raises HubError where that cannot be
    done: a link into what would be the container's own system, or very many of them.
    """
    mounts: dict[str, Mount] = {}
    for link in _links(root, _DEPTH):
        place = link.resolve()
        if place.is_relative_to(root) or not place.exists():
            continue
        seen_from = Path(DATA) / link.parent.resolve().relative_to(root)
        target = os.path.normpath(seen_from / os.readlink(link))
        if Path(target).is_relative_to(DATA):
            continue  # by way of another link, which is here too
        if target in _IN_USE or Path(target).parts[1] in _SYSTEM:
            raise HubError(
                f"{link} leads to {target}, which a container cannot have. Move the data itself "
                f"below {root}, or link it from a data disk."
            )
        mounts[target] = Mount(place, target)
        if len(mounts) > _MOST_LINKS:
            raise HubError(f"More than {_MOST_LINKS} links lead out of {root}. Link folders.")
    return list(mounts.values())


def _links(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        if entry.is_symlink():
            yield Path(entry.path)
        elif depth > 1 and entry.is_dir():
            yield from _links(Path(entry.path), depth - 1)
