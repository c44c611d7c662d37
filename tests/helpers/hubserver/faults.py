"""What the server does wrong, and when."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from werkzeug import Response

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass
class Fault:
    """Trouble for requests whose path (with its query) has a match of ``path``, ``times`` over."""

    path: str
    method: str | None = None
    times: int = 1
    status: int | None = None  # answered instead, with ``headers``
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # bytes of the body, sent or received, and the connection is cut
    lose_answer: bool = False  # the work is done, and the connection cut before it is said
    flip: int | None = None  # position of a byte of the file that is sent wrong
    ignore_range: bool = False  # the whole file is sent, whatever part was asked for
    first: Callable[[], object] | None = None  # what others do just before the request is served

    def meets(self, method: str, path: str) -> bool:
        return self.method in (None, method) and re.search(self.path, path) is not None


NONE = Fault("", times=0)


class Faults:
    """The faults that are still to come, in the order in which they were added."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, method: str, path: str) -> Fault:
        """The fault of this request, which has then happened once more."""
        with self._lock:
            for fault in self._waiting:
                if fault.meets(method, path):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._waiting.remove(fault)
                    return fault
        return NONE


@dataclass(frozen=True)
class Request:
    """What is written down of a request. ``token``: whether an Authorization was sent."""

    method: str
    path: str
    token: bool
    range: str | None


class Faulty:
    """An application whose requests are written down, and go wrong where a fault says so."""

    def __init__(self, app: Wsgi, faults: Faults, requests: list[Request]):
        self.app, self.faults, self.requests = app, faults, requests

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["RAW_URI"]
        token, part = "HTTP_AUTHORIZATION" in environ, environ.get("HTTP_RANGE")
        self.requests.append(Request(method, path, token, part))
        fault = environ["hub.fault"] = self.faults.take(method, path)
        if fault.first is not None:
            fault.first()
        if fault.ignore_range:
            environ.pop("HTTP_RANGE", None)
        if fault.drop_after is not None and method in ("PUT", "POST"):
            environ["wsgi.input"] = _CutInput(environ, fault.drop_after)
        answer = (
            self.app(environ, start) if fault.status is None else _refuse(fault)(environ, start)
        )
        if fault.lose_answer:
            list(answer)
            cut(environ)
        if fault.drop_after is not None and method == "GET":
            return _cut_output(environ, answer, fault.drop_after)
        return answer


def cut(environ: dict[str, Any]) -> None:
    """Ends the connection. Raises ConnectionError, on which the server gives up the request."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _refuse(fault: Fault) -> Response:
    message = "as the test wants it"
    headers = {"X-Error-Message": message} | dict(fault.headers)
    return Response(json.dumps({"error": message}), fault.status, headers, "application/json")


def _cut_output(environ: dict[str, Any], answer: Iterable[bytes], left: int) -> Iterator[bytes]:
    for data in answer:
        if left < len(data):
            yield data[:left]
            cut(environ)
        left -= len(data)
        yield data


class _CutInput:
    """The body of a request, which ends with the connection after ``left`` bytes."""

    def __init__(self, environ: dict[str, Any], left: int):
        self._environ, self._input, self._left = environ, environ["wsgi.input"], left

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._input.read(size)
        self._left -= len(data)
        if self._left < 0:
            cut(self._environ)
        return data
