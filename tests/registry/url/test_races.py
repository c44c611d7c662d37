"""Publishing at URLs at the same time as others, or until killed: S3 (moto's server through s3fs),
Google Cloud Storage (gcsfs against a server on loopback), and drivers without conditions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gcsserver import GcsServer
from places import KEY, everything, read
from s3server import S3Server
from samples import key_folder, maps_of

from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.registry.pull import open_registry
from wsssbed_hub.registry.url.registry import UrlRegistry
from wsssbed_hub.utils.errors import HubError


def interrupt(server: Any, ending: str, action: Callable[[], object]) -> list[str]:
    """Has ``action`` done just before the server handles the first write of such a path."""
    done: list[str] = []

    def before(method: str, path: str) -> None:
        is_write = method == ("PUT" if isinstance(server, S3Server) else "POST")
        if is_write and (path.endswith(ending) or path.endswith("/o")) and not done:
            server.before = lambda method, path: None
            done.append(path)
            action()

    server.before = before
    return done


@pytest.mark.parametrize("ending", ["00000.parquet", "manifest.yaml"])
@pytest.mark.parametrize("first", [True, False])
def test_two_publishers_at_the_same_time(
    bucket: str, s3: S3Server, tmp_path: Path, ending: str, first: bool
) -> None:
    """One publishes all of its version while the other is about to write; both are there."""
    if not first:
        key_folder(tmp_path / "zero", version="0.1.0")
        open_registry(bucket).publish(tmp_path / "zero")
    key_folder(tmp_path / "one", version="1.0.0")
    key_folder(tmp_path / "two", maps=maps_of("sal", ["a"]), version="2.0.0", target="voc12")
    done = interrupt(s3, ending, lambda: open_registry(bucket).publish(tmp_path / "two"))
    open_registry(bucket).publish(tmp_path / "one")
    assert done
    both = {"1.0.0 shapes": 3, "2.0.0 voc12": 1}
    assert read(bucket) == both | ({} if first else {"0.1.0 shapes": 3})


@pytest.mark.parametrize("ending", ["00000.parquet", "manifest.yaml"])
def test_two_publish_the_same_version(
    bucket: str, s3: S3Server, tmp_path: Path, ending: str
) -> None:
    """The one that is later gets an error, and the files of the other stay as they are."""
    key_folder(tmp_path / "one")
    key_folder(tmp_path / "two", maps=maps_of("sal", ["a"]))
    done = interrupt(s3, ending, lambda: open_registry(bucket).publish(tmp_path / "two"))
    with pytest.raises(HubError, match="other content"):
        open_registry(bucket).publish(tmp_path / "one")
    assert done
    assert read(bucket) == {"1.0.0 shapes": 1}


def test_two_publish_the_same(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    again = lambda: open_registry(bucket).publish(tmp_path / "key")  # noqa: E731
    done = interrupt(s3, "00000.parquet", again)
    assert again()
    assert done
    assert read(bucket) == {"1.0.0 shapes": 3}
    assert len(everything(bucket)) == 2


@pytest.mark.parametrize("first", [True, False])
def test_two_publishers_at_google(google: str, gs: GcsServer, tmp_path: Path, first: bool) -> None:
    if not first:
        key_folder(tmp_path / "zero", version="0.1.0")
        open_registry(google).publish(tmp_path / "zero")
    key_folder(tmp_path / "one", version="1.0.0")
    key_folder(tmp_path / "two", maps=maps_of("sal", ["a"]), version="1.0.0", target="voc12")
    # gcsfs names the file in the request's body, so all writes have the same path: the second one
    # is the manifest's.
    writes = iter(range(2))

    def before(method: str, path: str) -> None:
        if method == "POST" and next(writes, None) == 1:
            open_registry(google).publish(tmp_path / "two")

    gs.before = before
    open_registry(google).publish(tmp_path / "one")
    both = {"1.0.0 shapes": 3, "1.0.0 voc12": 1}
    assert read(google) == both | ({} if first else {"0.1.0 shapes": 3})
    assert len([name for name in gs.writes if name.endswith("manifest.yaml")]) == 3 - first


@pytest.mark.parametrize("name", ["memory", "plain"])
def test_threads_take_turns(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue(name)
    for number in range(6):
        key_folder(tmp_path / str(number), version=f"1.{number}.0")
    threads = [
        threading.Thread(target=lambda n=n: UrlRegistry(url).publish(tmp_path / str(n)))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(url)) == 6


@pytest.mark.parametrize("moment", ["open", "mv"])
def test_a_store_that_loses_an_update(plain: str, tmp_path: Path, moment: str) -> None:
    """Without conditions: another process publishes while files are sent; or it writes its manifest
    right after this one, made from what it had read before."""
    key_folder(tmp_path / "one", version="1.0.0")
    key_folder(tmp_path / "two", version="2.0.0")
    registry = UrlRegistry(plain)
    action = getattr(registry.place.files, moment)
    done = []

    def interfere(*arguments: Any, **options: Any) -> Any:
        found = action(*arguments, **options)
        if not done:
            done.append(arguments)
            text = read_manifest(tmp_path / "two").dump().encode()
            registry.place.files.pipe_file(registry.place.path(KEY), text)
        return found

    setattr(registry.place.files, moment, interfere)
    registry.publish(tmp_path / "one")
    assert done
    assert list(registry.find(KEY).versions) == ["1.0.0", "2.0.0"]
