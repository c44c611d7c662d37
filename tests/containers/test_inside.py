"""A stage that finds itself in its image asks for folders to be mounted before anything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wsssbed_hub.containers.inside import require_mounts
from wsssbed_hub.utils.errors import UsageError

IMAGE = "wsssbed/sod-vst:0.1.0"
ROOT = "1 0 0:40 / / rw,relatime - overlay overlay rw"
PROC = "2 1 0:41 / /proc rw,nosuid - proc proc rw"


@pytest.fixture(autouse=True)
def image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WSSSBED_IMAGE", IMAGE)
    monkeypatch.setenv("WSSSBED_DATA", str(tmp_path / "data"))  # this machine may have a /data
    (tmp_path / "data").mkdir()


def check(tmp_path: Path, points: list[str], *arguments: str) -> None:
    """As in a container with these mounts, on whose root file system the image lies."""
    lines = [f"{n} 1 8:1 /home/me {point} rw - ext4 /dev/sda1 rw" for n, point in enumerate(points)]
    kernel = tmp_path / "mountinfo"
    kernel.write_text("\n".join([ROOT, PROC, *lines]) + "\n")
    require_mounts("sod-vst", arguments, mounts=kernel)


def test_without_mounts_the_error_gives_the_whole_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        check(tmp_path, [], "--data", "duts", "--set", "steps=1 2")
    said = str(raised.value)
    assert raised.value.exit_code == 2
    assert "Nothing is mounted at /data and /artifacts" in said
    command = said[said.index("docker run") : said.index("\n\n(")].replace(" \\\n", "")
    for words in (
        "--gpus all",
        "--user $(id -u):$(id -g)",
        '-v "$PWD/data:/data:ro"',
        '-v "$PWD/artifacts:/artifacts"',
    ):
        assert words in command
    assert command.endswith(f"{IMAGE} --data duts --set 'steps=1 2'")


@pytest.mark.parametrize(
    ("points", "missing"),
    [("{data}", "/artifacts in"), ("/artifacts", "/data in"), ("/data-and-more", "/data and")],
)
def test_one_alone_is_not_enough(tmp_path: Path, points: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"mounted at {missing}"):
        check(tmp_path, [points.format(data=tmp_path / "data")], "--data", "duts")


@pytest.mark.parametrize(
    "points",
    [
        ["{data}", "/artifacts"],
        ["{data}/VOCdevkit", "/artifacts/sal"],
        ["{data}/with\\040space", "/artifacts"],
    ],
)
def test_with_both_it_goes_on(tmp_path: Path, points: list[str]) -> None:
    check(tmp_path, [point.format(data=tmp_path / "data") for point in points], "--data", "duts")


def test_data_in_an_image_of_ones_own_will_do(tmp_path: Path) -> None:
    (tmp_path / "data/DUTS-TR").mkdir()
    check(tmp_path, ["/artifacts"], "--data", "duts")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["--data", "duts", "--data-root", "/x", "--out=/y"]]
)
def test_nothing_is_required_for_help_or_for_other_folders(
    tmp_path: Path, arguments: list[str]
) -> None:
    check(tmp_path, [], *arguments)


def test_outside_of_an_image_nothing_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WSSSBED_IMAGE")
    check(tmp_path, [], "--data", "duts")


def test_the_program_asks_before_it_imports_torch() -> None:
    program = (
        "import sys; from stages.__main__ import main; code = main(['sod-vst', '--data', 'duts']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "docker run" in done.stderr
