"""Files on loopback that fail on demand; what HTTP says of ranges and validators is Werkzeug's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server


@dataclass
class Fault:
    """What goes wrong with one request. ``cut``: the connection ends after so many bytes."""

    cut: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class RangeServer:
    """Files by path; every GET takes the next of ``faults``, if there is one left.

    ``requests`` are those that came: method, path, and what part was asked for.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    sizes: bool = True
    """Whether answers say how long they are: else they come in chunks."""
    always: Fault | None = None

    @classmethod
    def of_folder(cls, folder: Path, **options: bool) -> RangeServer:
        """The files below a folder, as they are now."""
        files = {
            f"/{path.relative_to(folder)}": path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        return cls(files, **options)

    def start(self) -> RangeServer:
        app = Request.application(self._answer)
        self._http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self._http.server_port}{path}"

    def _answer(self, request: Request) -> Response:
        path = request.path
        self.requests.append((request.method, path, request.headers.get("Range")))
        is_get = request.method == "GET"
        fault = self.faults.pop(0) if is_get and self.faults else self.always or Fault()
        if path in self.redirects:
            return Response(status=302, headers={"Location": self.url(self.redirects[path])})
        if fault.status is not None:
            return Response(status=fault.status, headers=fault.headers)
        if path not in self.files:
            return self._listing(path)
        try:
            answer = self._file(request, path)
        except HTTPException as error:  # 416
            return error.get_response(request.environ)
        answer.headers.update(fault.headers)
        if fault.cut is not None:
            answer.headers.setdefault("Content-Length", str(len(answer.get_data())))
            answer.response = [answer.get_data()[: fault.cut]]
        return answer

    def _file(self, request: Request, path: str) -> Response:
        data = self.files[path]
        answer = Response(data if self.sizes else _pieces(data), mimetype="application/zip")
        etag = self.etags.get(path, "1")
        answer.set_etag(etag.removeprefix("W/"), weak=etag.startswith("W/"))
        answer.automatically_set_content_length = self.sizes
        if self.ranges:
            answer.make_conditional(request, accept_ranges=True, complete_length=len(data))
        return answer

    def _listing(self, path: str) -> Response:
        """The folder at ``path`` as web servers show one; 404 if nothing lies below it."""
        folder = path.rstrip("/") + "/"
        below = [name.removeprefix(folder) for name in self.files if name.startswith(folder)]
        names = {name.partition("/")[0] + ("/" if "/" in name else "") for name in below}
        links = "".join(f'<a href="{folder}{name}">{name}</a>' for name in sorted(names))
        return Response(links, 200 if names else 404, mimetype="text/html")


def _pieces(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), 1 << 16):
        yield data[begin : begin + (1 << 16)]


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: object) -> None:
        pass
