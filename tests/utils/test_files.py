from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from killing import deaths, exit_code, in_child

from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import (
    atomic_file,
    atomic_folder,
    check_room,
    disk_errors,
    exclusive,
    write_whole,
)
from wsssbed_hub.utils.progress import adding, share


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    for _ in deaths(lambda: write_whole(path, b"new")):
        assert path.read_text() in ("old", "new")
    assert path.read_text() == "new"


def begin(path: Path | None) -> None:
    assert path is not None
    path.write_text("half")
    raise RuntimeError("and then it fails")


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        begin(temporary)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


def fill(folder: Path, *, resume: bool = False) -> None:
    """``a`` and ``b/c`` in a folder; what is there already stays if it is right."""
    with atomic_folder(folder, resume=resume) as partial:
        if partial is None:
            return
        assert resume or not list(partial.iterdir())
        (partial / "b").mkdir(exist_ok=True)
        for name in ("a", "b/c"):
            if not (partial / name).exists():
                write_whole(partial / name, name.encode())


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_is_whole_or_not_there(tmp_path: Path, resume: bool) -> None:
    folder = tmp_path / "x"
    folder.mkdir()  # an empty one is nothing
    for _ in deaths(lambda: fill(folder, resume=resume)):
        assert sorted(p.name for p in folder.iterdir()) in ([], ["a", "b"])
    assert (folder / "b/c").read_text() == "b/c"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_after_an_error(tmp_path: Path, resume: bool) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "x", resume=resume) as partial:
        begin(partial and partial / "a")
    assert [path.name for path in tmp_path.iterdir()] == [".x.partial"] * resume
    fill(tmp_path / "x", resume=resume)
    assert (tmp_path / "x/a").read_text() == ("half" if resume else "a")


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_what_is_there_already_stays(tmp_path: Path, there: str) -> None:
    path = tmp_path / "x"
    if there == "folder":
        path.mkdir()
        (path / "mine").touch()
    elif there == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    before = path.lstat()
    with atomic_folder(path) as partial:
        assert partial is None
    assert (path.lstat(), len(list(tmp_path.iterdir()))) == (before, 1)


def test_one_makes_the_folder_and_others_wait(tmp_path: Path) -> None:
    def make() -> None:
        with atomic_folder(tmp_path / "x") as partial:
            if partial is not None:
                time.sleep(0.05)
                (partial / str(os.getpid())).touch()
        assert len(list((tmp_path / "x").iterdir())) == 1

    assert [exit_code(pid) for pid in [in_child(make) for _ in range(6)]] == [0] * 6
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


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
    with pytest.raises(HubError, match=message), disk_errors(Path("/x"), 1234):
        raise OSError(number, os.strerror(number))


def test_unexpected_trouble_is_not_hidden() -> None:
    with pytest.raises(IsADirectoryError), disk_errors(Path("/x")):
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


def test_steps_of_several_threads_add_up() -> None:
    seen: list[tuple[int, int]] = []
    advance = adding(lambda *step: seen.append(step), 400)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: advance(2), range(200)))
    assert seen == [(done, 400) for done in range(2, 402, 2)]
    adding(None, 1)(1)
