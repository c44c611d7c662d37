"""What all tests share: their own cache and registry, and a disk that is soon full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import hypothesis
import pytest
from hubserver import HubServer
from huggingface_hub import close_session, constants
from samples import Hub, Outcome, key_folder

from wsssbed_hub.cli import app as cli
from wsssbed_hub.registry.hub.registry import HubRegistry

if TYPE_CHECKING:
    from gcsserver import GcsServer
    from s3server import S3Server

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as stages/__main__.py; tests share the cores
# How long an example takes says more of what else runs on the machine.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")
# A shell lets what it starts in the background ignore Ctrl-C, and tests send it to their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the cache and the registry of the person who runs it, or depends on
    the width of a window."""
    monkeypatch.setenv("WSSSBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WSSSBED_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("WSSSBED_LOCK", str(tmp_path / "lock" / "wsssbed.lock.yaml"))
    monkeypatch.delenv("COLUMNS", raising=False)  # processes of the test runner have it


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Hub:
    """Runs the command line in this process, through its real entry point."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["wsssbed-hub", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Outcome(int(end.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file system of 1 MiB, and a function that gives it another size in bytes."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={1 << 20}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here (not root?): {error}")

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield folder, resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on loopback that the client of this process and of its children talks to.

    Nobody is signed in; HF_TOKEN in the environment does that.
    """
    server = HubServer(tmp_path / "hub").start()
    home = tmp_path / "hf"
    settings = {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_XET": True,
        "DOWNLOAD_CHUNK_SIZE": 100_000,  # what is kept of a cut download is a multiple of it
    }
    for name, value in settings.items():  # the client has read its environment long ago
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield server
    close_session()
    server.stop()


@pytest.fixture
def token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Alice, signed in."""
    token = hub.user("alice")
    monkeypatch.setenv("HF_TOKEN", token)
    return token


@pytest.fixture
def registry(token: str) -> HubRegistry:
    """Her namespace."""
    return HubRegistry("alice")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited, which nobody waits."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def published(tmp_path: Path, registry: HubRegistry) -> HubRegistry:
    """Her namespace, with sal/test@1.0.0 as it is in ``tmp_path / "key"``."""
    key_folder(tmp_path / "key")
    registry.publish(tmp_path / "key")
    return registry


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """S3 on loopback, with one bucket, that s3fs talks to."""
    import s3server  # moto takes a second to be imported

    server = s3server.S3Server().start()
    s3server.use(server.endpoint, monkeypatch).mkdir(s3server.BUCKET)
    server.requests.clear()
    yield server
    server.stop()
    s3server.forget()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A registry there that is empty."""
    return "s3://maps/made"


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    """Google Cloud Storage on loopback, with one bucket, that gcsfs talks to."""
    import gcsserver

    server = gcsserver.GcsServer().start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # nor look for Google's machines
    yield server
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    server.stop()


@pytest.fixture
def google(gs: GcsServer) -> str:
    """A registry there that is empty."""
    return "gs://maps/made"


@pytest.fixture
def memory() -> Iterator[str]:
    """A registry in memory that is empty."""
    yield "memory://made"
    files = fsspec.filesystem("memory")
    if files.exists("/made"):
        files.rm("/made", recursive=True)


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty registry at a URL whose driver knows of no conditions: files on this disk, as on a
    server that one signs in to."""
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    class Plain(DirFileSystem):
        protocol = "plain"

        def __init__(self, **options: object) -> None:
            super().__init__(path=os.environ["PLAIN_ROOT"], fs=LocalFileSystem())

    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("PLAIN_ROOT", str(tmp_path / "plain"))
    fsspec.register_implementation("plain", Plain, clobber=True)
    yield "plain://made"
    Plain.clear_instance_cache()
