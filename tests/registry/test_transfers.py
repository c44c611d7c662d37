"""Several files of one artifact, from the Hub and to it: at once, stopped, and gone on with."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from hubserver import HubServer
from huggingface_hub import CommitOperationAdd, HfApi
from killing import exit_code, in_child
from samples import key_folder, leftovers, maps_of, noise

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.cache.store import Store
from wsssbed_hub.registry.hub.registry import HubRegistry
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.utils.errors import HubError

NAME = "alice/sal-many"
DIGEST = "sha256:" + "0" * 64  # of maps that nobody opens
SIZE = 3_000_000
FILES = [f"shapes/1.0.0/{number:05d}.parquet" for number in range(4)]


@pytest.fixture
def many(tmp_path: Path, hub: HubServer, token: str) -> Path:
    """A folder with four files, which are on the Hub as sal/many."""
    folder = tmp_path / "many"
    entries = []
    for number, path in enumerate(FILES):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(noise(number, 1000, SIZE // 1000).tobytes())
        entries.append({"path": path, "size": SIZE, "sha256": file_digest(place)})
    entry = {"images": 1, "image_list": DIGEST, "content": DIGEST, "files": entries}
    manifest = {"key": "sal/many", "kind": "sal", "title": "T", "method": {"name": "M"}}
    text = yaml.safe_dump(manifest | {"versions": {"1.0.0": {"shapes": entry}}})
    additions = [CommitOperationAdd(path, folder / path) for path in FILES]
    additions.append(CommitOperationAdd("manifest.yaml", text.encode()))
    HfApi().create_repo(NAME, repo_type="dataset")
    HfApi().create_commit(NAME, additions, commit_message="x", repo_type="dataset")
    hub.requests.clear()
    return folder


def same(folder: Path, original: Path) -> bool:
    return all((folder / path).read_bytes() == (original / path).read_bytes() for path in FILES)


def partials() -> list[int]:
    return sorted(path.stat().st_size for path in Store().root.rglob("*.partial"))


def storage(number: int) -> str:
    """What the requests for one file's bytes look like."""
    return f"/storage/.*{number:05d}"


@pytest.mark.parametrize("jobs", [None, 4, 2])
def test_files_are_fetched_at_once(many: Path, hub: HubServer, jobs: int | None) -> None:
    """The server answers none before so many have been asked for."""
    gate = threading.Barrier(jobs or 4)
    hub.fail("/storage/", times=4, first=lambda: gate.wait(30))
    steps: list[tuple[int, int]] = []

    def progress(done: int, of: int) -> None:
        steps.append((done, of))

    folder = pull("sal/many", registry="hf:alice", jobs=jobs, progress=progress)
    assert same(folder, many)
    assert steps == sorted(steps)
    assert steps[-1] == (4 * SIZE, 4 * SIZE)
    assert not leftovers(Store().root)


def test_one_at_a_time(many: Path, hub: HubServer) -> None:
    here: list[int] = []

    def alone() -> None:
        here.append(1)
        time.sleep(0.05)
        assert here == [1]
        here.clear()

    hub.fail("/storage/", times=4, first=alone)
    assert same(pull("sal/many", registry="hf:alice", jobs=1), many)
    assert here == []


def test_files_with_the_same_bytes_are_fetched_once(hub: HubServer, many: Path) -> None:
    text = yaml.safe_load(hub.files(NAME)["manifest.yaml"])
    files = text["versions"]["1.0.0"]["shapes"]["files"]
    for file in files:
        file["sha256"] = files[0]["sha256"]
    changed = [CommitOperationAdd(path, many / FILES[0]) for path in FILES]
    changed.append(CommitOperationAdd("manifest.yaml", yaml.safe_dump(text).encode()))
    HfApi().create_commit(NAME, changed, commit_message="x", repo_type="dataset")
    folder = pull("sal/many", registry="hf:alice")
    assert {(folder / path).read_bytes() for path in FILES} == {(many / FILES[0]).read_bytes()}
    assert hub.count("/storage/") == 1


def test_wrong_bytes_of_one_leave_the_others_for_later(many: Path, hub: HubServer) -> None:
    """The bad file comes when two others have a million bytes and hear nothing more."""
    hang = threading.Event()
    arrived = threading.Barrier(3)

    def wait() -> None:
        arrived.wait(30)
        hang.wait(30)

    for number in (1, 2):
        hub.fail(storage(number), drop_after=1_000_000)
        hub.fail(storage(number), first=wait)
    hub.fail(storage(0), flip=40, first=lambda: arrived.wait(30))
    with pytest.raises(HubError, match=r"00000\.parquet: wrong bytes.*Nothing of it was kept"):
        pull("sal/many", registry="hf:alice", jobs=3)
    hub.requests.clear()
    hang.set()
    assert same(pull("sal/many", registry="hf:alice"), many)
    asked = {r.path.partition("?name=")[2]: r.range for r in hub.requests if "/storage/" in r.path}
    assert asked[FILES[0]] is None  # nothing of it was kept
    for path in FILES[1:3]:
        begin = re.fullmatch(r"bytes=(\d+)-", asked[path] or "")
        assert begin is not None
        assert int(begin[1]) >= 1_000_000
    assert not leftovers(Store().root)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_the_server_says_nothing(
    tmp_path: Path, many: Path, hub: HubServer, number: int
) -> None:
    """All four have a million bytes and wait for more. The command ends, and goes on later."""
    hang = threading.Event()
    waiting = threading.Barrier(5)

    def wait() -> None:
        waiting.wait(60)
        hang.wait(60)

    for file in range(4):
        hub.fail(storage(file), drop_after=1_000_000)
        hub.fail(storage(file), first=wait)
    program = """if True:
        from huggingface_hub import constants
        from wsssbed_hub.cli.app import main
        constants.DOWNLOAD_CHUNK_SIZE = 100_000
        main()
    """
    command = [sys.executable, "-c", program, "pull", "sal/many", "--registry", "hf:alice"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    waiting.wait(60)
    start = time.monotonic()
    os.kill(child.pid, number)
    _, said = child.communicate(timeout=30)
    assert child.returncode != 0
    assert time.monotonic() - start < 15
    assert b"Traceback" not in said
    hang.set()
    have = partials()
    if number == signal.SIGINT:  # else the last piece may not have been written
        assert have == [1_000_000] * 4
    hub.requests.clear()
    assert same(pull("sal/many", registry="hf:alice"), many)
    asked = [r.range for r in hub.requests if "/storage/" in r.path]
    assert sorted(map(str, asked)) == sorted(f"bytes={n}-" if n else "None" for n in have)


def test_stopped_while_xet_says_nothing(
    hub: HubServer, published: HubRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client waits where no signal comes in."""
    hub.offer_xet("alice/sal-test", FILES[0])
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.state.cas = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "wsssbed_hub", "pull", "hf:alice/sal-test"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        silent.accept()
        os.kill(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode != 0
    assert b"Traceback" not in said


def test_pulls_of_several_processes(many: Path, hub: HubServer) -> None:
    """Each file comes once, whoever fetches it, although all begin with the same one."""
    children = [in_child(lambda: pull("sal/many", registry="hf:alice")) for _ in range(3)]
    assert [exit_code(pid) for pid in children] == [0] * 3
    assert hub.count("/storage/") == 4
    assert same(pull("sal/many", registry="hf:alice"), many)


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """A key folder with three versions, and so three files."""
    for number in range(3):
        maps = maps_of("sal", [f"a{number}"], height=600, width=600)
        key_folder(tmp_path / "key", maps=maps, version=f"1.{number}.0")
    return tmp_path / "key"


def test_files_are_sent_at_once(versions: Path, hub: HubServer, registry: HubRegistry) -> None:
    gate = threading.Barrier(3)
    hub.fail("/upload/", times=3, first=lambda: gate.wait(30))
    steps: list[tuple[int, int]] = []
    registry.publish(versions, progress=lambda done, of: steps.append((done, of)))
    assert steps == sorted(steps)
    total = steps[-1][1]
    assert steps[-1] == (total, total)
    half_way = [done for done, _ in steps if total / 2 < done < total]
    assert len(half_way) > 3  # not only as each file is through
    assert all(verify_folder(pull(f"hf:alice/sal-test@1.{n}.0")) for n in range(3))


def test_a_failed_file_ends_the_push_and_the_rest_is_not_sent_again(
    versions: Path, hub: HubServer, registry: HubRegistry, waits: list[float]
) -> None:
    def others_are_through() -> None:
        while len(hub.repository("alice/sal-test").large) < 2:
            threading.Event().wait(0.01)

    hub.fail("/upload/", status=403, first=others_are_through)
    with pytest.raises(HubError, match=r"does not allow this"):
        registry.publish(versions)
    assert sorted(hub.files("alice/sal-test")) == [".gitattributes"]
    hub.requests.clear()
    registry.publish(versions)
    assert hub.count("/upload/", "PUT") == 1
    assert len(registry.find(registry.keys()[0]).versions) == 3
