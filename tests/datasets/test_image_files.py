from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from killing import deaths, exit_code, in_child

from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import check_room, exclusive, expect_trouble, write_whole
from wsssbed_hub.utils.progress import share


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    for _ in deaths(lambda: write_whole(path, b"new")):
        assert path.read_text() in ("old", "new")
    assert path.read_text() == "new"


def test_a_file_in_pieces(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", iter([b"a", b"", b"bc"]))
    assert (tmp_path / "x").read_bytes() == b"abc"


@pytest.mark.parametrize("folder", [False, True])
def test_one_process_at_a_time(tmp_path: Path, folder: bool) -> None:
    """Each of eight reads a number and, a little later, writes the next."""
    count = tmp_path / "count"
    count.write_text("0")

    def add() -> None:
        with exclusive(tmp_path / "below" / "lock", folder=folder):
            number = int(count.read_text())
            time.sleep(0.01)
            count.write_text(str(number + 1))

    assert [exit_code(pid) for pid in [in_child(add) for _ in range(8)]] == [0] * 8
    assert count.read_text() == "8"


@pytest.mark.parametrize("folder", [False, True])
def test_the_lock_goes_along_with_a_rename(tmp_path: Path, folder: bool) -> None:
    """Who waited finds that the thing is gone, and makes another."""
    path, goal = tmp_path / "x.partial", tmp_path / "x"

    def make() -> None:
        with exclusive(path, folder=folder):
            time.sleep(0.02)
            if goal.exists():
                os.rename(path, tmp_path / f"spare-{os.getpid()}")
            else:
                os.rename(path, goal)

    assert [exit_code(pid) for pid in [in_child(make) for _ in range(4)]] == [0] * 4
    assert len(list(tmp_path.glob("spare-*"))) == 3


@pytest.mark.parametrize("folder", [False, True])
def test_many_renames_at_once(tmp_path: Path, folder: bool) -> None:
    """What is made is gone again before the others look."""

    def make() -> None:
        for number in range(40):
            with exclusive(tmp_path / "x", folder=folder):
                os.rename(tmp_path / "x", tmp_path / f"x-{os.getpid()}-{number}")

    assert [exit_code(pid) for pid in [in_child(make) for _ in range(6)]] == [0] * 6
    assert len(list(tmp_path.iterdir())) == 240


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "/x: the disk is full; 1,234 bytes are needed there"),
        (errno.EDQUOT, "/x: the disk is full"),
        (errno.EACCES, "/x cannot be written: Permission denied"),
        (errno.EROFS, "/x cannot be written: Read-only"),
    ],
)
def test_expected_trouble_is_said(number: int, message: str) -> None:
    with pytest.raises(HubError, match=message), expect_trouble(Path("/x"), 1234):
        raise OSError(number, os.strerror(number))


def test_unexpected_trouble_is_not_hidden() -> None:
    with pytest.raises(IsADirectoryError), expect_trouble(Path("/x")):
        raise IsADirectoryError(errno.EISDIR, "x")


def test_room(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there", 1)
    with pytest.raises(HubError, match=f"{1 << 60:,} bytes are needed there and the disk has"):
        check_room(tmp_path / "not" / "there", 1 << 60)


def test_share_counts_steps_as_bytes() -> None:
    seen: list[tuple[int, int]] = []
    inner = share(lambda done, total: seen.append((done, total)), 100, 50, 200)
    assert inner is not None
    for step in range(4):
        inner(step, 3)
    assert seen == [(100, 200), (116, 200), (133, 200), (150, 200)]
    assert share(None, 100, 50, 200) is None
