"""Paths of a machine are found in what is to be published, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wsssbed_hub.artifacts.private_paths import private_paths

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=12)


@given(st.sampled_from(["/", "~/", "../", "~alice/"]), st.lists(NAMES, min_size=2, max_size=5))
def test_any_path_in_a_command_is_found(root: str, names: list[str]) -> None:
    path = root + "/".join(names)
    if not path.startswith(("/data/", "/artifacts/", "/cache/", "/inputs/")):
        command = {"command": ["python", "-m", "stages", "--data-root", path, f"--out={path}"]}
        for text in (yaml.safe_dump(command), json.dumps(command)):
            assert path in private_paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "note: made in /home/alice/maps, then moved",
        "title: Pseudo labels of ./maps",
        "title: 'file:///home/alice/maps'",
        '{"path": "C:\\\\Users\\\\alice"}',
        "('/mnt/disk/maps')",
    ],
)
def test_paths_in_sentences_are_found(text: str) -> None:
    assert private_paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "--sal /artifacts/sal/x --init trunk=/inputs/1/net.pth --cam /data/cam",
        "paper: https://arxiv.org/abs/2404.00918",
        "repo: alice/sal-x-duts",
        "code: git+https://example.org/alice/code.git@main",
        "precision and/or recall; 1/2; w/o CRF; image/png; 2007_000032.png",
        "path: voc12/1.0.0/00000.parquet",
        "~0.5 of 1 / 2",
    ],
)
def test_nothing_else_is_taken_for_one(text: str) -> None:
    assert private_paths(text) == []


def test_the_home_folder_is_found_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/srv/people/alice"))
    assert private_paths("x=a/srv/people/alice/y") == ["/srv/people/alice"]


def test_no_manifest_of_the_index_has_one() -> None:
    manifests = [*(Path(__file__).parents[2] / "manifests").rglob("*.yaml")]
    assert manifests
    assert not [path for path in manifests if private_paths(path.read_text())]
