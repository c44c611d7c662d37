"""The shell of the manifests' workflows, run: git and `wsssbed-hub` are real, `gh` writes down."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinyvoc
import yaml
from proofs import index_manifest
from rangeserver import RangeServer

WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"
HEAD = "c" * 40
PROVE = "Fetch what the changed manifests point to, and prove what they say"
MARKER = "<!-- report of manifests.yml -->"


def script(workflow: str, job: str, step: str) -> str:
    text = (WORKFLOWS / f"{workflow}.yml").read_text()
    found = yaml.safe_load(text)["jobs"][job]["steps"]
    (one,) = (each["run"] for each in found if each.get("name") == step)
    return str(one)


def run(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a runner does: bash that ends at the first failure."""
    return subprocess.run(
        ["bash", "-e", "-c", text],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


class Github:
    """A folder in which the comment's step runs, and what its ``gh`` answers and was asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.report: dict[str, str] = {"number": "7\n", "report.md": "**fine**\n\n![x](x.png)\n"}
        self.pull = {"state": "open", "head": {"sha": HEAD}}
        self.files: list[dict[str, str]] = [{"filename": "manifests/sal/x-duts.yaml"}]
        self.comments: list[dict[str, Any]] = []

    def comment(self) -> list[str]:
        """Runs the step; gives the requests that change something."""
        (self.folder / "bin").mkdir()
        answers = {
            "report": self.report,
            "pulls/7": self.pull,
            "pulls/7/files": self.files,
            "issues/7/comments": self.comments,
        }
        (self.folder / "answers.json").write_text(json.dumps(answers))
        program = self.folder / "bin" / "gh"
        program.write_text(f"#!{sys.executable}\n{_GH}")
        program.chmod(0o755)
        done = run(
            self.folder,
            script("manifests-comment", "comment", "Comment"),
            PATH=f"{self.folder / 'bin'}:{os.environ['PATH']}",
            GH_REPO="wsssbed/wsssbed-hub",
            RUN="5",
            RUN_URL="https://github.com/wsssbed/wsssbed-hub/actions/runs/5",
            HEAD=HEAD,
        )
        assert done.returncode == 0, done.stderr
        asked = self.folder / "asked"
        return asked.read_text().splitlines() if asked.exists() else []

    @property
    def body(self) -> str:
        return (self.folder / "body.md").read_text()


# Answers by what the real one would filter with --jq; the filters themselves are tried with jq.
_GH = """
import json, pathlib, shutil, subprocess, sys
answers = json.loads(pathlib.Path("answers.json").read_text())
words = sys.argv[1:]
if words[:2] == ["run", "download"]:
    folder = pathlib.Path(words[words.index("--dir") + 1])
    folder.mkdir()
    for name, text in answers["report"].items():
        (folder / name).write_text(text)
elif "--method" in words:
    with open("asked", "a") as file:
        print(words[words.index("--method") + 1], words[3].split("hub/", 1)[1], file=file)
else:
    path = next(word for word in words if word.startswith("repos/")).split("hub/", 1)[1]
    filter_ = words[words.index("--jq") + 1]
    data = json.dumps(answers[path])
    sys.exit(subprocess.run(["jq", "-r", filter_], input=data, text=True).returncode)
"""


@pytest.fixture
def github(tmp_path: Path) -> Github:
    if subprocess.run(["which", "jq"], capture_output=True, check=False).returncode:
        pytest.skip("jq is not installed")
    return Github(tmp_path)


def test_one_comment(github: Github) -> None:
    assert github.comment() == ["POST issues/7/comments"]
    assert github.body.startswith(f"{MARKER}\n[This run](https://github.com/")
    assert "**fine**" in github.body
    assert "![" not in github.body


def test_the_next_run_writes_it_anew(github: Github) -> None:
    bot = {"login": "github-actions[bot]"}
    github.comments = [
        {"id": 1, "user": {"login": "stranger"}, "body": MARKER},
        {"id": 2, "user": bot, "body": "another workflow's"},
        {"id": 3, "user": bot, "body": f"{MARKER} old"},
    ]
    assert github.comment() == ["PATCH issues/comments/3"]


@pytest.mark.parametrize(
    "change",
    [
        {"pull": {"state": "open", "head": {"sha": "d" * 40}}},
        {"pull": {"state": "closed", "head": {"sha": HEAD}}},
        {"files": [{"filename": "manifests/sal/x.yaml"}, {"filename": "wsssbed_hub/cli.py"}]},
        {"files": [{"filename": "manifests/x", "previous_filename": ".github/workflows/ci.yml"}]},
        {"report": {"number": "7"}},
    ],
)
def test_no_comment(github: Github, change: dict[str, Any]) -> None:
    """On another commit, a closed pull request, where code was changed too, without a report."""
    vars(github).update(change)
    assert github.comment() == []


@pytest.mark.parametrize("number", ["7; rm -rf .", "../8", "", "$(id)", "07"])
def test_a_number_that_is_none(github: Github, number: str) -> None:
    github.report["number"] = number
    with pytest.raises(AssertionError):
        github.comment()
    assert not (github.folder / "asked").exists()


def test_a_long_report_is_cut(github: Github) -> None:
    github.report["report.md"] = "ü" * 50_000
    assert github.comment() == ["POST issues/7/comments"]
    assert len(github.body.encode()) < 65_000


def test_the_changed_manifests_are_proved_and_shown(tmp_path: Path, server: RangeServer) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org"]

    def commit() -> str:
        for words in (["add", "."], ["commit", "--quiet", "--allow-empty", "-m", "x"]):
            subprocess.run([*git, *words], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True)
        return head.stdout.decode().strip()

    subprocess.run([*git, "init", "--quiet"], check=True)
    files = tinyvoc.saliency()
    index_manifest(tmp_path / "manifests", server, "sal/old", files)
    base = commit()
    index_manifest(tmp_path / "manifests", server, "sal/new", files)
    commit()
    hub = f'wsssbed-hub() {{ {shlex.quote(sys.executable)} -m wsssbed_hub "$@"; }}\n'
    prove = script(
        "manifests", "changed", "Fetch what the changed manifests point to, and prove what they say"
    )
    done = run(tmp_path, hub + prove, BASE=base, NUMBER="7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report" / "number").read_text() == "7\n"
    report = (tmp_path / "report" / "report.md").read_text()
    assert "sal/new" in report
    assert "sal/old" not in report
    assert list((tmp_path / "report").glob("report-sal-new-*-gallery.png"))
    summary = tmp_path / "summary"
    run(
        tmp_path,
        script("manifests", "changed", "Show the report"),
        GITHUB_STEP_SUMMARY=str(summary),
    )
    assert "**1 manifest checked" in summary.read_text()
    assert "![" not in summary.read_text()
    # Nothing changed: nothing to prove, and nothing fails.
    done = run(tmp_path, f"rm -r report\n{hub}{prove}", BASE=commit(), NUMBER="7")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "report" / "report.md").exists()
