"""The server: starts, stops, and what tests ask of it and tell it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from hubserver.api import Api
from hubserver.faults import Fault, Faults, Faulty, Request
from hubserver.state import Refusal, Repository, State


class _Silent(WSGIRequestHandler):
    def log(self, *arguments: Any) -> None:
        """The tests read ``HubServer.requests``."""


class HubServer:
    """Listens on loopback as soon as it is made; serves between ``start`` and ``stop``."""

    def __init__(self, root: Path, port: int = 0):
        (root / "lfs").mkdir(parents=True, exist_ok=True)
        self.state = State(root)
        self.faults = Faults()
        self.requests: list[Request] = []
        app = Faulty(Api(self).app, self.faults, self.requests)
        self._server = make_server("127.0.0.1", port, app, True, request_handler=_Silent)
        self.serve_forever = self._server.serve_forever

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def storage(self) -> str:
        """Where large files lie: another origin, so a client must not send its token there."""
        return f"http://localhost:{self._server.port}"

    def start(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def user(self, name: str, *namespaces: str) -> str:
        """A user who may write to ``namespaces`` beside the own one; gives the token."""
        token = f"hf_{name}" + "x" * 30
        self.state.users[token] = name
        for namespace in namespaces:
            self.state.members.setdefault(namespace, set()).add(name)
        return token

    def fail(self, path: str, **trouble: Any) -> None:
        self.faults.add(Fault(path, **trouble))

    def repository(self, name: str) -> Repository:
        return self.state.repositories[name]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """All files of a revision, with their bytes."""
        found = {}
        for path, blob in self.repository(name).resolve(revision).files.items():
            data = blob.data
            if data is None:
                data = self.state.large(blob.sha256 or "").read_bytes()
            found[path] = data
        return found

    def offer_xet(self, name: str, path: str) -> None:
        """Lets a large file be had through Xet, from a store of its chunks on this disk."""
        blob = self.repository(name).resolve("main").files[path]
        assert blob.sha256 is not None
        self.state.add_to_xet(blob.sha256)

    def merge(self, name: str, number: int) -> None:
        """Merges a pull request, which must still apply to main as it is."""
        repository = self.repository(name)
        proposed = repository.resolve(f"refs/pr/{number}")
        head = repository.resolve("main")
        if proposed.parent != head.oid:
            raise Refusal(409, "the pull request is not up to date")
        repository.commit(f"Merge #{number}", proposed.files, head, "refs/heads/main")
        repository.decided[number] = "merged"

    def close(self, name: str, number: int) -> None:
        """Closes a pull request without merging it; its reference stays."""
        self.repository(name).decided[number] = "closed"

    def count(self, path: str, method: str | None = None) -> int:
        """How many requests had ``path`` in theirs."""
        return sum(path in r.path and method in (None, r.method) for r in list(self.requests))
