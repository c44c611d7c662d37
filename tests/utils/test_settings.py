"""Where things lie: what the environment says, else the user's own folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsssbed_hub.utils import settings

NAMES = ("CACHE", "REGISTRY", "LOCK", "DATA")
XDG = ("CACHE", "CONFIG", "DATA")


@pytest.fixture(autouse=True)
def _nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"WSSSBED_{n}" for n in NAMES), *(f"XDG_{n}_HOME" for n in XDG)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)


def places() -> dict[str, str]:
    return {
        "cache": str(settings.cache_folder()),
        "data": str(settings.data_root()),
        "lock": str(settings.lock_file()),
        "list": str(settings.registry_list()),
        "own": str(settings.own_registry()),
        "registries": settings.registries(),
    }


OWN = {
    "cache": "/home/me/.cache/wsssbed-hub",
    "data": "/data",
    "lock": "/home/me/.config/wsssbed-hub/wsssbed.lock.yaml",
    "list": "/home/me/.config/wsssbed-hub/registries",
    "own": "/home/me/.local/share/wsssbed-hub/registry",
    "registries": "",
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"XDG_CACHE_HOME": "/b"}, {"cache": "/b/wsssbed-hub"}),
        ({"XDG_CACHE_HOME": "/b", "WSSSBED_CACHE": "/a"}, {"cache": "/a"}),
        ({"WSSSBED_CACHE": "", "WSSSBED_LOCK": "", "WSSSBED_DATA": ""}, {}),
        (
            {"XDG_CONFIG_HOME": "/c"},
            {"lock": "/c/wsssbed-hub/wsssbed.lock.yaml", "list": "/c/wsssbed-hub/registries"},
        ),
        ({"XDG_DATA_HOME": "/d"}, {"own": "/d/wsssbed-hub/registry"}),
        ({"WSSSBED_LOCK": "here.yaml", "WSSSBED_DATA": "d"}, {"lock": "here.yaml", "data": "d"}),
        ({"WSSSBED_REGISTRY": "/x,hf:me"}, {"registries": "/x,hf:me"}),
    ],
)
def test_where_things_lie_on_linux(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert places() == OWN | expected


def test_a_lock_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wsssbed.lock.yaml").touch()
    assert settings.lock_file() == tmp_path / "wsssbed.lock.yaml"
    monkeypatch.setenv("WSSSBED_LOCK", "/other.yaml")
    assert settings.lock_file() == Path("/other.yaml")
