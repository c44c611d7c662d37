"""Repositories: commits, references, files in git or in large file storage, and who may what."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

MAIN = "refs/heads/main"
ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs -text\n"
_LFS_NAMES = (".parquet", ".safetensors", ".zip", ".bin")
_LFS_SIZE = 10 << 20


class Refusal(Exception):
    """An answer that is an error: status, X-Error-Code, and what is said about it."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its bytes, or those of a large file by their sha256."""

    oid: str  # of git: of the bytes, or of the pointer that stands for a large file
    size: int
    data: bytes | None = None
    sha256: str | None = None

    @classmethod
    def plain(cls, data: bytes) -> Blob:
        return cls(_git_oid(data), len(data), data=data)

    @classmethod
    def large(cls, sha256: str, size: int) -> Blob:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(_git_oid(pointer.encode()), size, sha256=sha256)

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    date: str
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """One dataset repository. ``gated``: its files are for those in ``granted`` only."""

    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # sha256 of what was uploaded here
    decided: dict[int, str] = field(default_factory=dict)  # pull requests: "merged", "closed"

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a reference or an oid names."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if revision in self.commits:
            return self.commits[revision]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def blob(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.resolve(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return commit, commit.files[path]

    def is_large(self, path: str, size: int) -> bool:
        return size > _LFS_SIZE or path.endswith(_LFS_NAMES)

    def commit(
        self, title: str, files: Mapping[str, Blob], parent: Commit | None, reference: str
    ) -> Commit:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        tree = {path: blob.oid for path, blob in sorted(files.items())}
        before = parent.oid if parent else None
        what = json.dumps([self.name, before, title, date, tree, len(self.commits)])
        new = Commit(hashlib.sha1(what.encode()).hexdigest(), before, title, date, dict(files))
        self.commits[new.oid] = new
        self.refs[reference] = new.oid
        return new

    def history(self, revision: str) -> list[Commit]:
        """The commits up to a revision, the newest first."""
        found = [self.resolve(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def card(self) -> dict[str, Any]:
        """The metadata at the head of README.md, as the Hub indexes it."""
        blob = self.resolve("main").files.get("README.md")
        text = (blob.data or b"").decode() if blob else ""
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        return (yaml.safe_load(match[1]) if match else None) or {}


class State:
    """All repositories and users, and the folder with the large files."""

    def __init__(self, root: Path):
        self.root = root
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.users: dict[str, str] = {}  # by token
        self.members: dict[str, set[str]] = {}  # users who may write, by namespace
        self.xet: dict[str, str] = {}  # Xet's hashes, by sha256
        self.cas = f"local://{root / 'xet'}"  # its client keeps chunks there without a server

    def large(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256

    def add_to_xet(self, sha256: str) -> None:
        from hf_xet import COMPUTE_SHA256, XetSession

        with XetSession().new_upload_commit(self.cas, "of-xet", 1 << 33) as commit:
            sent = commit.start_upload_file(str(self.large(sha256)), COMPUTE_SHA256)
        self.xet[sha256] = sent.result().xet_info.hash

    def may_write(self, user: str | None, namespace: str) -> bool:
        return user is not None and (user == namespace or user in self.members.get(namespace, ()))

    def create(self, name: str, *, private: bool = False) -> Repository:
        if name in self.repositories:
            raise Refusal(409, "You already created this dataset repo")
        repository = Repository(name, private)
        files = {".gitattributes": Blob.plain(ATTRIBUTES)}
        repository.commit("initial commit", files, None, MAIN)
        self.repositories[name] = repository
        return repository

    def see(self, name: str, user: str | None) -> Repository:
        """A repository that ``user`` may know of; to others it looks as if it were not there."""
        found = self.repositories.get(name)
        if found and (not found.private or self.may_write(user, found.namespace)):
            return found
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def read(self, name: str, user: str | None) -> Repository:
        """A repository whose files ``user`` may read."""
        found = self.see(name, user)
        allowed = user in found.granted or self.may_write(user, found.namespace)
        if found.gated and not allowed:
            text = f"Access to dataset {name} is restricted"
            raise Refusal(401 if user is None else 403, text, "GatedRepo")
        return found

    def write(self, name: str, user: str | None) -> Repository:
        """A repository that ``user`` may change."""
        found = self.see(name, user)
        if not self.may_write(user, found.namespace):
            text = "You don't have the rights to write to this repo"
            raise Refusal(401 if user is None else 403, text)
        return found

    def apply(
        self, repository: Repository, revision: str, lines: Iterable[Any], *, pull_request: bool
    ) -> tuple[Commit, int | None]:
        """One commit, whole or not at all; the number of the pull request if it became one."""
        header, *operations = lines
        head = repository.resolve(revision)
        wanted = header["value"].get("parentCommit")
        if wanted is not None and pull_request:
            head = repository.resolve(wanted)
        if wanted not in (None, head.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            self._change(repository, files, operation["key"], operation["value"])
        number = None
        reference = f"refs/heads/{revision}"
        if pull_request:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
            reference = f"refs/pr/{number}"
        elif revision.startswith("refs/"):
            reference = revision
        new = repository.commit(header["value"]["summary"], files, head, reference)
        return new, number

    def _change(
        self, repository: Repository, files: dict[str, Blob], what: str, value: dict[str, Any]
    ) -> None:
        path = value["path"]
        if what == "file":
            files[path] = Blob.plain(base64.b64decode(value["content"], validate=True))
        elif what == "lfsFile":
            if value["oid"] not in repository.large:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = Blob.large(value["oid"], self.large(value["oid"]).stat().st_size)
        elif what == "deletedFile":
            if files.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        elif what == "deletedFolder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]
        else:
            raise Refusal(400, f"unknown operation {what}")
