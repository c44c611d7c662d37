"""Transfers that are interrupted and go on, beside what ``tests/test_interrupted.py`` shows of what
is written here: killed at every point, and on a disk that is known to be too small."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tinyvoc
import yaml
from hubserver import HubServer
from killing import deaths, exit_code, in_child
from places import Place
from rangeserver import RangeServer
from s3server import S3Server
from samples import IDS, key_folder, leftovers, maps_of, noise, png

from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.utils.errors import HubError

KEYS = "sal/test"
BIG = noise(0, 1200, 1200)  # 1.4 MB, and the small disk has one


@pytest.fixture
def key(tmp_path: Path) -> Path:
    key_folder(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Place:
    place = Place(str(tmp_path / "made"))
    place.open().publish(key)
    return place


@pytest.fixture
def server() -> Iterator[RangeServer]:
    server = RangeServer({"/x.zip": tinyvoc.zipped(tinyvoc.saliency())}).start()
    yield server
    server.stop()


@pytest.fixture
def release(tmp_path: Path, server: RangeServer) -> Place:
    """A registry with sal/test as a zip at a URL, in the layout of the release."""
    entry = {"source": {"url": server.url("/x.zip"), "release": "WSSS-BED"}}
    manifest = {"key": KEYS, "kind": "sal", "title": "T", "method": {"name": "M"}}
    place = Place(str(tmp_path / "release"))
    text = yaml.safe_dump(manifest | {"versions": {"1.0.0": {"shapes": entry}}})
    place.put("wsssbed/sal-test/manifest.yaml", text.encode())
    return place


@pytest.fixture
def on_the_hub(hub: HubServer, token: str, key: Path) -> Place:
    place = Place("hf:alice", hub)
    place.open().publish(key)
    return place


# Where the bytes come from, in which form they are wanted, and every how many changes of the disk
# a process is killed.
PULLS = [
    ("folder", "png", 1),
    ("release", "cache", 5),
    ("release", "png", 5),
    ("on_the_hub", "parquet", 3),
]


@pytest.mark.parametrize(("source", "form", "step"), PULLS)
def test_pulls(
    source: str, form: str, step: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(source)
    goal = tmp_path / "out"
    options: dict[str, Any] = {} if form == "cache" else {"to": goal, "as_": form}

    def work() -> None:
        pull(KEYS, registry=place.address, **options)

    for _ in deaths(work, step):
        assert not goal.exists() or len(open_artifact(goal)) == 3
        for view in (tmp_path / "cache/artifacts").glob("*/[a-z]*"):
            assert verify_folder(view)
    whole = open_artifact(pull(KEYS, registry=place.address))
    assert len(whole) == 3
    if form != "cache":
        assert open_artifact(goal).digest() == whole.digest()
    assert not leftovers(tmp_path)


def test_pushes_to_a_folder(tmp_path: Path, folder: Place) -> None:
    key_folder(tmp_path / "new", maps=maps_of("sal", ["a"]), version="1.1.0")
    seen = set()
    for _ in deaths(lambda: folder.open().publish(tmp_path / "new")):
        seen.add(len(folder.read()))
    assert 1 in seen
    assert folder.read() == {"1.0.0 shapes": 3, "1.1.0 shapes": 1}
    assert not leftovers(Path(folder.address))


def killed(arm: Callable[[Callable[[], None]], None], action: Callable[[], object]) -> int:
    """Exit code of a process that runs ``action``; ``arm`` is given what kills it."""
    victim: list[int] = []
    started = threading.Event()

    def strike() -> None:
        started.wait()
        os.kill(victim[0], signal.SIGKILL)

    arm(strike)
    victim.append(in_child(action))
    started.set()
    return exit_code(victim[0])


@pytest.mark.slow
def test_pushes_to_s3(bucket: str, s3: S3Server, tmp_path: Path, key: Path) -> None:
    """Killed at each request in turn."""
    place = Place(bucket)
    place.open().publish(key)
    for target in ("shapes", "voc12"):
        key_folder(tmp_path / "new", maps=maps_of("sal", ["a"]), target=target, version="1.1.0")
    seen, code = set(), -1
    for number in itertools.count():
        requests = itertools.count()

        def arm(strike: Callable[[], None], number: int = number, it: Any = requests) -> None:
            s3.before = lambda method, path: strike() if next(it) == number else None

        code = killed(arm, lambda: place.open().publish(tmp_path / "new"))
        s3.before = lambda method, path: None
        seen.add(len(place.read()))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert number > 8
    assert seen == {1, 3}
    assert place.read() == {"1.0.0 shapes": 3, "1.1.0 shapes": 1, "1.1.0 voc12": 1}
    assert len(place.files()) == 4


def test_pushes_to_the_hub(hub: HubServer, token: str, key: Path) -> None:
    place = Place("hf:alice", hub)
    for path in ("/create", "/preupload/", "/batch", "/upload/", "/commit/", "/tag/"):
        arm = lambda strike, path=path: hub.fail(path, first=strike)  # noqa: E731
        assert killed(arm, lambda: place.open().publish(key)) == -signal.SIGKILL
        assert len(place.files()) in (0, 2)
    place.open().publish(key)
    assert place.read() == {"1.0.0 shapes": 3}
    assert "refs/tags/1.0.0" in hub.repository("alice/sal-test").refs
    assert sorted(IDS) == open_artifact("hf:alice/sal-test@1.0.0").image_ids


def push(disk: Path, key: Path, release: Place) -> Path:
    Place(str(disk / "made")).open().publish(key)
    return pull(KEYS, registry=disk / "made")


def pull_shards(disk: Path, key: Path, release: Place) -> Path:
    Place(str(disk.parent / "made")).open().publish(key)
    os.environ["WSSSBED_CACHE"] = str(disk / "cache")
    return pull(KEYS, registry=disk.parent / "made")


def pull_release(disk: Path, key: Path, release: Place) -> Path:
    os.environ["WSSSBED_CACHE"] = str(disk / "cache")
    return pull(KEYS, registry=release.address)


@pytest.mark.parametrize("work", [push, pull_shards, pull_release])
def test_a_disk_that_is_too_small(
    work: Callable[[Path, Path, Place], Path],
    tmp_path: Path,
    server: RangeServer,
    release: Place,
    small_disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is begun where it is known how much is needed; else it goes on where it stopped."""
    disk, resize = small_disk
    monkeypatch.setenv("WSSSBED_CACHE", os.environ["WSSSBED_CACHE"])  # set back at the end
    key_folder(tmp_path / "big", maps={"a": BIG})
    server.files["/x.zip"] = tinyvoc.zipped({"a.png": png(BIG)})
    with pytest.raises(HubError, match=r"1,4\d\d,\d+ bytes are needed there and the disk has"):
        work(disk, tmp_path / "big", release)
    assert not [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size > 999]
    enough = shutil._ntuple_diskusage(9**9, 0, 9**9)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: enough)
        with pytest.raises(HubError, match=r"small-disk.*: the disk is full"):
            work(disk, tmp_path / "big", release)
    assert not list(disk.rglob("manifest.yaml"))
    resize(8 << 20)
    assert verify_folder(work(disk, tmp_path / "big", release))
    assert not leftovers(disk)
