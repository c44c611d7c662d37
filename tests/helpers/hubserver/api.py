"""The Hub's HTTP API: what each request does and is answered. HTTP's own rules are Flask's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from flask import Flask, Response, redirect, request, send_file
from werkzeug.routing import BaseConverter
from werkzeug.wsgi import FileWrapper

from hubserver.state import Blob, Refusal, Repository

if TYPE_CHECKING:
    from hubserver.faults import Fault
    from hubserver.server import HubServer

_CHUNK = 1 << 20
_API = "/api/datasets/<name:name>"
_GIT = "/datasets/<name:name>.git/info/lfs"
_ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", "/api/repos/create", "create"),
    ("GET", "/api/datasets", "search"),
    ("GET", _API, "info"),
    ("GET", f"{_API}/revision/<revision:revision>", "info"),
    ("POST", f"{_API}/preupload/<revision:revision>", "preupload"),
    ("POST", f"{_API}/commit/<revision:revision>", "commit"),
    ("GET", f"{_API}/tree/<revision:revision>", "tree"),
    ("GET", f"{_API}/tree/<revision:revision>/<path:path>", "tree"),
    ("POST", f"{_API}/paths-info/<revision:revision>", "paths_info"),
    ("GET", f"{_API}/refs", "refs"),
    ("GET", f"{_API}/discussions", "discussions"),
    ("GET", f"{_API}/commits/<revision:revision>", "commits"),
    ("POST", f"{_API}/tag/<revision:revision>", "tag"),
    ("DELETE", f"{_API}/tag/<revision:revision>", "untag"),
    ("GET", f"{_API}/xet-read-token/<revision:revision>", "xet_token"),
    ("POST", f"{_GIT}/objects/batch", "batch"),
    ("POST", f"{_GIT}/verify", "verify"),
    ("PUT", "/upload/<name:name>/<sha256>", "upload"),
    ("GET", "/storage/<sha256>", "download"),
    ("GET", "/datasets/<name:name>/resolve/<revision:revision>/<path:path>", "resolve"),
]
Json = dict[str, Any] | list[Any]


class _Name(BaseConverter):
    """``<namespace>/<repository>``."""

    regex = r"[\w.-]+/[\w.-]+?"
    part_isolating = False


class _Revision(BaseConverter):
    """A branch, a tag, a commit, or a reference such as ``refs/pr/1``."""

    regex = r"refs/\w+/[^/]+|[^/]+"
    part_isolating = False


class Api:
    """The application ``app``, for the repositories of a server."""

    def __init__(self, server: HubServer):
        self.server, self.state = server, server.state
        self.app = Flask("hubserver")
        self.app.json.sort_keys = False  # type: ignore[attr-defined]
        self.app.url_map.converters |= {"name": _Name, "revision": _Revision}
        self.app.register_error_handler(Refusal, _refused)
        for number, (method, path, name) in enumerate(_ROUTES):
            self.app.add_url_rule(path, f"{name} {number}", getattr(self, name), methods=[method])

    @property
    def caller(self) -> str | None:
        """The user whose token came with the request; a wrong token is refused."""
        given = request.headers.get("Authorization")
        if given is None:
            return None
        user = self.state.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    # Repositories and users

    def whoami(self) -> Json:
        user = self.caller
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        mine = sorted(n for n, members in self.state.members.items() if user in members)
        return {"type": "user", "name": user, "orgs": [{"name": name} for name in mine]}

    def validate_yaml(self) -> tuple[Json, int]:
        match = re.match(r"---\n(.*?)\n---\n", _body()["content"], re.DOTALL)
        try:
            yaml.safe_load(match[1] if match else "")
        except yaml.YAMLError as error:
            return {"errors": [{"message": str(error)}], "warnings": []}, 400
        return {"errors": [], "warnings": []}, 200

    def create(self) -> tuple[Json, int]:
        what = _body()
        namespace = what.get("organization") or self.caller
        if self.caller is None:
            raise Refusal(401, "Invalid username or password.")
        if not self.state.may_write(self.caller, namespace):
            raise Refusal(
                403, f'You don\'t have the rights to create a dataset under "{namespace}"'
            )
        name = f"{namespace}/{what['name']}"
        url = f"{self.server.endpoint}/datasets/{name}"
        with self.state.lock:
            try:
                self.state.create(name, private=what.get("visibility") == "private")
            except Refusal as refusal:
                return {"error": refusal.message, "url": url}, refusal.status
        return {"url": url, "name": name}, 200

    def search(self) -> Json:
        user, author = self.caller, request.args.get("author")
        wanted = set(request.args.getlist("filter"))
        return [
            {"id": repository.name, "private": repository.private}
            for repository in self.state.repositories.values()
            if author in (None, repository.namespace)
            and (not repository.private or self.state.may_write(user, repository.namespace))
            and wanted <= set(repository.card().get("tags", []))
        ]

    def info(self, name: str, revision: str = "main") -> Json:
        repository = self.state.see(name, self.caller)
        commit = repository.resolve(revision)
        return {
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

    # Commits and references

    def preupload(self, name: str, revision: str) -> Json:
        repository = self._writable(name)
        files = repository.resolve(revision).files
        modes = []
        for file in _body()["files"]:
            path = file["path"]
            mode = "lfs" if repository.is_large(path, file["size"]) else "regular"
            oid = files[path].etag if path in files else None
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": modes}

    def commit(self, name: str, revision: str) -> Json:
        lines = [json.loads(line) for line in request.get_data().splitlines() if line]
        pull_request = request.args.get("create_pr") == "1"
        repository = self._writable(name)
        with self.state.lock:
            new, number = self.state.apply(repository, revision, lines, pull_request=pull_request)
        url = f"{self.server.endpoint}/datasets/{name}"
        answer = {"success": True, "commitOid": new.oid, "commitUrl": f"{url}/commit/{new.oid}"}
        if number is not None:
            answer["pullRequestUrl"] = f"{url}/discussions/{number}"
        return answer

    def _writable(self, name: str) -> Repository:
        """For members, and with create_pr for everyone who has signed in."""
        if request.args.get("create_pr") == "1" and self.caller is not None:
            return self.state.read(name, self.caller)
        return self.state.write(name, self.caller)

    def refs(self, name: str) -> Json:
        repository = self.state.see(name, self.caller)
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        found: dict[str, list[dict[str, str]]] = {"converts": []}
        for kind, prefix in kinds.items():
            found[kind] = [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
                for ref, oid in sorted(repository.refs.items())
                if ref.startswith(prefix)
            ]
        return found

    def discussions(self, name: str) -> Json:
        """The pull requests: there are no other discussions here."""
        repository = self.state.see(name, self.caller)
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
        return {"discussions": found, "count": len(found), "start": 0}

    def commits(self, name: str, revision: str) -> tuple[Json, dict[str, str]]:
        """The history of a revision, in pages of three."""
        history = self.state.see(name, self.caller).history(revision)
        page = request.args.get("p", 0, int)
        found: Json = [
            {"id": c.oid, "authors": [], "date": c.date, "title": c.title, "message": ""}
            for c in history[3 * page : 3 * page + 3]
        ]
        place = f"{self.server.endpoint}/api/datasets/{name}/commits/{revision}?p={page + 1}"
        more = len(history) > 3 * page + 3
        return found, {"Link": f'<{place}>; rel="next"'} if more else {}

    def tag(self, name: str, revision: str) -> Json:
        repository = self.state.write(name, self.caller)
        reference = f"refs/tags/{_body()['tag']}"
        with self.state.lock:
            if reference in repository.refs:
                raise Refusal(409, "Tag already exists")
            repository.refs[reference] = repository.resolve(revision).oid
        return {}

    def untag(self, name: str, revision: str) -> Json:
        repository = self.state.write(name, self.caller)
        if repository.refs.pop(f"refs/tags/{revision}", None) is None:
            raise Refusal(404, "Tag not found", "RevisionNotFound")
        return {}

    def tree(self, name: str, revision: str, path: str = "") -> Json:
        files = self.state.see(name, self.caller).resolve(revision).files
        folder = Path(path)
        deep = request.args.get("recursive", "").lower() == "true"
        found: dict[str, dict[str, Any]] = {}
        for name_, blob in sorted(files.items()):
            if folder not in Path(name_).parents:
                continue
            inside = Path(name_).relative_to(folder)
            folders = [str(folder / part) for part in reversed(inside.parents[:-1])]
            for place in folders if deep else folders[:1]:
                found.setdefault(place, _folder(place))
            if deep or not folders:
                found[name_] = _file(name_, blob)
        if not found and path:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return list(found.values())

    def paths_info(self, name: str, revision: str) -> Json:
        files = self.state.see(name, self.caller).resolve(revision).files
        wanted = request.form.getlist("paths") or _body()["paths"]
        found = []
        for path in wanted:
            if path in files:
                found.append(_file(path, files[path]))
            elif any(name_.startswith(f"{path}/") for name_ in files):
                found.append(_folder(path))
        return found

    # Large files

    def batch(self, name: str) -> Json:
        repository = self.state.see(name, self.caller)
        if self.caller is None:
            raise Refusal(401, "Invalid username or password.")
        objects = []
        for wanted in _body()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repository.large:
                verify = f"{self.server.endpoint}/datasets/{name}.git/info/lfs/verify"
                answer["actions"] = {
                    "upload": {"href": f"{self.server.storage}/upload/{name}/{wanted['oid']}"},
                    "verify": {"href": verify},
                }
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def upload(self, name: str, sha256: str) -> tuple[Json, dict[str, str]]:
        place = self.state.large(sha256)
        temporary = place.with_name(f"{sha256}.{id(request.environ)}.tmp")
        digest = hashlib.sha256()
        try:
            with open(temporary, "wb") as file:
                while data := request.stream.read(_CHUNK):
                    digest.update(data)
                    file.write(data)
            if digest.hexdigest() != sha256:
                raise Refusal(400, "BadDigest")
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
        self.state.repositories[name].large.add(sha256)
        return {}, {"ETag": f'"{sha256}"'}

    def verify(self, name: str) -> Json:
        if _body()["oid"] not in self.state.repositories[name].large:
            raise Refusal(404, "Object does not exist")
        return {}

    # Reading files

    def resolve(self, name: str, revision: str, path: str) -> Response:
        commit, blob = self.state.read(name, self.caller).blob(revision, path)
        if blob.sha256 is None:
            answer = _send(blob.data or b"", blob.etag)
        else:
            answer = redirect(f"{self.server.storage}/storage/{blob.sha256}?name={path}")
            answer.headers["X-Linked-Size"] = str(blob.size)
            answer.headers["X-Linked-ETag"] = f'"{blob.etag}"'
            if blob.sha256 in self.state.xet:
                place = f"{self.server.endpoint}/api/datasets/{name}/xet-read-token/{commit.oid}"
                answer.headers["X-Xet-Hash"] = self.state.xet[blob.sha256]
                answer.headers["Link"] = f'<{place}>; rel="xet-auth"'
        answer.headers["X-Repo-Commit"] = commit.oid
        return answer

    def download(self, sha256: str) -> Response:
        place = self.state.large(sha256)
        if not place.exists():
            raise Refusal(404, "NoSuchKey")
        return _send(place if _fault().flip is None else place.read_bytes(), sha256)

    def xet_token(self, name: str, revision: str) -> Json:
        self.state.read(name, self.caller).resolve(revision)
        return {"casUrl": self.state.cas, "accessToken": "of-xet", "exp": 1 << 33}


def _body() -> Any:
    return request.get_json(force=True)


def _fault() -> Fault:
    return request.environ["hub.fault"]


def _refused(refusal: Refusal) -> tuple[Json, int, dict[str, str]]:
    headers = {"X-Error-Message": refusal.message}
    headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
    return {"error": refusal.message}, refusal.status, headers


def _send(data: Path | bytes, etag: str) -> Response:
    """A file, or the part of it that the request asks for."""
    fault = _fault()
    if fault.flip is not None and isinstance(data, bytes):
        changed = bytearray(data)
        changed[fault.flip] ^= 1
        data = bytes(changed)
    request.environ["wsgi.file_wrapper"] = lambda file, size: FileWrapper(file, _CHUNK)
    return send_file(
        io.BytesIO(data) if isinstance(data, bytes) else data,
        "application/octet-stream",
        etag=etag,
    )


def _file(path: str, blob: Blob) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.sha256 is not None:
        found["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
    return found


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}
