"""Whatever is written is whole or not there: killed at each change of the disk, and on a full disk.

Each row of ``WORKS`` writes one thing below a folder. What can be seen there must be right at any
moment, the next run must end the work, and nothing may be left over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pytest
from killing import deaths
from samples import key_folder, leftovers, maps_of, noise, provenance

from wsssbed_hub.artifacts.key_folder import complete, read_manifest, verify_folder
from wsssbed_hub.artifacts.manifest import File, MethodCitation
from wsssbed_hub.artifacts.shard_writer import Written, write_maps
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.cache.scan import scan
from wsssbed_hub.cache.store import Store
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.open_artifact import open_artifact, write_pngs
from wsssbed_hub.utils.errors import HubError


def finish(folder: Path, written: Written) -> None:
    complete(
        folder,
        written,
        key=f"{written.kind}/test",
        target="shapes",
        version="1.0.0",
        title="For a test",
        method=MethodCitation(name="Test"),
        provenance=provenance(),
    )


def write_shards(source: Path, root: Path) -> None:
    maps = open_artifact(source)
    finish(root / "key", write_maps(root / "key", "sal", maps.image_ids, maps.read, settings={}))


def write_tensors(source: Path, root: Path) -> None:
    tensors = {path.stem: np.fromfile(path, np.uint8) for path in source.rglob("*.parquet")}
    finish(root / "key", write_weights(root / "key", tensors, {"classes": 20}, settings={}))


def export_pngs(source: Path, root: Path) -> None:
    write_pngs(open_artifact(source), root / "pngs")


def pull(source: Path, root: Path, to: Path | None = None) -> None:
    def fetch(file: File, out: BinaryIO) -> None:
        with open(source / file.path, "rb") as inside:
            inside.seek(out.tell())
            shutil.copyfileobj(inside, out, 1 << 18)

    Store(root).pull(read_manifest(source), fetch, to=to, progress=None)


def export(source: Path, root: Path) -> None:
    pull(source, root / "cache", root / "key")


def push(source: Path, root: Path) -> None:
    FolderRegistry(root / "registry").publish(source)


def is_made(source: Path, root: Path) -> bool:
    if (root / "key/manifest.yaml").exists():
        return bool(verify_folder(root / "key"))
    with pytest.raises(HubError):
        open_artifact(root / "key")
    return False


def is_exported(source: Path, root: Path) -> bool:
    return (root / "key").exists() and bool(verify_folder(root / "key"))


def is_png_folder(source: Path, root: Path) -> bool:
    if not (root / "pngs").exists():
        return False
    return open_artifact(root / "pngs").digest() == open_artifact(source).digest()


def is_in_cache(source: Path, root: Path) -> bool:
    found = scan(Store(root))
    for digest, path in found.blobs.items():
        (file,) = [f for f in source.rglob("*.parquet") if path.stat().st_size == f.stat().st_size]
        assert path.read_bytes() == file.read_bytes(), digest
    return any(verify_folder(folder) for one in found.artifacts for folder in one.folders)


def is_published(source: Path, root: Path) -> bool:
    keys = FolderRegistry(root / "registry").keys() if (root / "registry").exists() else []
    return any(verify_folder(root / "registry/wsssbed" / key.repository) for key in keys)


class Work(NamedTuple):
    """How it is written, and whether all of it is there, where what is there is looked at."""

    write: Callable[[Path, Path], object]
    is_there: Callable[[Path, Path], bool]
    full: str
    """What is said of a full disk."""
    too_small: tuple[int, ...] = (1,)
    """Sizes of a disk, in MiB, that 1.4 MB of maps do not fit."""


SAID = r": the disk is full; 1,4\d\d,\d+ bytes are needed there"
WORKS = {
    "maps": Work(write_shards, is_made, rf"/key(/\.partial)?{SAID}", (1, 2)),  # parts, then shards
    "weights": Work(write_tensors, is_made, f"/key{SAID}"),
    "PNGs": Work(export_pngs, is_png_folder, f"/small-disk{SAID}"),
    "pull": Work(pull, is_in_cache, f"/small-disk{SAID}"),
    "pull --to": Work(export, is_exported, f"/cache{SAID}"),
    "push": Work(push, is_published, f"/registry{SAID}"),
}
works = pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key folder with the maps of seven images, of which three are a part."""
    monkeypatch.setattr("wsssbed_hub.artifacts.shard_writer.PART", 3)
    key_folder(tmp_path / "source", maps=maps_of("sal", list("abcdefg")))
    return tmp_path / "source"


@works
def test_killed_again_and_again(tmp_path: Path, source: Path, work: Work) -> None:
    """Each run finds what all before it have left."""
    root = tmp_path / "root"
    root.mkdir()
    died = 0
    for died in deaths(lambda: work.write(source, root)):  # noqa: B007
        work.is_there(source, root)
    assert died > 5
    assert work.is_there(source, root)
    assert not leftovers(root)


@works
@pytest.mark.slow
def test_killed_at_every_point_of_a_fresh_run(tmp_path: Path, source: Path, work: Work) -> None:
    def fresh() -> None:
        root = tmp_path / f"root-{os.getpid()}"
        os.makedirs(root)
        work.write(source, root)

    assert len(list(deaths(fresh))) > 8
    for root in tmp_path.glob("root-*"):
        work.is_there(source, root)
        work.write(source, root)
        assert work.is_there(source, root)
        assert not leftovers(root)


@works
def test_a_full_disk(
    tmp_path: Path, small_disk: Any, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    """Of a size that nobody sees coming."""
    disk, resize = small_disk
    source = tmp_path / "big"
    key_folder(source, maps={"a": noise(0, 1200, 1200)})
    enough = shutil._ntuple_diskusage(9**9, 0, 9**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: enough)
    for size in work.too_small:
        resize(size << 20)
        with pytest.raises(HubError, match=work.full):
            work.write(source, disk)
        assert not work.is_there(source, disk)
    resize(8 << 20)
    work.write(source, disk)
    assert work.is_there(source, disk)
    assert not leftovers(disk)
