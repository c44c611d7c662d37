"""A manifest in a clone of the project becomes a commit on a branch, and a pull request.

Nothing here asks: whoever calls ``run`` has agreed to ``commands``. Until the branch is pushed, a
command that fails is followed by everything before it being undone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from wsssbed_hub.utils.errors import HubError

REMOTE = "origin"
Say = Callable[[str], None]


class _State(NamedTuple):
    """Where a clone is: the branch (None: no branch) and the commit."""

    branch: str | None
    commit: str


class GitSteps:
    """The way of the manifest at ``path`` into a pull request, as far as it has to go still.

    Raises HubError if it does not lie in a clone, a repository of git with a commit.
    """

    def __init__(self, path: Path):
        top = _output(path.parent, "rev-parse", "--show-toplevel")
        head = top and _output(path.parent, "rev-parse", "--verify", "--quiet", "HEAD")
        if not top or not head:
            raise HubError(
                f"{path} is not in a clone of the project: copy it to its place in one, commit it "
                "there and open a pull request."
            )
        self.key = f"{path.parent.name}/{path.stem}"
        self.branch = f"{path.parent.name}-{path.stem}"
        inside = _output(Path.cwd(), "rev-parse", "--show-toplevel") == top
        # Where the commands are run, and what the path is called there.
        self.folder = Path.cwd() if inside else Path(top)
        self.path = os.path.relpath(path.resolve(), self.folder.resolve())
        self.has_gh = shutil.which("gh") is not None
        self._before = _State(self._git("symbolic-ref", "--short", "--quiet", "HEAD"), head)
        self._status = self._git("status", "--porcelain", "--", self.path) or ""
        self._remotes = (self._git("remote") or "").split()

    @property
    def done(self) -> bool:
        """Whether the manifest is committed, on another branch than one that was made for it."""
        return not self._status and self._before.branch != self.branch

    @property
    def local(self) -> list[list[str]]:
        """The commands that make the commit. Only this file goes into it."""
        if not self._status:
            return []
        verb = "Add" if self._status.startswith(("??", "A")) else "Update"
        switch = [["git", "switch", "-c", self.branch]]
        return (switch if self._before.branch != self.branch else []) + [
            ["git", "add", "--", self.path],
            ["git", "commit", "-m", f"{verb} {self.key}", "--", self.path],
        ]

    @property
    def remote(self) -> list[list[str]]:
        """The commands that open the pull request, where ``gh`` and a remote are there."""
        if self.done or not self.has_gh or REMOTE not in self._remotes:
            return []
        return [["git", "push", "-u", REMOTE, self.branch], ["gh", "pr", "create", "--fill"]]

    @property
    def commands(self) -> list[str]:
        """All of them, to be read and copied."""
        return self._moves() + [shlex.join(words) for words in self.local + self.remote]

    @property
    def left(self) -> str:
        """The step that remains to be done by hand after them."""
        if self.done:
            return f"nothing: {self.path} is committed already"
        if self.remote:
            return ""
        push = shlex.join(["git", "push", "-u", REMOTE, self.branch])
        return f"{push}, then open the pull request on the project's page"

    def run(self, say: Say) -> None:
        """Runs the commands, each said first.

        Raises HubError if one fails. Then the clone is as it was, unless the branch was pushed.
        """
        for line in self._moves():
            say(line)
        if self.remote:
            self._run(["gh", "auth", "status"], say, "Sign in with `gh auth login`")
        for words in self.local:
            self._run(words, say, "Mend that", undo=True)
        for words in self.remote:
            pushed = words[0] == "gh"
            advice = (
                f"The branch {self.branch} is pushed: open the pull request by hand"
                if pushed
                else f"Without the right to push, make {REMOTE} a fork of your own "
                "(`gh repo fork --remote`)"
            )
            self._run(words, say, advice, undo=not pushed)

    def _moves(self) -> list[str]:
        """How to get to where the commands are run, if that is elsewhere."""
        return [] if self.folder == Path.cwd() else [shlex.join(["cd", str(self.folder)])]

    def _run(self, words: list[str], say: Say, advice: str, *, undo: bool = False) -> None:
        command = shlex.join(words)
        say(f"$ {command}")
        try:
            code = subprocess.run(words, cwd=self.folder, check=False).returncode
        except OSError as error:
            say(str(error))
            code = 1
        if code == 0:
            return
        if undo:
            self._undo()
        left = f" Your branch, your files and what you had staged are as they were; {self.path} is"
        left += " there, not committed." if self._status else " committed."
        raise HubError(
            f"`{command}` failed.{left if undo else ''} {advice}, and run it again, or go on by "
            "hand."
        )

    def _undo(self) -> None:
        """Back to the branch and commit before; no file of the working tree is touched."""
        branch, commit = self._before
        if not self._status:
            return  # there was nothing to commit
        if self._git("symbolic-ref", "--short", "--quiet", "HEAD") == self.branch:
            if self._git("rev-parse", "HEAD") != commit:
                self._git("reset", "--quiet", "--soft", commit)
            if branch is None:
                self._git("update-ref", "--no-deref", "HEAD", commit)
            elif branch != self.branch:
                self._git("symbolic-ref", "HEAD", f"refs/heads/{branch}")
            if branch != self.branch:
                self._git("branch", "--quiet", "-D", self.branch)
        self._git("reset", "--quiet", "--", self.path)

    def _git(self, *words: str) -> str | None:
        return _output(self.folder, *words)


def _output(folder: Path, *words: str) -> str | None:
    """The output of git, without the last newline; None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise HubError(f"git cannot be run: {error}. Install it.") from None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
