"""What lies in a registry at a URL, seen by somebody else."""

from __future__ import annotations

import fsspec

from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.registry.pull import open_registry, pull

KEY = Key.parse("sal/test")
SHARD = "shapes/1.0.0/00000.parquet"


def read(url: str) -> dict[str, int]:
    """The versions that a stranger pulls and verifies, with their numbers of images."""
    registry = open_registry(url)
    found = {}
    for version, target, entry in registry.find(KEY).entries():
        assert verify_folder(pull(KEY.at(version), target, registry=registry))
        found[f"{version} {target}"] = entry.images or 0
    return found


def everything(url: str) -> dict[str, bytes]:
    """Everything that lies there, by its path below the registry."""
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    paths = files.find(root) if files.exists(root) else []
    return {path.partition(root.strip("/") + "/")[2]: files.cat_file(path) for path in paths}


def put(url: str, path: str, data: bytes) -> None:
    files, root = fsspec.core.url_to_fs(url)
    if not url.startswith(("s3", "gs")):
        files.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
    files.pipe_file(f"{root}/{path}", data)
