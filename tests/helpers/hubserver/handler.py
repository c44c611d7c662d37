"""The Hub's HTTP API: what each request does and is answered."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from hubserver.faults import NONE
from hubserver.state import Blob, Refusal, Repository
from hubserver.transport import Transport

_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", r"/api/datasets", "search"),
    ("GET", rf"/api/datasets/{_NAME}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/api/datasets/{_NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/datasets/{_NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/datasets/{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"/api/datasets/{_NAME}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("GET", rf"/api/datasets/{_NAME}/refs", "refs"),
    ("GET", rf"/api/datasets/{_NAME}/discussions", "discussions"),
    ("GET", rf"/api/datasets/{_NAME}/commits/(?P<revision>[^/]+)", "commits"),
    ("POST", rf"/api/datasets/{_NAME}/tag/(?P<revision>[^/]+)", "tag"),
    ("DELETE", rf"/api/datasets/{_NAME}/tag/(?P<revision>[^/]+)", "untag"),
    ("POST", rf"/datasets/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/datasets/{_NAME}\.git/info/lfs/verify", "verify"),
    ("PUT", rf"/upload/{_NAME}/(?P<sha256>[0-9a-f]{{64}})", "upload"),
    ("GET", r"/storage/(?P<sha256>[0-9a-f]{64})", "download"),
    ("GET", rf"/datasets/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(Transport):
    def route(self, method: str, path: str) -> tuple[Callable[..., None], dict[str, Any]]:
        for wanted, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if wanted == method and match:
                parts = {k: v and unquote(v) for k, v in match.groupdict().items()}
                return getattr(self, name), parts
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    # Repositories and users

    def whoami(self) -> None:
        user = self.caller
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        mine = sorted(n for n, members in self.server.state.members.items() if user in members)
        self.say({"type": "user", "name": user, "orgs": [{"name": name} for name in mine]})

    def validate_yaml(self) -> None:
        text = self.body_json()["content"]
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            yaml.safe_load(match[1] if match else "")
        except yaml.YAMLError as error:
            self.say({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        self.say({"errors": [], "warnings": []})

    def create(self) -> None:
        what = self.body_json()
        namespace = what.get("organization") or self.caller
        state = self.server.state
        if self.caller is None:
            raise Refusal(401, "Invalid username or password.")
        if not state.may_write(self.caller, namespace):
            raise Refusal(
                403, f'You don\'t have the rights to create a dataset under "{namespace}"'
            )
        name = f"{namespace}/{what['name']}"
        url = f"{self.server.endpoint}/datasets/{name}"
        with state.lock:
            try:
                state.create(name, private=what.get("visibility") == "private")
            except Refusal as refusal:
                self.say({"error": refusal.message, "url": url}, refusal.status)
                return
        self.say({"url": url, "name": name})

    def search(self) -> None:
        user, author = self.caller, self.query.get("author")
        wanted = parse_qs(urlsplit(self.path).query).get("filter", [])
        found = []
        for repository in self.server.state.repositories.values():
            if author not in (None, repository.namespace):
                continue
            if repository.private and not self.server.state.may_write(user, repository.namespace):
                continue
            if set(wanted) <= set(repository.card().get("tags", [])):
                found.append({"id": repository.name, "private": repository.private})
        self.say(found)

    def info(self, name: str, revision: str | None) -> None:
        repository = self.server.state.see(name, self.caller)
        commit = repository.resolve(revision or "main")
        self.say(
            {
                "id": name,
                "author": repository.namespace,
                "sha": commit.oid,
                "lastModified": commit.date,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": repository.card().get("tags", []),
                "cardData": repository.card(),
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    # Commits and references

    def preupload(self, name: str, revision: str) -> None:
        repository = self._writable(name)
        files = repository.resolve(revision).files
        modes = []
        for file in self.body_json()["files"]:
            path = file["path"]
            large = repository.is_large(path, file["size"])
            old = files.get(path)
            modes.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": old.etag if old else None,
                }
            )
        self.say({"files": modes})

    def commit(self, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in b"".join(self.unread).splitlines() if line]
        pull_request = self.query.get("create_pr") == "1"
        repository = self._writable(name)
        with self.server.state.lock:
            new, number = self.server.state.apply(
                repository, revision, lines, pull_request=pull_request
            )
        url = f"{self.server.endpoint}/datasets/{name}"
        answer = {"success": True, "commitOid": new.oid, "commitUrl": f"{url}/commit/{new.oid}"}
        if number is not None:
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        self.say(answer)

    def _writable(self, name: str) -> Repository:
        """For members, and with create_pr for everyone who has signed in."""
        state = self.server.state
        if self.query.get("create_pr") == "1" and self.caller is not None:
            return state.read(name, self.caller)
        return state.write(name, self.caller)

    def refs(self, name: str) -> None:
        repository = self.server.state.see(name, self.caller)
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        found: dict[str, list[dict[str, str]]] = {"converts": []}
        for kind, prefix in kinds.items():
            found[kind] = [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
                for ref, oid in sorted(repository.refs.items())
                if ref.startswith(prefix)
            ]
        self.say(found)

    def discussions(self, name: str) -> None:
        """The pull requests: there are no other discussions here."""
        repository = self.server.state.see(name, self.caller)
        found = []
        for reference, oid in sorted(repository.refs.items()):
            kind, _, number = reference.rpartition("/")
            if kind == "refs/pr":
                commit = repository.commits[oid]
                found.append(
                    {
                        "num": int(number),
                        "title": commit.title,
                        "createdAt": commit.date,
                        "status": repository.decided.get(int(number), "open"),
                        "repo": {"name": name, "type": "dataset"},
                        "isPullRequest": True,
                    }
                )
        self.say({"discussions": found, "count": len(found), "start": 0})

    def commits(self, name: str, revision: str) -> None:
        """The history of a revision, in pages of three."""
        history = self.server.state.see(name, self.caller).history(revision)
        page = int(self.query.get("p", 0))
        found = [
            {"id": c.oid, "authors": [], "date": c.date, "title": c.title, "message": ""}
            for c in history[3 * page : 3 * page + 3]
        ]
        place = f"{self.server.endpoint}/api/datasets/{name}/commits/{revision}?p={page + 1}"
        more = len(history) > 3 * page + 3
        self.say(found, headers={"Link": f'<{place}>; rel="next"'} if more else None)

    def tag(self, name: str, revision: str) -> None:
        repository = self.server.state.write(name, self.caller)
        reference = f"refs/tags/{self.body_json()['tag']}"
        with self.server.state.lock:
            if reference in repository.refs:
                raise Refusal(409, "Tag already exists")
            repository.refs[reference] = repository.resolve(revision).oid
        self.say({})

    def untag(self, name: str, revision: str) -> None:
        repository = self.server.state.write(name, self.caller)
        if repository.refs.pop(f"refs/tags/{revision}", None) is None:
            raise Refusal(404, "Tag not found", "RevisionNotFound")
        self.say({})

    def tree(self, name: str, revision: str, path: str | None) -> None:
        commit = self.server.state.see(name, self.caller).resolve(revision)
        folder = f"{path}/" if path else ""
        deep = self.query.get("recursive", "").lower() == "true"
        found: dict[str, dict[str, Any]] = {}
        for name_, blob in sorted(commit.files.items()):
            if not name_.startswith(folder):
                continue
            parts = name_.removeprefix(folder).split("/")
            for depth in range(1, len(parts)):
                if deep or depth == 1:
                    place = folder + "/".join(parts[:depth])
                    found.setdefault(place, _folder(place))
            if deep or len(parts) == 1:
                found[name_] = _file(name_, blob)
        if not found and path:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        self.say(list(found.values()))

    def paths_info(self, name: str, revision: str) -> None:
        commit = self.server.state.see(name, self.caller).resolve(revision)
        body = b"".join(self.unread).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        found = []
        for path in wanted:
            if path in commit.files:
                found.append(_file(path, commit.files[path]))
            elif any(name_.startswith(f"{path}/") for name_ in commit.files):
                found.append(_folder(path))
        self.say(found)

    # Large files

    def batch(self, name: str) -> None:
        repository = self.server.state.see(name, self.caller)
        if self.caller is None:
            raise Refusal(401, "Invalid username or password.")
        objects = []
        for wanted in self.body_json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repository.large:
                verify = f"{self.server.endpoint}/datasets/{name}.git/info/lfs/verify"
                answer["actions"] = {
                    "upload": {"href": f"{self.server.storage}/upload/{name}/{wanted['oid']}"},
                    "verify": {"href": verify},
                }
            objects.append(answer)
        self.say({"transfer": "basic", "objects": objects})

    def upload(self, name: str, sha256: str) -> None:
        place = self.server.state.large(sha256)
        temporary = place.with_name(f"{sha256}.{id(self)}.tmp")
        digest = hashlib.sha256()
        try:
            with open(temporary, "wb") as file:
                for data in self.unread:
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != sha256:
                raise Refusal(400, "BadDigest")
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
        self.server.repository(name).large.add(sha256)
        self.say({}, headers={"ETag": f'"{sha256}"'})

    def verify(self, name: str) -> None:
        what = self.body_json()
        if what["oid"] not in self.server.repository(name).large:
            raise Refusal(404, "Object does not exist")
        self.say({})

    # Reading files

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, blob = self.server.state.read(name, self.caller).blob(revision, path)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{self.fault.etag or blob.etag}"'}
        if blob.sha256 is None:
            self.send_bytes(blob.data or b"", headers)
            return
        headers["X-Linked-Size"] = str(blob.size)
        headers["X-Linked-ETag"] = headers["ETag"]
        headers["Location"] = f"{self.server.storage}/storage/{blob.sha256}?name={path}"
        self.say({}, 302, headers)

    def download(self, sha256: str) -> None:
        place = self.server.state.large(sha256)
        if not place.exists():
            raise Refusal(404, "NoSuchKey")
        headers = {"ETag": f'"{self.fault.etag or sha256}"'}
        if self.fault is NONE:
            self.send_file(place, headers)
        else:
            self.send_bytes(place.read_bytes(), headers)


def _file(path: str, blob: Blob) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.sha256 is not None:
        found["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return found


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}
