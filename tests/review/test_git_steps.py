"""From a manifest to a pull request: git is real, `gh` writes down what it is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsssbed_hub.review.git_steps import GitSteps
from wsssbed_hub.utils.errors import HubError

BRANCH = "sal-x-duts"
PATH = "manifests/sal/x-duts.yaml"


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a manifest that is new, something staged and something changed beside it."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Alice")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "alice@example.org")
    git(tmp_path, "init", "--quiet", "--bare", "-b", "main", "origin.git")
    git(tmp_path, "clone", "--quiet", "origin.git", "clone")
    folder = tmp_path / "clone"
    (folder / "manifests").mkdir()
    for name in ("README.md", "manifests/about.txt"):
        (folder / name).write_text("words\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    git(folder, "push", "--quiet", "origin", "HEAD")
    (folder / "manifests" / "sal").mkdir()
    (folder / PATH).write_text("key: sal/x-duts\n")
    (folder / "README.md").write_text("other words\n")
    (folder / "staged.txt").write_text("not yet\n")
    git(folder, "add", "staged.txt")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", without_gh(tmp_path))
    return folder


def without_gh(folder: Path) -> str:
    """A PATH with the git of this machine and no ``gh``."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name in ("git", "sh", "bash", "cat", "false", "env"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True)
        (bin_ / name).symlink_to(found.stdout.strip())
    return str(bin_)


@pytest.fixture
def gh(tmp_path: Path, clone: Path) -> Path:
    """The file in which a fake ``gh`` writes what it was asked; it fails at ``refuse``'s words."""
    path = tmp_path / "bin" / "gh"
    said = tmp_path / "gh-was-asked"
    path.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, subprocess, sys\n"
        "branch = subprocess.run(['git', 'branch', '--show-current'], capture_output=True)\n"
        f"with open({str(said)!r}, 'a') as file:\n"
        "    print(*sys.argv[1:], 'on', branch.stdout.decode().strip(), file=file)\n"
        f"refused = pathlib.Path({str(tmp_path / 'refuse')!r})\n"
        "sys.exit(refused.exists() and refused.read_text() == ' '.join(sys.argv[1:3]))\n"
    )
    path.chmod(0o755)
    said.touch()
    return said


def state(folder: Path) -> list[str]:
    """Branches, head, index and working tree."""
    words = ["branch", "symbolic-ref -q HEAD", "rev-parse HEAD", "status --porcelain", "diff HEAD"]
    return [git(folder, *line.split()) for line in words]


def run(manifest: str = PATH) -> list[str]:
    said: list[str] = []
    GitSteps(Path(manifest)).run(said.append)
    return said


LOCAL = [
    f"git switch -c {BRANCH}",
    f"git add -- {PATH}",
    f"git commit -m 'Add sal/x-duts' -- {PATH}",
]


def test_without_gh_there_is_a_commit_and_the_rest_is_said(clone: Path) -> None:
    steps = GitSteps(Path(PATH))
    assert steps.commands == LOCAL
    assert steps.left.startswith(f"git push -u origin {BRANCH}, then open the pull request")
    assert run() == [f"$ {line}" for line in LOCAL]
    assert git(clone, "branch", "--show-current") == BRANCH
    assert git(clone, "show", "--name-only", "--format=%s") == f"Add sal/x-duts\n\n{PATH}"
    # What else was staged and changed is as it was.
    assert git(clone, "status", "--porcelain") == "M README.md\nA  staged.txt"
    assert git(clone, "ls-remote", "--heads", "origin").count("\n") == 0


def test_with_gh_the_branch_is_pushed_and_the_pull_request_opened(clone: Path, gh: Path) -> None:
    said = run()
    remote = [f"$ git push -u origin {BRANCH}", "$ gh pr create --fill"]
    assert said == ["$ gh auth status", *(f"$ {line}" for line in LOCAL), *remote]
    assert gh.read_text() == f"auth status on main\npr create --fill on {BRANCH}\n"
    there = git(clone, "ls-remote", "origin", f"refs/heads/{BRANCH}").split()[0]
    assert there == git(clone, "rev-parse", "HEAD")


def test_a_manifest_that_was_there_is_updated(clone: Path) -> None:
    run()
    git(clone, "switch", "--quiet", "-C", "main")
    git(clone, "branch", "-D", BRANCH)
    (clone / PATH).write_text("key: sal/x-duts\ntitle: more\n")
    run()
    assert git(clone, "log", "-1", "--format=%s") == "Update sal/x-duts"


def test_again_it_goes_on_where_it_was(clone: Path, gh: Path) -> None:
    (clone.parent / "refuse").write_text("pr create")
    with pytest.raises(HubError, match="is pushed: open the pull request by hand"):
        run()
    (clone.parent / "refuse").unlink()
    assert run()[1:] == [f"$ git push -u origin {BRANCH}", "$ gh pr create --fill"]
    assert gh.read_text().count("pr create") == 2
    git(clone, "switch", "--quiet", "-c", "elsewhere")
    steps = GitSteps(Path(PATH))
    assert steps.commands == []
    assert "committed already" in steps.left


def _hook(clone: Path) -> str:
    hook = clone / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    return "git commit"


def _branch(clone: Path) -> str:
    git(clone, "branch", BRANCH)
    return "git switch"


def _no_rights(clone: Path) -> str:
    hook = clone.parent / "origin.git" / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    return "git push"


def _signed_out(clone: Path) -> str:
    (clone.parent / "refuse").write_text("auth status")
    return "gh auth status"


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("trouble", [_hook, _branch, _no_rights, _signed_out])
def test_a_command_that_fails_leaves_everything_as_it_was(
    clone: Path, gh: Path, trouble, detached: bool
) -> None:
    if detached:
        git(clone, "checkout", "--quiet", "--detach")
    command = trouble(clone)
    before = state(clone) if not detached else state_detached(clone)
    with pytest.raises(HubError, match=f"`{command}.*` failed.*run it again"):
        run()
    assert before == (state(clone) if not detached else state_detached(clone))
    assert (clone / PATH).read_text() == "key: sal/x-duts\n"
    assert "pr create" not in gh.read_text()


def state_detached(folder: Path) -> list[str]:
    assert git(folder, "branch", "--show-current") == ""
    return [git(folder, *words) for words in (["branch"], ["rev-parse", "HEAD"], ["status", "-s"])]


def test_from_another_folder(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.parent)
    said = run(f"clone/{PATH}")
    assert said == [f"cd {clone}", *(f"$ {line}" for line in LOCAL)]
    assert git(clone, "branch", "--show-current") == BRANCH
    monkeypatch.chdir(clone / "manifests")
    (clone / PATH).write_text("key: other\n")
    assert GitSteps(Path("sal/x-duts.yaml")).commands[0] == "git add -- sal/x-duts.yaml"


def test_outside_of_a_clone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone.parent / "sal").mkdir()
    with pytest.raises(HubError, match="not in a clone of the project"):
        GitSteps(clone.parent / "sal" / "x-duts.yaml")
    monkeypatch.setenv("PATH", str(clone.parent / "nothing"))
    with pytest.raises(HubError, match="git cannot be run"):
        GitSteps(Path(PATH))


def test_without_a_remote_nothing_is_pushed(clone: Path, gh: Path) -> None:
    git(clone, "remote", "remove", "origin")
    assert run() == [f"$ {line}" for line in LOCAL]
    assert gh.read_text() == ""
