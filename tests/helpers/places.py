"""Registries of every kind, and what lies in them as somebody else sees it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import fsspec
from hubserver import HubServer
from huggingface_hub import CommitOperationAdd, HfApi

from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.registry.base import Registry
from wsssbed_hub.registry.pull import open_registry, pull

KEY = Key.parse("sal/test")
SHARD = "shapes/1.0.0/00000.parquet"


class Place(NamedTuple):
    """A registry by its address, and everything that lies there by paths such as
    ``wsssbed/sal-test/manifest.yaml``; ``hub`` is the server if it is on the Hub."""

    address: str
    hub: HubServer | None = None

    def open(self) -> Registry:
        return open_registry(self.address, create=True)

    def files(self) -> dict[str, bytes]:
        if self.hub is None:
            return everything(self.address)
        return {
            f"wsssbed/{name.partition('/')[2]}/{path}": data
            for name in self.hub.state.repositories
            for path, data in self.hub.files(name).items()
            if path not in (".gitattributes", "README.md")
        }

    def put(self, path: str, data: bytes) -> None:
        if self.hub is None:
            put(self.address, path, data)
            return
        _, name, path = path.split("/", 2)
        api, name = HfApi(), f"{self.address.removeprefix('hf:')}/{name}"
        api.create_repo(name, repo_type="dataset", exist_ok=True)
        operations = [CommitOperationAdd(path, data)]
        api.create_commit(name, operations, commit_message="x", repo_type="dataset")

    def read(self) -> dict[str, int]:
        return read(self.address)


def read(address: str | Path) -> dict[str, int]:
    """The versions that a stranger pulls and verifies, with their numbers of images."""
    registry = open_registry(address)
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
