"""Key folders: ``manifest.yaml`` at the root, files at ``<target>/<version>/``.

The one layout of an artifact, whether a stage wrote it, a registry holds it or ``pull`` left it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsssbed_hub.artifacts.digests import file_digest, list_digest
from wsssbed_hub.artifacts.keys import Version
from wsssbed_hub.artifacts.manifest import (
    MAX_BYTES,
    Chosen,
    Entry,
    File,
    Manifest,
    MethodCitation,
    Provenance,
    Result,
    TrainedOn,
    parse_manifest,
)
from wsssbed_hub.artifacts.merge import merge
from wsssbed_hub.artifacts.parquet import ParquetMaps
from wsssbed_hub.artifacts.shard_writer import Written, require_same
from wsssbed_hub.artifacts.weights import CONFIG, MODEL, read_config, weights_digest
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import disk_errors, exclusive, sync_folder, write_whole
from wsssbed_hub.utils.progress import Progress, share

MANIFEST = "manifest.yaml"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a key folder. Raises HubError if it is missing or not valid."""
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            return parse_manifest(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        if (folder / ".partial").is_dir():
            raise HubError(
                f"{folder} is not finished. Run the command that writes it again, it goes on."
            ) from None
        raise HubError(f"{folder} is not a key folder: it has no {MANIFEST}.") from None
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None


def check_size(folder: Path, file: File) -> Path:
    """Path of a file that has the size its manifest states; HubError if it has not."""
    path = folder / file.path
    try:
        status = path.stat()
    except OSError as error:
        raise HubError(f"{path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
        raise HubError(
            f"{path} has {status.st_size:,} bytes, its manifest says {file.size:,}: it is cut "
            "short or was changed."
        )
    return path


def check_file(folder: Path, file: File) -> Path:
    """Path of a file whose size and sha256 are those that its manifest states."""
    path = check_size(folder, file)
    found = file_digest(path)
    if found != file.sha256:
        raise HubError(f"{path} is damaged or was changed: expected {file.sha256}, found {found}.")
    return path


def open_entry(
    folder: Path,
    manifest: Manifest,
    chosen: Chosen,
    *,
    strict: bool = False,
) -> ParquetMaps:
    """Reader of one entry's maps; ``strict`` as in ``ParquetMaps``.

    Raises HubError if a file is missing or cut short, or if the images are not those that the
    manifest states.
    """
    version, target, entry = chosen
    if manifest.kind == "weights":
        raise HubError(f"{folder} holds weights, not maps.")
    if not entry.files:
        raise HubError(f"{manifest.key}@{version} over {target} is not in {folder}, only its url.")
    paths = [check_size(folder, file) for file in sorted(entry.files, key=lambda f: f.path)]
    key = f"{manifest.key}@{version}"
    maps = ParquetMaps(
        paths,
        manifest.kind,
        name=f"{key} ({target})",
        key=key,
        content=entry.content,
        strict=strict,
    )
    if len(maps) != entry.images or list_digest(maps.image_ids) != entry.image_list:
        raise HubError(
            f"{folder / target / str(version)} is damaged or its manifest is wrong: it holds "
            f"{len(maps)} images that are not the {entry.images} of the manifest."
        )
    return maps


class Verified(NamedTuple):
    """One entry whose every claim about its bytes was found to be true."""

    key: str
    target: str
    images: int | None
    files: int
    size: int
    content: str | None

    def __str__(self) -> str:
        what = f"{self.files} files" if self.images is None else f"{self.images:,} images"
        return f"{self.key} over {self.target}: {what}, {self.size:,} bytes, {self.content}"


def verify_folder(folder: Path, *, progress: Progress | None = None) -> list[Verified]:
    """Recomputes all that the manifest in ``folder`` states of its files.

    That is sizes and sha256 of the files, number, order and list of the images, and the content
    digest over the decoded maps. ``progress(bytes, of)`` as it goes. Raises HubError at the first
    claim that does not hold, naming the file, what was expected and what was found.
    """
    manifest = read_manifest(folder)
    chosen = [c for c in manifest.entries() if c.entry.files]
    total = sum(c.entry.size for c in chosen)
    done = 0
    verified = []
    for version, target, entry in chosen:
        for file in entry.files:
            check_file(folder, file)
        advance = share(progress, done, entry.size, total)
        content = _content(folder, manifest, Chosen(version, target, entry), advance)
        if content != entry.content:
            raise HubError(
                f"{folder}: the content of {target}/{version} is not what its manifest states: "
                f"expected {entry.content}, found {content}."
            )
        done += entry.size
        key = f"{manifest.key}@{version}"
        files = len(entry.files)
        verified.append(Verified(key, target, entry.images, files, entry.size, content))
        if progress is not None:
            progress(done, total)
    return verified


def _content(folder: Path, manifest: Manifest, chosen: Chosen, progress: Progress | None) -> str:
    if manifest.kind == "weights":
        place = folder / chosen.target / str(chosen.version)
        read_config(place / CONFIG)
        return weights_digest(place / MODEL)
    return open_entry(folder, manifest, chosen, strict=True).digest(progress)


def finished(
    folder: Path,
    *,
    target: str,
    version: str,
    settings: Mapping[str, Any],
    image_ids: Sequence[str] | None = None,
) -> Entry | None:
    """The entry that ``complete`` wrote for the same settings and images, None if it has not yet.

    Raises HubError if the entry is there and was made with other settings (these are the recipe in
    its provenance) or over other images: a folder never holds a mixture.
    """
    if not (folder / MANIFEST).exists():
        return None
    number = Version.parse(version)
    manifest = read_manifest(folder)
    entry = manifest.versions.get(str(number), {}).get(target)
    if entry is None:
        return None
    there: dict[str, Any] = {"settings": entry.provenance.recipe if entry.provenance else {}}
    wanted: dict[str, Any] = {"settings": json.loads(json.dumps(settings))}
    if image_ids is not None:
        there["image_list"] = entry.image_list
        wanted["image_list"] = list_digest(image_ids)
    what = f"{folder} holds {manifest.key}@{number} over {target}"
    require_same(there, wanted, what, "Choose another folder or another version.")
    for file in entry.files:
        check_size(folder, file)
    return entry


def complete(
    folder: Path,
    written: Written,
    *,
    key: str,
    target: str,
    version: str,
    title: str,
    method: MethodCitation,
    trained_on: Sequence[TrainedOn] = (),
    trained_with: Sequence[str] = (),
    licence: str | None = None,
    provenance: Provenance | None = None,
    results: Sequence[Result] = (),
) -> Manifest:
    """Turns what was ``written`` in ``folder`` into a version of a key: files, then the manifest.

    The settings that the maps were written with become the recipe of the provenance. Other versions
    and targets that the folder holds stay. The same version and target with the same content is
    left as it is; with another content it is a HubError and the folder stays as it was. A killed
    run has changed nothing that can be seen, and may be repeated.
    """
    entry = _entry(written, f"{target}/{Version.parse(version)}", provenance, results)
    manifest = Manifest(
        key=key,
        kind=written.kind,  # type: ignore[arg-type]  # the model checks it
        title=title,
        method=method,
        trained_on=list(trained_on),
        trained_with=list(trained_with),
        licence=licence,
        versions={version: {target: entry}},
    )
    with disk_errors(folder, entry.size), exclusive(folder, folder=True):
        old = read_manifest(folder) if (folder / MANIFEST).exists() else None
        merged = merge(old, manifest)
        if merged is not old:
            _place(folder, written, entry)
            write_whole(folder / MANIFEST, merged.dump().encode())
        shutil.rmtree(folder / ".partial", ignore_errors=True)
    return merged


def _entry(
    written: Written, place: str, provenance: Provenance | None, results: Sequence[Result]
) -> Entry:
    if provenance is not None:
        provenance = provenance.model_copy(update={"recipe": written.settings})
    files = [
        File(path=f"{place}/{file.name}", size=file.size, sha256=file.sha256)
        for file in written.files
    ]
    return Entry(
        images=written.images,
        image_list=written.image_list,
        content=written.content,
        files=files,
        provenance=provenance,
        results=list(results),
    )


def _place(folder: Path, written: Written, entry: Entry) -> None:
    for file in entry.files:
        goal = folder / file.path
        goal.parent.mkdir(parents=True, exist_ok=True)
        waiting = written.folder / file.name
        if waiting.exists():
            os.replace(waiting, goal)
        check_file(folder, file)  # an earlier run that was killed has moved it
        sync_folder(goal.parent)
    sync_folder(folder)
