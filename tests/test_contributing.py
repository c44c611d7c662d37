"""From somebody's PNGs to a merged manifest and somebody else's pull, over a Hub on loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tinyvoc
import typer
from hubserver import HubServer
from samples import key_folder
from typer.testing import CliRunner, Result

from wsssbed_hub.checking import read
from wsssbed_hub.commands import contribute
from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.folder_registry import FolderRegistry
from wsssbed_hub.index import IndexRegistry, WithIndex
from wsssbed_hub.keyfolder import verify_folder
from wsssbed_hub.manifest import HubSource
from wsssbed_hub.maps import PngFolder, open_artifact
from wsssbed_hub.registry import pull
from wsssbed_hub.targets import TARGETS


@pytest.fixture
def here(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data, Alice's maps and an index; Alice is signed in."""
    monkeypatch.setenv("HF_TOKEN", hub.user("alice"))
    folder = tmp_path / "here"
    (folder / "manifests").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WSSSBED_DATA", str(folder / "data"))
    tinyvoc.make_target(folder / "data", TARGETS["shapes"].classes)
    tinyvoc.unpacked(tinyvoc.saliency(), folder / "maps")
    return folder


def run(*arguments: object) -> Result:
    app = typer.Typer()
    contribute.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


IMPORT = ("import", "maps", "sal/x-duts", "--target", "shapes", "--method", "X")
IMPORT += ("--trained-on", "duts:pixel masks", "--licence", "MIT")
CONTRIBUTE = ("contribute", "sal-x-duts", "--to", "hf:alice")


def contributed() -> Path:
    assert run(*IMPORT).exit_code == 0
    result = run(*CONTRIBUTE)
    assert result.exit_code == 0, result.exception
    return Path("manifests/sal/x-duts.yaml")


def test_from_pngs_to_somebody_elses_pull(
    here: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = contributed()
    source = read(path).entry("1.0.0", "shapes").source
    assert isinstance(source, HubSource)
    assert source.repo == "alice/sal-x-duts"
    result = run("check", "manifests", "--sources", "--fetch", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    # Somebody else, signed out, with nothing but the index.
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("WSSSBED_CACHE", str(here / "other-cache"))
    place = WithIndex(FolderRegistry(here / "other"), IndexRegistry(here / "manifests"))
    folder = pull("sal/x-duts", registry=place)
    assert verify_folder(folder)
    assert open_artifact(folder).digest() == PngFolder(here / "maps").digest()


def test_later_commits_change_nothing(here: Path, hub: HubServer) -> None:
    path = contributed()
    before = path.read_text()
    assert run(*CONTRIBUTE).exit_code == 0
    assert path.read_text() == before
    tinyvoc.unpacked({**tinyvoc.saliency(), "a1.png": tinyvoc.saliency()["b2.png"]}, here / "new")
    again = (IMPORT[0], "new", "sal/x-duts@1.1.0", *IMPORT[3:])
    assert run(*again).exit_code == 0
    assert run(*CONTRIBUTE).exit_code == 0
    manifest = read(path)
    first, second = (manifest.entry(version, "shapes").source for version in ("1.0.0", "1.1.0"))
    assert isinstance(first, HubSource)
    assert isinstance(second, HubSource)
    assert first.commit != second.commit
    Path("base/sal").mkdir(parents=True)
    Path("base/sal/x-duts.yaml").write_text(before)
    assert run("check", "manifests", "--against", "base", "--fetch").exit_code == 0


def test_what_is_not_at_the_source(here: Path, hub: HubServer) -> None:
    path = contributed()
    text = path.read_text()
    digest = read(path).entry("1.0.0", "shapes").files[0].sha256
    path.write_text(text.replace(digest, "sha256:" + "0" * 64))
    result = run("check", path, "--sources")
    assert result.exit_code == 1
    assert "does not have shapes/1.0.0/00000.parquet like that" in result.stdout
    result = run("check", path, "--fetch")
    assert result.exit_code == 1
    assert "expected" in result.stdout.lower()
    path.write_text(text.replace("alice/", "nobody/"))
    assert run("check", path, "--sources").exit_code == 1


def test_rules_come_before_publishing(here: Path, hub: HubServer) -> None:
    key_folder(here / "bare")
    result = run("contribute", "bare", "--to", "hf:alice")
    assert isinstance(result.exception, HubError)
    assert "licence of the maps is not stated" in str(result.exception)
    assert "nothing was published" in str(result.exception)
    assert not Path("manifests/sal").exists()
    with pytest.raises(HubError):
        pull("hf:alice/sal-test")


def test_where_to(here: Path) -> None:
    assert run(*IMPORT).exit_code == 0
    result = run("contribute", "sal-x-duts", "--to", "a-folder")
    assert isinstance(result.exception, UsageError)
    shutil.rmtree("manifests")
    result = run(*CONTRIBUTE)
    assert isinstance(result.exception, UsageError)
    assert "Clone the project" in str(result.exception)
