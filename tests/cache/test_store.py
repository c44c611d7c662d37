from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from killing import exit_code, in_child
from samples import flip, key_folder, leftovers

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.manifest import File
from wsssbed_hub.cache.store import Store
from wsssbed_hub.registry.pull import open_registry, pull, verify
from wsssbed_hub.utils.errors import HubError

BYTES = bytes(range(256)) * 10_000  # several chunks
PATH = "voc12/1.0.0/00000.parquet"


class Source:
    """Gives the bytes it is told to and writes down from where on it was asked for them."""

    def __init__(self, data: bytes = BYTES, most: int | None = None):
        self.data, self.most = data, most
        self.opened: list[int] = []

    def __call__(self, file: File, out: BinaryIO) -> None:
        assert file.path == PATH
        offset = out.tell()
        self.opened.append(offset)
        end = None if self.most is None else offset + self.most
        shutil.copyfileobj(io.BytesIO(self.data[offset:end]), out, 1 << 20)


@pytest.fixture
def file(tmp_path: Path) -> File:
    (tmp_path / "x").write_bytes(BYTES)
    return File(path=PATH, size=len(BYTES), sha256=file_digest(tmp_path / "x"))


def kept(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.rglob("*") if path.is_file())


def test_a_file_is_fetched_once(file: File) -> None:
    store, source, steps = Store(), Source(), []
    for _ in range(2):
        blob = store.fetch(file, source, steps.append)
        assert blob.read_bytes() == BYTES
        assert sum(steps) == len(BYTES)
        steps.clear()
    assert source.opened == [0]
    assert kept(store) == [file.sha256.removeprefix("sha256:")]
    assert stat.S_IMODE(blob.stat().st_mode) == 0o444


def test_an_interrupted_fetch_goes_on(file: File) -> None:
    store, source, steps = Store(), Source(most=1_000_000), []
    for offset in (1_000_000, 2_000_000):
        with pytest.raises(HubError, match=rf"cut short: {offset:,} of 2,560,000 bytes came"):
            store.fetch(file, source)
        assert not store.blob(file).exists()
    assert store.fetch(file, source, steps.append).read_bytes() == BYTES
    assert source.opened == [0, 1_000_000, 2_000_000]
    assert sum(steps) == len(BYTES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BYTES[:-1] + b"x", r"Expected sha256:\w+, received sha256:"),
        (BYTES + b"x", r"Expected sha256:\w+, received more than 2,560,000 bytes"),
        (bytes(len(BYTES)), r"Expected sha256:\w+, received sha256:"),
    ],
)
def test_wrong_bytes_are_not_kept(file: File, data: bytes, message: str) -> None:
    store = Store()
    with pytest.raises(HubError, match=message) as caught:
        store.fetch(file, Source(data))
    assert PATH in str(caught.value)
    assert file.sha256 in str(caught.value)
    assert kept(store) == []


def test_nothing_came(file: File) -> None:
    store = Store()
    with pytest.raises(HubError, match="cut short: 0 of"):
        store.fetch(file, Source(b""))
    assert kept(store) == []


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    file = File(path=PATH, size=0, sha256=file_digest(tmp_path / "empty"))
    assert Store().fetch(file, Source(b"")).read_bytes() == b""


@pytest.mark.parametrize("left", [b"x" * 100, BYTES[:-1] + b"x", BYTES + b"x"])
def test_a_damaged_beginning_is_fetched_again(file: File, left: bytes) -> None:
    store, steps = Store(), []
    blob = store.blob(file)
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.partial").write_bytes(left)
    assert store.fetch(file, Source(), steps.append).read_bytes() == BYTES
    assert sum(steps) == len(BYTES)


@pytest.mark.parametrize("place", [0, 1_234_567, len(BYTES) - 1])
def test_a_flipped_bit_in_the_cache_is_found_and_mended(file: File, place: int) -> None:
    store, source = Store(), Source()
    flip(store.fetch(file, source), place)
    assert store.fetch(file, source).read_bytes() == BYTES
    assert source.opened == [0, 0]


def test_a_blob_that_cannot_be_mended_is_not_kept(file: File) -> None:
    store = Store()
    flip(store.fetch(file, Source()), 99)
    with pytest.raises(HubError, match="wrong bytes"):
        store.fetch(file, Source(bytes(len(BYTES))))
    assert kept(store) == []


def test_several_processes_fetch_once(file: File, tmp_path: Path) -> None:
    log = tmp_path / "opened"

    def source(file: File, out: BinaryIO) -> None:
        with open(log, "a") as words:
            words.write("x")
        Source()(file, out)

    def fetch() -> None:
        assert Store().fetch(file, source).read_bytes() == BYTES

    assert [exit_code(pid) for pid in [in_child(fetch) for _ in range(6)]] == [0] * 6
    assert log.read_text() == "x"
    assert not leftovers(Store().root)


def test_copies_where_links_cannot_be_made(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_folder(tmp_path / "key")
    open_registry(create=True).publish(tmp_path / "key")

    def link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", link)
    folder = pull("sal/test")
    place = folder / "shapes/1.0.0/00000.parquet"
    assert place.stat().st_nlink == 1
    before = place.stat().st_mtime_ns
    assert pull("sal/test") == folder
    assert place.stat().st_mtime_ns == before
    flip(place, 70)
    assert verify(pull("sal/test"))


def test_the_cache_may_be_removed(file: File) -> None:
    store = Store()
    store.fetch(file, Source())
    shutil.rmtree(store.root)
    assert store.fetch(file, Source()).read_bytes() == BYTES
