"""From somebody's PNGs to a merged manifest and somebody else's pull, over a Hub on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tinyvoc
import typer
from hubserver import HubServer
from huggingface_hub import HfApi
from samples import key_folder, noise, png
from typer.testing import CliRunner, Result

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import read_manifest, verify_folder
from wsssbed_hub.artifacts.manifest import File, HubSource
from wsssbed_hub.cli import contribute
from wsssbed_hub.datasets import TARGETS
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.multi import Registries
from wsssbed_hub.registry.open_artifact import PngFolder, open_artifact
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.review.check_manifest import read
from wsssbed_hub.utils.errors import HubError, UsageError


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
    place = Registries([FolderRegistry(here / "other")], IndexRegistry(here / "manifests"))
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


PROPOSE = ("contribute", "sal-x-duts", "--to", "hf:project", "--pr")


@pytest.fixture
def project(here: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The project's namespace with an empty repository for the key; Alice may not write to it."""
    token = hub.user("owner", "project")
    HfApi(token=token).create_repo("project/sal-x-duts", repo_type="dataset")
    assert run(*IMPORT).exit_code == 0
    return hub


def test_a_pull_request_on_the_hub_comes_first(here: Path, project: HubServer) -> None:
    url = f"{project.endpoint}/datasets/project/sal-x-duts/discussions/1"
    result = run(*PROPOSE)
    assert result.exit_code == 0, result.exception
    assert result.stdout == (
        f"The pull request {url} is open. Once hf:project has merged it, run:\n"
        "  wsssbed-hub contribute sal-x-duts --to hf:project --pr\n"
    )
    assert not Path("manifests/sal").exists()
    # Again before it is merged: no second one.
    result = run(*PROPOSE)
    assert f"{url} was opened before and is not merged" in result.stdout
    assert len(project.repository("project/sal-x-duts").refs) == 2
    project.merge("project/sal-x-duts", 1)
    result = run(*PROPOSE)
    assert "sal/x-duts is in hf:project" in result.stdout
    source = read(Path("manifests/sal/x-duts.yaml")).entry("1.0.0", "shapes").source
    assert isinstance(source, HubSource)
    refs = project.repository("project/sal-x-duts").refs
    assert source.commit == refs["refs/heads/main"] != refs["refs/pr/1"]
    assert run("check", "manifests", "--sources", "--fetch").exit_code == 0


def test_one_that_was_closed_is_opened_anew(here: Path, project: HubServer) -> None:
    run(*PROPOSE)
    project.close("project/sal-x-duts", 1)
    assert "discussions/2 is open" in run(*PROPOSE).stdout


def test_a_pull_request_needs_a_repository(here: Path, hub: HubServer) -> None:
    assert run(*IMPORT).exit_code == 0
    result = run(*PROPOSE)
    assert isinstance(result.exception, UsageError)
    assert "ask its owners for an empty one" in str(result.exception)


def test_the_commit_of_a_pull_request_is_no_source(here: Path, project: HubServer) -> None:
    run(*PROPOSE)
    project.merge("project/sal-x-duts", 1)
    run(*PROPOSE)
    path = Path("manifests/sal/x-duts.yaml")
    source = read(path).entry("1.0.0", "shapes").source
    assert isinstance(source, HubSource)
    proposed = project.repository("project/sal-x-duts").refs["refs/pr/1"]
    path.write_text(path.read_text().replace(source.commit, proposed))
    result = run("check", path, "--sources")
    assert result.exit_code == 1
    assert "is not on the main branch of project/sal-x-duts" in result.stdout


def test_the_manifest_names_the_files_that_are_there(here: Path, hub: HubServer) -> None:
    """The same maps published by another Parquet writer: one version, and its files stay."""
    contributed()
    there = read_manifest(Path("sal-x-duts")).entry("1.0.0", "shapes").files
    other = rewrite(Path("sal-x-duts"))
    assert other != there
    assert run(*CONTRIBUTE).exit_code == 0
    assert read(Path("manifests/sal/x-duts.yaml")).entry("1.0.0", "shapes").files == there
    shutil.rmtree("manifests/sal")
    assert run(*CONTRIBUTE).exit_code == 0
    assert read(Path("manifests/sal/x-duts.yaml")).entry("1.0.0", "shapes").files == there


def rewrite(folder: Path) -> list[File]:
    """The same table in other bytes; gives the files that the manifest lists then."""
    manifest = read_manifest(folder)
    (chosen,) = manifest.entries()
    (file,) = chosen.entry.files
    path = folder / file.path
    pq.write_table(pq.read_table(path), path, compression="gzip")
    new = file.model_copy(update={"size": path.stat().st_size, "sha256": file_digest(path)})
    entry = chosen.entry.model_copy(update={"files": [new]})
    text = manifest.with_entries([chosen._replace(entry=entry)]).dump()
    (folder / "manifest.yaml").write_text(text)
    assert verify_folder(folder)
    return [new]


def clone(folder: Path) -> None:
    """``folder`` becomes a repository of git whose index is ``manifests``."""
    for words in (
        ["init", "--quiet", "-b", "main"],
        ["config", "user.name", "Alice"],
        ["config", "user.email", "alice@example.org"],
        ["commit", "--quiet", "--allow-empty", "-m", "first"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)


def branch(folder: Path) -> str:
    words = ["git", "-C", str(folder), "branch", "--show-current"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def test_git_is_not_touched_without_being_asked(here: Path, hub: HubServer) -> None:
    clone(here)
    assert run(*IMPORT).exit_code == 0
    result = run(*CONTRIBUTE)
    assert "  git switch -c sal-x-duts\n" in result.stdout
    assert "  git add -- manifests/sal/x-duts.yaml\n" in result.stdout
    assert "--yes runs them" in result.stderr
    assert branch(here) == "main"


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_asks(here: Path, hub: HubServer, answer: str) -> None:
    clone(here)
    assert run(*IMPORT).exit_code == 0
    master, terminal = os.openpty()
    command = [sys.executable, "-m", "wsssbed_hub", *CONTRIBUTE]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(master, 1 << 12)
        os.write(master, answer.encode() + b"\n")
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(master, 1 << 12):
                said += data
    os.close(master)
    assert process.returncode == 0
    assert branch(here) == ("sal-x-duts" if answer == "y" else "main")
    assert (b"$ git switch -c sal-x-duts" in said) == (answer == "y")


def test_with_yes_it_runs_them(here: Path, hub: HubServer) -> None:
    clone(here)
    assert run(*IMPORT).exit_code == 0
    result = run(*CONTRIBUTE, "--yes")
    assert "$ git commit -m 'Add sal/x-duts' -- manifests/sal/x-duts.yaml" in result.stdout
    assert "Next: git push -u origin sal-x-duts" in result.stdout
    assert branch(here) == "sal-x-duts"


def test_in_no_clone_it_is_said(here: Path, hub: HubServer) -> None:
    assert run(*IMPORT).exit_code == 0
    result = run(*CONTRIBUTE, "--yes")
    assert result.exit_code == 0
    assert "not in a clone of the project" in result.stdout


def test_what_is_wrong_with_published_maps_is_shown(here: Path, hub: HubServer) -> None:
    """Published by somebody who did not have the target, and looked at by somebody who has."""
    asked = (*IMPORT, "--data-root", "nothing")
    odd = {**tinyvoc.saliency(), "zz.png": tinyvoc.saliency()["a1.png"]}
    shutil.rmtree("maps")
    tinyvoc.unpacked({**odd, "b2.png": png(noise(0, 3, 8))}, here / "maps")
    assert run(*asked).exit_code == 0
    assert run(*CONTRIBUTE).exit_code == 0
    result = run("check", "manifests", "--fetch", "--report", "out/report.md")
    assert result.exit_code == 1
    assert "images that shapes does not have: zz" in result.stdout
    assert "maps of another size than their image: b2" in result.stdout
    report = Path("out/report.md").read_text()
    assert "| images are those of the target | **FAILED** |" in report
    assert "| maps have the size of their images | **FAILED** |" in report
    assert Path("out/report-sal-x-duts-shapes-1.0.0-gallery.png").is_file()
