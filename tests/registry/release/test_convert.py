"""Zips of a release, converted by several processes: the same bytes, whatever happens to them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tinyvoc
import yaml
from killing import deaths, exit_code, in_child
from rangeserver import RangeServer
from samples import leftovers, noise, png
from typer.testing import CliRunner

from wsssbed_hub.cli.app import app
from wsssbed_hub.datasets import TARGETS
from wsssbed_hub.registry.pull import pull, verify
from wsssbed_hub.registry.release.lockfile import read_lock
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.settings import lock_file

IMAGES = 200  # in four parts
PATH = "/act_maps/CAM.zip"


def activations() -> dict[str, bytes]:
    """Two maps of each image: some of one value only, some of 0 and 1."""
    found = {}
    for number in range(IMAGES):
        for c in (number % 5, 5):
            pixels = noise(1000 * c + number, 20, 30)
            if number % 25 == 1:
                pixels = pixels // 128
            found[f"i{number:03d}_{c}.png"] = png(pixels if number % 10 else 0 * pixels)
    return found


@pytest.fixture(scope="module")
def data() -> bytes:
    return tinyvoc.zipped(activations(), "CAM/")


@pytest.fixture
def server(data: bytes) -> Iterator[RangeServer]:
    server = RangeServer({PATH: data}).start()
    yield server
    server.stop()


@pytest.fixture
def index(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry with the manifest of the zip."""
    monkeypatch.setenv("WSSSBED_DATA", str(tmp_path / "no-data"))
    entry = {"source": {"url": server.url(PATH), "release": "WSSS-BED"}}
    manifest = {"key": "cam/cam", "kind": "cam", "title": "T", "method": {"name": "M"}}
    path = tmp_path / "index" / "wsssbed" / "cam-cam" / "manifest.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(manifest | {"versions": {"1.0.0": {"shapes": entry}}}))
    return str(tmp_path / "index")


def cache() -> Path:
    return Path(os.environ["WSSSBED_CACHE"])


def processes() -> list[int]:
    """Those that this process has started, and that run."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            for pid in (task / "children").read_text().split():
                if "release.convert" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
    return found


def pin() -> dict[str, Any]:
    found = read_lock(lock_file()).pins["cam/cam@1.0.0"]["shapes"].model_dump(mode="json")
    return {name: value for name, value in found.items() if name != "date"}


def test_the_same_bytes_from_any_number_of_processes(
    index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests, pins, most = [], [], 0
    for jobs in (1, 3):
        monkeypatch.setenv("WSSSBED_CACHE", str(tmp_path / f"cache-{jobs}"))
        monkeypatch.setenv("WSSSBED_LOCK", str(tmp_path / f"lock-{jobs}.yaml"))
        steps: list[tuple[int, int]] = []

        def progress(done: int, of: int, steps: Any = steps, jobs: int = jobs) -> None:
            nonlocal most
            steps.append((done, of))
            if jobs == 3:
                most = max(most, len(processes()))

        folder = pull("cam/cam", registry=index, jobs=jobs, progress=progress)
        manifests.append((folder / "manifest.yaml").read_bytes())
        pins.append(pin())
        assert steps[-1][0] == steps[-1][1]
        assert len(steps) > IMAGES
        assert verify(folder)
        assert not leftovers(cache())
        assert not list((cache() / "downloads").iterdir())
    assert manifests[0] == manifests[1]
    assert pins[0] == pins[1]
    assert pins[0]["remarks"] == [
        "maps of one value only: i000, i010, i020, i030, i040 and 15 more",
        "maps without a value above 1, written as 0..1?: i001, i026, i051, i076, i101 and 3 more",
    ]
    assert most >= 2
    assert processes() == []


@pytest.mark.slow
def test_killed_anywhere_it_goes_on(index: str) -> None:
    """Processes that outlive the one that was killed come to an end, and disturb nobody."""
    died = list(deaths(lambda: pull("cam/cam", registry=index, jobs=2), step=5))
    assert len(died) > 5
    assert verify(pull("cam/cam", registry=index, jobs=2))
    assert not leftovers(cache())


def test_one_of_them_is_killed(index: str) -> None:
    def kill(done: int, of: int) -> None:
        for pid in processes()[:1]:
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(HubError, match=r"ended with signal 9, as where memory runs out.*goes on"):
        pull("cam/cam", registry=index, jobs=2, progress=kill)
    assert processes() == []
    assert list((cache() / "downloads").iterdir())  # nothing is wrong with the zip
    assert verify(pull("cam/cam", registry=index, jobs=2))


@pytest.mark.parametrize("image", ["i003", "i199"])
def test_a_damaged_map_is_blamed_on_the_zip(
    index: str, server: RangeServer, data: bytes, image: str
) -> None:
    maps = activations()
    name = next(name for name in maps if name.startswith(image))
    server.files[PATH] = tinyvoc.zipped({**maps, name: maps[name][:-30]})
    with pytest.raises(HubError, match=rf"does not hold the maps of cam/cam.*{image}.*cut short"):
        pull("cam/cam", registry=index, jobs=3)
    assert processes() == []
    assert not list((cache() / "downloads").iterdir())
    server.files[PATH] = data
    assert verify(pull("cam/cam", registry=index, jobs=3))


def test_sizes_are_compared_with_those_of_the_images(
    index: str, server: RangeServer, tmp_path: Path
) -> None:
    """``--data-root`` says where the target is."""
    tinyvoc.make_target(tmp_path / "data", TARGETS["shapes"].classes)

    def run() -> str:
        command = ["pull", "cam/cam", "--registry", index, "--data-root", str(tmp_path / "data")]
        done = CliRunner().invoke(app, command)
        return str(done.exception)

    assert "images that shapes does not have: i000" in run()
    wrong = tinyvoc.activations() | {"c3_5.png": png(noise(1, 7, 7))}
    server.files[PATH] = tinyvoc.zipped(wrong)
    assert "the map of image c3 is 7 x 7 pixels, the image is 6 x 8" in run()
    server.files[PATH] = tinyvoc.zipped(tinyvoc.activations())
    assert run() == "None"
    assert pin()["checked"] == ["ids", "sizes", "classes"]


def test_a_disk_that_fills_is_not_the_zips_fault(
    index: str, small_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, resize = small_disk
    monkeypatch.setenv("WSSSBED_CACHE", str(disk / "cache"))
    resize(1_000_000 // 2)
    with pytest.raises(HubError, match=r"disk is full|are needed there"):
        pull("cam/cam", registry=index, jobs=2)
    resize(8 << 20)
    assert verify(pull("cam/cam", registry=index, jobs=2))


def test_several_pulls_at_once(index: str, server: RangeServer) -> None:
    def run() -> None:
        assert verify(pull("cam/cam", registry=index, jobs=2))

    children = [in_child(run) for _ in range(2)]
    assert [exit_code(pid) for pid in children] == [0, 0]
    assert len(server.requests) == 1


def test_from_a_script_without_more_ado(index: str, tmp_path: Path) -> None:
    """One that calls at its top level, and lies beside files named as what the processes need."""
    script = tmp_path / "place" / "script.py"
    script.parent.mkdir()
    (script.parent / "json.py").write_text("raise SystemExit('not this one')")
    script.write_text(
        "import sys; sys.path.pop(0)\n"
        "import wsssbed_hub\n"
        f"print(wsssbed_hub.pull('cam/cam', registry={index!r}, jobs=2))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=script.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert verify(Path(done.stdout.strip()))


@pytest.mark.slow
def test_interrupted_at_the_keyboard(index: str, server: RangeServer, tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of the terminal. One ends the others, and says no more."""
    big = {f"i{n:04d}_0.png": png(noise(n, 200, 200), compress_level=0) for n in range(1000)}
    server.files[PATH] = tinyvoc.zipped(big)
    command = [sys.executable, "-m", "wsssbed_hub", "pull", "cam/cam", "--registry", index]
    child = subprocess.Popen([*command, "--jobs", "2"], stderr=subprocess.PIPE, process_group=0)
    try:
        while not list(cache().rglob("00000.parquet")):
            assert child.poll() is None
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=30)  # which the last of them closes
        assert child.returncode != 0
        assert b"Traceback" not in said
    finally:
        child.kill()
    shutil.rmtree(cache())
