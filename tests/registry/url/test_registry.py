"""Registries at URLs, read: in memory, on a web server, in S3 (moto's server through s3fs)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from places import SHARD
from rangeserver import Fault, RangeServer
from samples import Hub, flip, key_folder

from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cache.store import Store
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.pull import open_registry, pull
from wsssbed_hub.utils.errors import HubError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry in a folder with two keys."""
    for name in ("one", "two"):
        key_folder(tmp_path / name, name=name)
        FolderRegistry(tmp_path / "made").publish(tmp_path / name)
    return tmp_path / "made"


@pytest.fixture
def remembered(folder: Path, memory: str) -> str:
    """The folder as it is in memory."""
    fsspec.filesystem("memory").put(str(folder), "/made", recursive=True)
    return memory


@pytest.fixture
def web(folder: Path) -> Iterator[RangeServer]:
    """The folder on a web server."""
    server = RangeServer.of_folder(folder).start()
    yield server
    server.stop()


@pytest.fixture
def web_url(web: RangeServer) -> str:
    return web.url()


def test_wrong_bytes_and_missing_ones(remembered: str, folder: Path) -> None:
    flip(folder / "wsssbed/sal-one" / SHARD, 40)
    files = fsspec.filesystem("memory")
    files.put(str(folder / "wsssbed/sal-one" / SHARD), f"/made/wsssbed/sal-one/{SHARD}")
    with pytest.raises(HubError, match=r"00000\.parquet: wrong bytes"):
        pull("sal/one", registry=remembered)
    assert not [path for path in (Store().root / "blobs").rglob("*") if path.is_file()]
    files.rm(f"/made/wsssbed/sal-two/{SHARD}")
    with pytest.raises(HubError, match=rf"memory://made has no {SHARD}"):
        pull("sal/two", registry=remembered)
    files.pipe("/made/wsssbed/sal-two/manifest.yaml", b"colour: blue")
    with pytest.raises(HubError, match=r"memory://made: sal-two/manifest\.yaml is not a valid"):
        pull("sal/two", registry=remembered)


def test_what_a_web_server_does_not_have(web: RangeServer) -> None:
    del web.files[f"/wsssbed/sal-two/{SHARD}"]
    with pytest.raises(HubError, match=rf"^{web.url()} has no {SHARD}\.$"):
        pull("sal/two", registry=web.url())
    with pytest.raises(HubError, match=r"^http://127\.0\.0\.1:9 cannot be reached"):
        pull("sal/two", registry="http://user:secret@127.0.0.1:9")


@pytest.mark.parametrize("status", [403, 416, 500, 503])
def test_what_a_web_server_refuses_is_not_told_as_missing(web: RangeServer, status: int) -> None:
    """Neither of a manifest, which is asked for first, nor of a file."""
    for served in (0, 1):
        web.faults = [*[Fault()] * served, *[Fault(status=status)] * 9]
        with pytest.raises(HubError, match=rf"cannot be read: {status}, ") as error:
            pull("sal/two", registry=web.url())
        assert error.value.exit_code == 1


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("have", [0, 1, 100, None])
def test_a_pull_from_the_web_goes_on(
    web: RangeServer, folder: Path, have: int | None, ranges: bool
) -> None:
    """Of a process that was killed at so many bytes; None is all of them."""
    web.ranges = ranges
    (file,) = open_registry(web.url()).find(Key.parse("sal/one")).entry("1.0.0", "shapes").files
    blob = Store().blob(file)
    data = (folder / "wsssbed/sal-one" / SHARD).read_bytes()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.partial").write_bytes(data[:have])
    web.requests.clear()
    assert verify_folder(pull("sal/one", registry=web.url()))
    asked = [part for _, path, part in web.requests if path.endswith(SHARD)]
    assert asked == {0: [None], None: []}.get(have, [f"bytes={have}-"])


def test_secrets_in_a_url_stay_there(
    remembered: str, monkeypatch: pytest.MonkeyPatch, command: Hub
) -> None:
    with pytest.raises(UsageError, match="question mark") as error:
        open_registry("https://example.org/?token=secret")
    assert "secret" not in str(error.value)
    registry = open_registry("memory://user:secret@made")
    with pytest.raises(UsageError) as error:
        registry.find(Key.parse("sal/x"))
    assert "secret" not in f"{registry} {error.value}"
    with pytest.raises(UsageError, match="not a chain") as error:
        open_registry("simplecache::https://user:secret@example.org")
    assert "secret" not in str(error.value)
    with pytest.raises(UsageError, match="not a URL"):
        open_registry("https://user:secret@[example.org")
    monkeypatch.setenv("WSSSBED_REGISTRY", "https://user:secret@127.0.0.1:9/a?b=secret")
    listed = command("registry", "list")
    assert "https://127.0.0.1:9/a" in listed.out
    assert "secret" not in listed.out


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("s3://b", "s3fs", "s3"), ("gs://b", "gcsfs", "gs"), ("https://b", "aiohttp", "http")],
)
def test_a_driver_that_is_not_installed(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
import sys
sys.modules[{module!r}] = None
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.registry.pull import open_registry
try:
    open_registry({url!r})
except HubError as error:
    print(error, end="")
"""
    python = [sys.executable, "-c", script]
    done = subprocess.run(python, capture_output=True, text=True, check=True)
    needs = f"needs a package that is not installed: pip install 'wsssbed-hub[{extra}]'."
    assert done.stdout == f"{url} {needs}"


def test_a_driver_that_only_others_have() -> None:
    with pytest.raises(HubError, match=r"^lakefs://b needs a package .*installed: .*lakefs"):
        open_registry("lakefs://b")
