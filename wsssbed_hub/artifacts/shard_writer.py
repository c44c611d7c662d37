"""Writing maps as Parquet shards, in parts that survive a kill and that several processes share.

Everything happens in ``<folder>/.partial``: ``settings.json`` says what is being written there,
``00000.parquet`` … hold 64 images each, ``files/`` the shards that the parts are merged into, and
``written.json``, last of all, what the shards are. ``key_folder.complete`` takes it from there.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsssbed_hub.artifacts.digests import content_digest, file_digest, list_digest
from wsssbed_hub.artifacts.maps import MAP_KINDS, Activations, check_image_id, check_maps, digest_of
from wsssbed_hub.artifacts.parquet import damage_in, row, schema, writer
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import (
    atomic_file,
    disk_errors,
    exclusive,
    sync_file,
    sync_folder,
    write_whole,
)
from wsssbed_hub.utils.parallel import pipeline
from wsssbed_hub.utils.progress import Progress, adding

PART = 64  # images; a part is also a row group of the shards
SHARD_BYTES = 480 << 20  # parts are added to a shard while they fit; the Hub likes 500 MB

_DIGESTS = "wsssbed-hub.digests"  # image digests, in a part's footer only

Produce = Callable[[Any], "np.ndarray | Activations"]
Pipe = Callable[..., Generator[Any]]
"""``pipeline`` with all but the items and the three steps given."""


@dataclass(frozen=True)
class WrittenFile:
    """A file below ``Written.folder``, which ``key_folder.complete`` will move."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Written:
    """An artifact's files in ``folder``, not yet part of a key folder."""

    kind: str
    folder: Path
    files: tuple[WrittenFile, ...]
    images: int | None
    image_list: str | None
    content: str
    settings: dict[str, Any]


def write_maps(
    folder: Path,
    kind: str,
    image_ids: Sequence[str],
    produce: Produce,
    *,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> Written:
    """Writes ``produce(image_id)`` for every image, in shards that wait in ``<folder>/.partial``.

    ``produce`` gives uint8[H, W] for ``sal`` and ``label`` and Activations for ``cam``. Images that
    an earlier run finished are not produced again; ``settings`` (JSON) is what the maps depend on,
    and other settings or another list of images there is a HubError. ``progress(images, of)`` as it
    goes. Several processes call ``write_parts`` first; when all have returned,
    one of them calls this, which finds every part there.

    Raises HubError for maps of wrong shape or type, a full disk or a damaged part.
    """
    write_parts(folder, kind, image_ids, produce, settings=settings, progress=progress)
    return _merge(folder, kind, sorted(image_ids), json.loads(json.dumps(settings)))


def write_parts(
    folder: Path,
    kind: str,
    image_ids: Sequence[str],
    produce: Produce,
    *,
    settings: Mapping[str, Any],
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    read: Callable[[str], Any] | None = None,
    pipe: Pipe = functools.partial(pipeline, threads=0),
) -> None:
    """The share of ``part=(rank, processes)`` of ``write_maps``, without the merging.

    With ``read`` it is ``produce(read(image_id))``. ``pipe`` takes the ids through reading,
    producing and turning into PNGs, and says in which threads.
    """
    rank, processes = part
    ids = sorted(image_ids)
    _check_request(kind, ids, rank, processes)
    own = [chunk for chunk in _parts(ids) if chunk[0] % processes == rank]
    advance = adding(progress, sum(len(chunk) for _, chunk in own))
    partial = folder / ".partial"
    with disk_errors(folder):
        partial.mkdir(parents=True, exist_ok=True)
        _claim_folder(partial, _fingerprint(kind, ids, settings))
    finished = (partial / "written.json").exists()
    waiting = []
    for number, chunk in own:
        if finished or _part_is_there(_part_path(partial, number)):
            advance(len(chunk))
        else:
            waiting.append((number, chunk))

    def make(image: tuple[str, Any]) -> tuple[str, np.ndarray | Activations]:
        image_id, found = image
        maps = produce(found)
        check_maps(kind, maps, f"the map that was made of image {image_id}")
        return image_id, maps

    encoded = pipe(
        [image_id for _, chunk in waiting for image_id in chunk],
        lambda image_id: (image_id, image_id if read is None else read(image_id)),
        make,
        lambda made: (row(kind, *made), digest_of(made[1])),
    )
    with closing(encoded):
        for number, chunk in waiting:
            rows, digests = [], []
            for one, digest in itertools.islice(encoded, len(chunk)):
                rows.append(one)
                digests.append(digest)
                advance(1)
            _write_part(_part_path(partial, number), kind, rows, digests)


def _check_request(kind: str, ids: list[str], rank: int, processes: int) -> None:
    if kind not in MAP_KINDS:
        raise UsageError(f"There are no maps of kind {kind!r}, only {', '.join(MAP_KINDS)}.")
    if not 0 <= rank < processes:
        raise UsageError(f"part {rank} of {processes} processes: count them from 0.")
    for image_id in ids:
        check_image_id(image_id)
    if not ids or len(set(ids)) != len(ids):
        raise HubError("The list of images is empty or names one twice: nothing was written.")


def _parts(ids: list[str]) -> Iterator[tuple[int, list[str]]]:
    for number, start in enumerate(range(0, len(ids), PART)):
        yield number, ids[start : start + PART]


def _part_path(partial: Path, number: int) -> Path:
    return partial / f"{number:05d}.parquet"


def _part_is_there(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        path.unlink()  # cut short by a power failure: made again
        return False
    return True


def _fingerprint(kind: str, ids: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    what = {"kind": kind, "image_list": list_digest(ids), "settings": settings}
    return json.loads(json.dumps(what, sort_keys=True))


def _claim_folder(partial: Path, wanted: dict[str, Any]) -> None:
    """Writes down what this folder is for, or compares it with what is written there."""
    path = partial / "settings.json"
    with exclusive(partial, folder=True):
        if not path.exists():
            write_whole(path, json.dumps(wanted, indent=2, sort_keys=True).encode())
        there = json.loads(path.read_text())
    advice = f"Remove {partial} to begin again, or choose another folder."
    require_same(there, wanted, f"{partial.parent} holds unfinished maps", advice)


def require_same(
    there: Mapping[str, Any], wanted: Mapping[str, Any], what: str, advice: str
) -> None:
    """Raises HubError unless ``what`` was made with the settings that are ``wanted`` now."""
    if there != wanted:
        raise HubError(f"{what} made with other settings ({_differences(there, wanted)}). {advice}")


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """``tau: 0.3 there, 0.5 now`` for whatever differs between two JSON objects."""
    found = []
    for name in sorted({*there, *wanted}):
        old, new = there.get(name), wanted.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found.append(_differences(old, new))
        else:
            found.append(f"{name}: {json.dumps(old)} there, {json.dumps(new)} now")
    return "; ".join(found)


def _write_part(path: Path, kind: str, rows: list[dict[str, Any]], digests: list[str]) -> None:
    table = pa.Table.from_pylist(rows, schema=schema(kind))
    with (
        disk_errors(path.parent, table.nbytes),
        atomic_file(path) as temporary,
        writer(temporary, kind, {_DIGESTS: json.dumps(digests)}) as out,
    ):
        out.write_table(table)


def _merge(folder: Path, kind: str, ids: list[str], settings: dict[str, Any]) -> Written:
    """Joins the parts into shards, once; a run that finds them joined takes what is there."""
    partial = folder / ".partial"
    paths = [_part_path(partial, number) for number, _ in _parts(ids)]
    with exclusive(partial, folder=True):
        if not (partial / "written.json").exists():
            needed = sum(path.stat().st_size for path in paths)
            with disk_errors(folder, needed):
                files, content = _write_shards(partial / "files", kind, ids, paths)
                record(folder, kind, files, content, settings, ids)
        for path in paths:
            path.unlink(missing_ok=True)
        return read_record(folder)


def _write_shards(
    folder: Path, kind: str, ids: list[str], paths: list[Path]
) -> tuple[list[Path], str]:
    folder.mkdir(exist_ok=True)
    digests: list[tuple[str, str]] = []
    shards: list[Path] = []
    for number, group in enumerate(_shards(paths)):
        shards.append(folder / f"{number:05d}.parquet")
        with writer(shards[-1], kind) as out:
            for path in group:
                checked = pq.ParquetFile(path, page_checksum_verification=True)
                with damage_in(path), checked as part:
                    table = part.read(use_threads=False)
                    hexes = json.loads(part.metadata.metadata[_DIGESTS.encode()])
                    names = table.column("image_id").to_pylist()
                    digests += zip(names, hexes, strict=True)
                out.write_table(table.replace_schema_metadata(schema(kind).metadata))
        sync_file(shards[-1])
    sync_folder(folder)
    if [image_id for image_id, _ in digests] != ids:
        raise HubError(f"The parts in {folder.parent} are not of the images that were asked for.")
    return shards, content_digest(kind, digests)


def _shards(paths: list[Path]) -> Iterator[list[Path]]:
    group: list[Path] = []
    size = 0
    for path in paths:
        size += path.stat().st_size
        if group and size > SHARD_BYTES:
            yield group
            group, size = [], path.stat().st_size
        group.append(path)
    yield group


def record(
    folder: Path,
    kind: str,
    files: Sequence[Path],
    content: str,
    settings: Mapping[str, Any],
    ids: Sequence[str] | None = None,
) -> Written:
    """Writes down, as the last step, what ``files`` in ``<folder>/.partial/files`` are."""
    described = [
        {"name": p.name, "size": p.stat().st_size, "sha256": file_digest(p)} for p in files
    ]
    what = {
        "kind": kind,
        "files": described,
        "images": None if ids is None else len(ids),
        "image_list": None if ids is None else list_digest(ids),
        "content": content,
        "settings": settings,
    }
    write_whole(folder / ".partial" / "written.json", json.dumps(what, indent=2).encode())
    return read_record(folder)


def read_record(folder: Path) -> Written:
    """The files that wait in ``folder`` to be completed, as ``record`` wrote them down."""
    partial = folder / ".partial"
    found = json.loads((partial / "written.json").read_text())
    found["files"] = tuple(WrittenFile(**file) for file in found["files"])
    return Written(folder=partial / "files", **found)
