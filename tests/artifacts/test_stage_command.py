"""The arguments of a stage as a provenance states them: places of a container, nobody's folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsssbed_hub.artifacts.stage_command import parse, published_command
from wsssbed_hub.utils.errors import UsageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Alice's home folder, in which she works; her data lies on another disk."""
    home = tmp_path / "home" / "alice"
    for folder in ("work/out/sal/mine", "work/maps", "nets"):
        (home / folder).mkdir(parents=True)
    (home / "nets" / "net.pth").write_bytes(b"net")
    (tmp_path / "disk" / "sets").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    return home


def published(*arguments: str) -> list[str]:
    return published_command(arguments, Path("/data"), Path("/artifacts"))


def test_roots_fall_away_and_what_lies_below_them_is_there(home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    words = ["--data", "duts", f"--data-root={disk}", "--out", "out", "--sal", "out/sal/mine"]
    words += ["--cam", str(disk / "sets")]
    assert published("sod-x", *words) == [
        *("sod-x", "--data", "duts", "--sal", "/artifacts/sal/mine", "--cam", "/data/sets")
    ]


@pytest.mark.parametrize("net", ["~/nets/net.pth", "../nets/net.pth", "{home}/nets/net.pth"])
def test_files_keep_their_names_only(home: Path, net: str) -> None:
    net = net.format(home=home)
    assert published("--weights", net) == ["--weights", "/inputs/1/net.pth"]
    assert published(f"--init=trunk={net}", "--maps", "hand=maps", "--cam", "maps") == [
        *("--init", "trunk=/inputs/1/net.pth"),
        *("--maps", "hand=/inputs/2/maps", "--cam", "/inputs/2/maps"),
    ]


def test_what_was_removed_meanwhile_is_not_told_either(home: Path) -> None:
    assert published("--init", "/home/alice/gone.pth") == ["--init", "/inputs/1/gone.pth"]
    assert published("--whatever", "~/gone") == ["--whatever", "/inputs/1/gone"]


def test_words_and_keys_stay_even_where_a_folder_is_called_so(home: Path) -> None:
    for name in ("timm", "ground-truth", "random"):
        (home / "work" / name).mkdir()
    words = ["--init", "timm", "--labels", "ground-truth", "--sal", "sal/vst-duts@1.0.0"]
    words += ["--fresh", "--set", "rate=0.1", "--tau-from", "curve:train"]
    assert published(*words) == words


def test_a_command_in_a_container_stays(home: Path) -> None:
    """Its paths are the published ones already, so that making it again publishes the same."""
    words = ["--sal", "/artifacts/sal/x", "--init", "/inputs/1/net.pth", "--cam", "/data/maps"]
    assert published(*words) == words


def test_an_option_without_its_value_is_an_error() -> None:
    with pytest.raises(UsageError, match="--maps needs a value"):
        list(parse(["--maps"]))


def test_what_is_made_beside_the_artifacts_is_no_part_of_how_they_are_made(home: Path) -> None:
    words = ["--predictions", "/home/alice/p", "--predictions-of=./photos", "--server", "voc"]
    assert published("--seed", "3", *words, "--fresh") == ["--seed", "3", "--fresh"]
