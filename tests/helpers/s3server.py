"""moto's S3 on loopback, which drivers take for the real one."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import fsspec
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "maps"
KEY, SECRET = "a-key", "the-secret-of-the-key"
Before = Callable[[str, str], int | None]


class S3Server:
    """A server with one bucket. ``requests`` are those that came, as method and path.

    ``before`` is called with each of them, in a thread of its own, before it is handled; what it
    returns is the status of an answer in place of S3's. Requests that write are handled one after
    the other: S3 decides on conditions in one step, moto in two.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.before: Before = lambda method, path: None
        self._app: Any = DomainDispatcherApplication(create_backend_app)
        self._writing = threading.Lock()

    def start(self) -> S3Server:
        self._http = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.tell("reset")
        return self

    def stop(self) -> None:
        self.tell("reset-auth", b"inf")  # for all servers of this process
        self._http.shutdown()
        self._http.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def tell(self, what: str, data: bytes = b"") -> None:
        """Gives moto an order: ``reset``, or ``reset-auth`` with the number of requests that are
        still free before keys are checked."""
        url = f"{self.endpoint}/moto-api/{what}"
        request = urllib.request.Request(url, data, {"Content-Type": "text/plain"})
        with urllib.request.urlopen(request):
            pass

    def sent(self, ending: str = "") -> list[str]:
        """The paths of the files that came, those that end like this."""
        return [path for method, path in self.requests if method == "PUT" and path.endswith(ending)]

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path.startswith("/moto-api"):
            return self._app(environ, start_response)
        self.requests.append((method, path))
        status = self.before(method, path)
        if status is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} Because", [("Content-Length", "0")])
            return [b""]
        if method in ("GET", "HEAD"):
            return self._app(environ, start_response)
        with self._writing:
            return list(self._app(environ, start_response))


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: Any) -> None:
        pass


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets s3fs, also of child processes, talk to a server there and to nothing else; its file
    system."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    forget()
    return fsspec.filesystem("s3")


def forget() -> None:
    """Lets s3fs read its environment again: it keeps one file system for all."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
