"""What all tests share: their own cache and registry, and a disk that is soon full."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hubserver import HubServer
from huggingface_hub import close_session, constants
from samples import key_folder

from wsssbed_hub.hub import HubRegistry

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as stages/__main__.py; tests share the cores


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the cache and the registry of the person who runs it."""
    monkeypatch.setenv("WSSSBED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WSSSBED_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("WSSSBED_LOCK", str(tmp_path / "lock" / "wsssbed.lock.yaml"))


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
