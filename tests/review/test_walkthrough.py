"""docs/contributing-artifacts.md, run: its commands, in its order, against a Hub on loopback.

Each person has a shell and a home of their own and no more than the document gives them. `git` and
`pip` are real: the project's address leads to a bare repository here, and `pip install` builds the
clone that it is given, without looking for its dependencies, which are there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "contributing-artifacts.md"
ADDRESS = "https://github.com/wsssbed/wsssbed-hub"
TOOLS = ("bash", "cat", "git", "mkdir", "sed", "env", "dirname", "basename", "uname", "tr")


class Step(NamedTuple):
    """What a person types and what the document says that comes back."""

    who: str
    command: str
    answer: str


def steps(text: str) -> list[Step]:
    """Prompts ``name$``, continued by ``>``; everything else in a block is an answer."""
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            typed = re.fullmatch(r"([a-z]+)\$ (.*)", line)
            if typed:
                found.append(Step(typed[1], typed[2], ""))
            elif line[:1] == ">" and not found[-1].answer:
                found[-1] = found[-1]._replace(command=f"{found[-1].command}\n{line[2:]}")
            else:
                found[-1] = found[-1]._replace(answer=f"{found[-1].answer}{line}\n")
    return found


def pattern(answer: str) -> str:
    """A line ``…`` stands for any lines, ``…`` within a line for anything in it."""
    lines = []
    for line in answer.splitlines():
        if line == "…":
            lines.append("(?:.*\n)*?")
        else:
            lines.append("[^\n]*?".join(map(re.escape, line.split("…"))) + "\n")
    return "".join(lines)


class Shell:
    """One person's bash, which keeps its folder and its variables from step to step."""

    def __init__(self, home: Path, environment: dict[str, str]):
        home.mkdir()
        self.script = home.parent / f"{home.name}.step"
        self.bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=home,
            env=environment | {"HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> tuple[str, int]:
        """What a command says, on both streams, and its exit code."""
        assert self.bash.stdin is not None
        assert self.bash.stdout is not None
        self.script.write_text(f"{command}\n")
        mark = "--- end of step ---"
        script = shlex.quote(str(self.script))
        self.bash.stdin.write(f"source {script} < /dev/null\necho $'\\n{mark}' $?\n")
        self.bash.stdin.flush()
        said = ""
        while mark not in said:
            line = self.bash.stdout.readline()
            assert line, f"the shell ended after {command!r}: {said}"
            said += line
        text, _, code = said.rpartition(mark)
        return text.removesuffix("\n"), int(code)

    def close(self) -> None:
        assert self.bash.stdin is not None
        self.bash.stdin.close()
        self.bash.wait()


def make_origin(folder: Path) -> Path:
    """A bare repository with this checkout as it is, its own tests left out."""
    work = folder / "work"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_symlink() or ((ROOT / name).is_file() and "tests" not in name[:6]):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name, follow_symlinks=False)
    git = ["git", "-C", str(work), "-c", "user.name=Project", "-c", "user.email=p@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "So far"]):
        subprocess.run([*git, *words], check=True)
    bare = folder / "origin.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    return bare


def make_tools(folder: Path) -> None:
    """Programs that everybody has, and a pip that needs no network; no ``gh``."""
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    python = shlex.quote(sys.executable)
    options = '--no-index --no-deps --no-build-isolation --target "$HOME/site"'
    scripts = {
        "python": f'exec {python} "$@"',
        "pip": f'exec {python} -m pip --disable-pip-version-check "$@" {options}',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Hub in a process of its own, as the document starts it; what it prints."""
    command = [sys.executable, "-m", "hubserver", str(tmp_path / "hub")]
    with subprocess.Popen(
        command, cwd=ROOT / "tests" / "helpers", stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield dict(word.split("=", 1) for word in server.stdout.readline().split())
        server.terminate()


@pytest.fixture
def shells(tmp_path: Path, hub: dict[str, str]) -> Iterator[dict[str, Shell]]:
    """Alice, who is signed in, Bob and the maintainer, who are not."""
    make_tools(tmp_path / "bin")
    origin = make_origin(tmp_path)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f'[url "{origin}"]\n\tinsteadOf = {ADDRESS}\n'
        "[user]\n\tname = Somebody\n\temail = somebody@example.org\n"
    )
    common = {
        "LANG": "C.UTF-8",
        "GIT_CONFIG_GLOBAL": str(settings),
        "GIT_CONFIG_NOSYSTEM": "1",
        "HF_ENDPOINT": hub["HF_ENDPOINT"],
    }
    people = {}
    for name in ("alice", "bob", "maintainer"):
        home = tmp_path / name
        own = {"PATH": f"{home}/site/bin:{tmp_path}/bin", "PYTHONPATH": f"{home}/site"}
        if name == "alice":
            own |= {"HF_TOKEN": hub["HF_TOKEN"], "HF_HUB_DISABLE_XET": "1"}
        people[name] = Shell(home, common | own)
    yield people
    for shell in people.values():
        shell.close()


@pytest.mark.slow
def test_the_document_can_be_followed(shells: dict[str, Shell], tmp_path: Path) -> None:
    written = steps(DOCUMENT.read_text())
    assert {step.who for step in written} == set(shells)
    for step in written:
        # The only folder outside of a home that the document uses.
        command = step.command.replace("/tmp/check", str(tmp_path / "check"))
        answer = step.answer.replace("/tmp/check", str(tmp_path / "check"))
        said, code = shells[step.who].run(command)
        assert re.fullmatch(pattern(answer), said), f"{step.who}$ {command}\n{said}"
        wrong = any(line.startswith("error: ") for line in step.answer.splitlines())
        assert (code != 0) == wrong, f"{step.who}$ {command}\n{said}"
    home = tmp_path / "bob"
    assert (home / "maps" / "manifest.yaml").is_file()
    assert (tmp_path / "alice" / "saturation" / "look.png").read_bytes().startswith(b"\x89PNG")
    gallery = tmp_path / "check" / "report-sal-saturation-shapes-1.0.0-gallery.png"
    assert gallery.read_bytes().startswith(b"\x89PNG")
    assert "| mae 0" in (tmp_path / "check" / "report.md").read_text()
    # Each of them installed the clone, not what this test runs from.
    assert os.path.realpath(home / "site" / "wsssbed_hub") != os.path.realpath(ROOT / "wsssbed_hub")


def test_the_document_is_read_as_it_is_written() -> None:
    text = (
        "```console\nbob$ cat <<'END'\n> a\n>\n> END\na\n…\nalice$ true\n```\n```sh\nbob$ no\n```\n"
    )
    assert steps(text) == [
        Step("bob", "cat <<'END'\na\n\nEND", "a\n…\n"),
        Step("alice", "true", ""),
    ]
    assert re.fullmatch(pattern("a …c\n…\nd\n"), "a b c\nx\ny\nd\n")
    assert not re.fullmatch(pattern("a …c\n"), "a b c\nx\n")
    assert not re.fullmatch(pattern("a …c\n"), "a b\nc\n")
