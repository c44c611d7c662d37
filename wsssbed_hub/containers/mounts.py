"""The part of this machine that a stage gets to see: its arguments, rewritten for the container,
and what is mounted there for them.

The arguments are those of the same command outside a container, rewritten by ``stage_command``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsssbed_hub.artifacts.keys import names_artifact
from wsssbed_hub.artifacts.stage_command import (
    ARTIFACTS,
    CACHE,
    DATA,
    MAPS_OPTIONS,
    OUTPUT_OPTION,
    Argument,
    in_container,
    parse,
    path_of,
)
from wsssbed_hub.containers.command import Mount
from wsssbed_hub.utils.errors import HubError, UsageError

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
class Resolved:
    """A stage's arguments as it will see them, and what has to be mounted for that."""

    arguments: tuple[str, ...]
    mounts: tuple[Mount, ...]
    folders: tuple[Path, ...]
    """Have to be there beforehand: an engine would make them, and they would belong to root."""


def resolve(
    arguments: Sequence[str], *, data_root: Path, out: Path, cache: Path, fetch: Fetch
) -> Resolved:
    """Rewrite the arguments of a stage. ``data_root`` and ``out`` are for when they name none.

    Raises HubError for a path that is not there, UsageError for an option without its value.
    """
    parts = list(parse(arguments))
    given = {part.option: part.value for part in parts if part.option is not None}
    roots = {DATA: Path(given.get("--data-root") or data_root).expanduser().resolve()}
    roots[ARTIFACTS] = Path(given.get("--out") or out).expanduser().resolve()
    if not roots[DATA].is_dir():
        raise HubError(
            f"There is no folder {roots[DATA]}. Name the one with the datasets with --data-root."
        )
    cache = cache.expanduser().resolve()
    target = given.get("--target") or "voc12"
    _require_below(roots[ARTIFACTS], given.get(OUTPUT_OPTION))
    words, inputs = in_container(parts, roots, lambda part: _path_of(part, target, fetch))
    mounts = (
        Mount(roots[DATA], DATA),
        *_linked_outside(roots[DATA]),
        Mount(roots[ARTIFACTS], ARTIFACTS, read_only=False),
        Mount(cache, CACHE, read_only=False),
        *(Mount(source, target) for source, target in inputs.items()),
    )
    return Resolved(tuple(words), mounts, (roots[ARTIFACTS], cache))


def _require_below(out: Path, made: str | None) -> None:
    """Raises UsageError for a folder that would go with the container."""
    if made is not None and not Path(made).expanduser().resolve().is_relative_to(out):
        raise UsageError(
            f"{OUTPUT_OPTION} {made}: of what a container makes only what is in {out} (--out) "
            f"stays. Name a folder there, such as {out / 'predictions'}."
        )


def _path_of(part: Argument, target: str, fetch: Fetch) -> Path | None:
    """The path on this machine that an argument means; None if it means none."""
    if part.option in MAPS_OPTIONS and names_artifact(part.value or ""):
        return fetch(part.value or "", target).resolve()
    path = path_of(part)
    if path is not None and part.option != OUTPUT_OPTION and not path.exists():
        what = f"{part.option or 'argument'} {part.value}"
        raise HubError(f"{what}: there is no such file or folder.")
    return path


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
