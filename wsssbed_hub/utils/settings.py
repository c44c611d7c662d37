"""Settings of the environment: where on this machine things lie, asked for anew each time.

A variable that is set and not empty decides; else it is a folder of the user's own, which on Linux
follows ``XDG_CACHE_HOME``, ``XDG_CONFIG_HOME`` and ``XDG_DATA_HOME``.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import PlatformDirs

_USER = PlatformDirs("wsssbed-hub", appauthor=False)
_LOCK = "wsssbed.lock.yaml"


def cache_folder() -> Path:
    """``$WSSSBED_CACHE``, else the user's cache folder."""
    return _given("WSSSBED_CACHE") or _USER.user_cache_path


def data_root() -> Path:
    """``$WSSSBED_DATA``, else ``/data``: the folder with the datasets, as distributed."""
    return _given("WSSSBED_DATA") or Path("/data")


def lock_file() -> Path:
    """``$WSSSBED_LOCK``; else ``wsssbed.lock.yaml`` in the current folder, if it is there; else in
    the user's configuration folder."""
    here = Path(_LOCK).absolute()
    own = here if here.is_file() else _USER.user_config_path / _LOCK
    return _given("WSSSBED_LOCK") or own


def registries() -> str:
    """``$WSSSBED_REGISTRY``: registries with commas between them; empty if it is not set."""
    return os.environ.get("WSSSBED_REGISTRY", "")


def registry_list() -> Path:
    """The file with the registries that the user has added."""
    return _USER.user_config_path / "registries"


def own_registry() -> Path:
    """The folder that is published to if nothing else is said."""
    return _USER.user_data_path / "registry"


def _given(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None
