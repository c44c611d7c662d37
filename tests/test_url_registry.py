"""Registries at URLs, to read: in memory, on a web server, in S3 (moto's server through s3fs)."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from samples import flip, key_folder

from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.folder_registry import FolderRegistry
from wsssbed_hub.keyfolder import verify_folder
from wsssbed_hub.keys import Key
from wsssbed_hub.registry import open_registry, pull
from wsssbed_hub.store import Store

SHARD = "shapes/1.0.0/00000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry in a folder with two keys."""
    for name in ("one", "two"):
        key_folder(tmp_path / name, name=name)
        FolderRegistry(tmp_path / "made").publish(tmp_path / name)
    return tmp_path / "made"


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/made", recursive=True)
    yield "memory://made"
    files.rm("/made", recursive=True)


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    """The folder on a web server that knows of no ranges."""
    pytest.importorskip("aiohttp")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("maps")
    files.put(str(folder), "maps/made", recursive=True)
    yield "s3://maps/made"
    server.stop()
    type(files).clear_instance_cache()


@pytest.fixture(params=["memory", "web", "bucket"])
def url(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_it_is_read(url: str, tmp_path: Path) -> None:
    registry = open_registry(url)
    assert str(registry) == url
    assert list(map(str, registry.keys())) == ["sal/one", "sal/two"]
    assert [manifest.key for manifest in registry.manifests()] == ["sal/one", "sal/two"]
    assert verify_folder(pull("sal/one@1.0.0", registry=url))
    with pytest.raises(UsageError, match=r"no sal/onne in .*Did you mean 'sal/one'"):
        pull("sal/onne", registry=url)
    file = registry.find(Key.parse("sal/one")).entry("1.0.0", "shapes").files[0]
    with registry.open(Key.parse("sal/one"), file, 100) as stream:
        assert stream.read(5) == (tmp_path / "one" / SHARD).read_bytes()[100:105]


def test_nobody_publishes_to_a_url(memory: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"memory://made is read only\. Push .* to a folder"):
        open_registry(memory, create=True).publish(tmp_path / "one")


def test_wrong_bytes_and_missing_ones(memory: str, folder: Path) -> None:
    flip(folder / "wsssbed/sal-one" / SHARD, 40)
    files = fsspec.filesystem("memory")
    files.put(str(folder / "wsssbed/sal-one" / SHARD), f"/made/wsssbed/sal-one/{SHARD}")
    with pytest.raises(HubError, match=r"00000\.parquet: wrong bytes"):
        pull("sal/one", registry=memory)
    assert not [path for path in (Store().root / "blobs").rglob("*") if path.is_file()]
    files.rm(f"/made/wsssbed/sal-two/{SHARD}")
    with pytest.raises(HubError, match=rf"memory://made has no {SHARD}"):
        pull("sal/two", registry=memory)
    files.pipe("/made/wsssbed/sal-two/manifest.yaml", b"colour: blue")
    with pytest.raises(HubError, match=r"memory://made: sal-two/manifest\.yaml is not a valid"):
        pull("sal/two", registry=memory)


def test_what_a_web_server_does_not_have(web: str, folder: Path) -> None:
    shutil.rmtree(folder / "wsssbed/sal-two/shapes")
    with pytest.raises(HubError, match=rf"{web} has no {SHARD}|cannot be read: 404"):
        pull("sal/two", registry=web)
    with pytest.raises(HubError, match=r"^http://127\.0\.0\.1:9 cannot be reached"):
        pull("sal/two", registry="http://user:secret@127.0.0.1:9")


def test_secrets_in_a_url_stay_there(memory: str) -> None:
    with pytest.raises(UsageError, match="question mark") as error:
        open_registry("https://example.org/?token=secret")
    assert "secret" not in str(error.value)
    registry = open_registry("memory://user:secret@made")
    with pytest.raises(UsageError) as error:
        registry.find(Key.parse("sal/x"))
    assert "secret" not in f"{registry} {error.value}"


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    if "gcsfs" in os.listdir(Path(fsspec.__file__).parents[1]):
        pytest.skip("gcsfs is installed")
    with pytest.raises(HubError, match=r"gs://b needs a package that is not installed: .*gcsfs"):
        open_registry("gs://b")
