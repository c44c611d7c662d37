"""A cache with something in it, and processes that use it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from killing import exit_code, in_child
from samples import key_folder, noise

from wsssbed_hub.cache.scan import Contents
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.pull import pull

SHARD = "shapes/1.0.0/00000.parquet"


def publish(tmp_path: Path, name: str, seed: int, version: str = "1.0.0") -> None:
    folder = tmp_path / "made" / f"{name}-{version}"
    key_folder(folder, maps={"a": noise(seed, 40, 40)}, name=name, version=version)
    FolderRegistry(tmp_path / "registry").publish(folder)


def fetch(*names: str, to: Path | None = None) -> None:
    """Pulls in a process of its own, which uses what it pulled until it ends."""

    def action() -> None:
        for name in names:
            pull(name, to=to)

    assert exit_code(in_child(action)) == 0


def fill(tmp_path: Path) -> Path:
    """A cache with sal/one in two versions, and sal/two and sal/same with the same maps."""
    for name, seed, version in (
        ("one", 1, "1.0.0"),
        ("one", 2, "1.1.0"),
        ("two", 3, "1.0.0"),
        ("same", 3, "1.0.0"),
    ):
        publish(tmp_path, name, seed, version)
    fetch("sal/one@1.0.0", "sal/one", "sal/two", "sal/same")
    return tmp_path / "cache"


@contextmanager
def busy(action: Callable[[Callable[[], None]], object]) -> Iterator[None]:
    """``action`` is at work in another process: it calls what it is given, and comes back from that
    when this ends."""
    told, tell = os.pipe()
    wait, release = os.pipe()

    def hold() -> None:
        os.write(tell, b"x")
        os.read(wait, 1)

    def run() -> None:
        os.close(release)
        action(hold)

    pid = in_child(run)
    os.close(wait)
    os.close(tell)
    assert os.read(told, 1) == b"x"
    try:
        yield
    finally:
        os.close(release)
        assert exit_code(pid) == 0
        os.close(told)


def names(contents: Contents) -> list[str]:
    return [str(artifact.key) for artifact in contents.artifacts]


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
