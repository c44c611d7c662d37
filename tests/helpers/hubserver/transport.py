"""Requests as they come over the connection, answers as they go, and the faults between them."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from hubserver.state import Refusal

if TYPE_CHECKING:
    from hubserver.server import HubServer

CHUNK = 1 << 20


@dataclass(frozen=True)
class Request:
    """What the server writes down of a request. ``token``: whether an Authorization was sent."""

    method: str
    path: str
    token: bool
    range: str | None


class Cut(Exception):
    """The connection ends here."""


class Transport(BaseHTTPRequestHandler):
    """Answers one request after another on a connection, with the fault that is next."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *arguments: Any) -> None:
        """The tests read ``server.requests``."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        method = "GET" if self.command == "HEAD" else self.command
        token = "Authorization" in self.headers
        self.server.requests.append(
            Request(self.command, self.path, token, self.headers.get("Range"))
        )
        self.fault = self.server.faults.take(self.command, self.path)
        self.unread: Iterator[bytes] = self._body()
        try:
            if self.fault.first is not None:
                self.fault.first()
            self._refuse_by_fault()
            action, parts = self.route(method, url.path)
            action(**parts)
        except Refusal as refusal:
            self._drain()
            self._say_refusal(refusal)
        except (Cut, ConnectionError):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def route(self, method: str, path: str) -> tuple[Callable[..., None], dict[str, Any]]:
        """What answers, and its arguments from the path."""
        raise NotImplementedError

    def _refuse_by_fault(self) -> None:
        if self.fault.status is not None:
            raise Refusal(self.fault.status, "as the test wants it")

    @property
    def caller(self) -> str | None:
        """The user whose token came with the request; a wrong token is refused."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.server.state.users.get(given.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def _body(self) -> Iterator[bytes]:
        """The body in pieces, cut where the fault says."""
        left = self.fault.drop_after if self.command in ("PUT", "POST") else None
        for data in self._pieces():
            if left is not None and (left := left - len(data)) < 0:
                raise Cut
            yield data

    def _pieces(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            data = self.rfile.read(min(left, CHUNK))
            if not data:
                raise Cut
            left -= len(data)
            yield data

    def _drain(self) -> None:
        for _ in self.unread:
            pass

    def body_json(self) -> Any:
        return json.loads(b"".join(self.unread) or b"null")

    def _say_refusal(self, refusal: Refusal) -> None:
        headers = dict(self.fault.headers) | {"X-Error-Message": refusal.message}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self.say({"error": refusal.message}, refusal.status, headers)

    def say(self, what: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._drain()
        data = json.dumps(what).encode()
        if self.fault.lose_answer:
            raise Cut
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _range(self, size: int) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None or self.fault.ignore_range:
            return None
        if not match[1]:
            return max(0, size - int(match[2])), size
        start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
        if start >= size:
            raise Refusal(416, "Range Not Satisfiable")
        return start, end

    def _begin(self, size: int, headers: dict[str, str]) -> tuple[int, int]:
        if self.fault.lose_answer:
            raise Cut
        part = self._range(size)
        start, end = part or (0, size)
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        return start, end

    def send_file(self, place: Path, headers: dict[str, str]) -> None:
        size = place.stat().st_size
        start, end = self._begin(size, headers)
        if self.command != "HEAD" and end > start:
            with open(place, "rb") as file:
                self.connection.sendfile(file, start, end - start)

    def send_bytes(self, data: bytes, headers: dict[str, str]) -> None:
        start, end = self._begin(len(data), headers)
        if self.fault.flip is not None:
            changed = bytearray(data)
            changed[self.fault.flip] ^= 1
            data = bytes(changed)
        part = data[start:end]
        if self.command == "HEAD":
            return
        if self.fault.drop_after is not None and self.fault.drop_after < len(part):
            self.wfile.write(part[: self.fault.drop_after])
            raise Cut
        self.wfile.write(part)
