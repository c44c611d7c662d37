"""As much of Google Cloud Storage's JSON API on loopback as gcsfs needs: objects, generations and
the conditions on them, uploads in one piece and in several, listing. HTTP itself is Werkzeug's.

Written from https://cloud.google.com/storage/docs/json_api/v1; no credentials, one bucket.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from email import message_from_bytes, policy
from typing import Any

from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

# Or gcsfs asks Google what kind of bucket it is. It reads this when it is imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

BUCKET = "maps"
_OBJECTS = f"/storage/v1/b/{BUCKET}/o"


class GcsServer:
    """``objects`` by name: bytes and generation. ``before`` is called with the method and the path
    of each request before it is handled."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, str | None, bytearray]] = {}
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.writes: list[str] = []
        self.lock = threading.Lock()
        self._generation = 1000

    def start(self) -> GcsServer:
        app = Request.application(self._answer)
        self._http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def write(self, name: str, data: bytes, wanted: str | None) -> dict[str, Any] | None:
        """The object as it is then; None if it has not the generation that is wanted."""
        with self.lock:
            there = self.objects.get(name, (b"", 0))[1]
            if wanted is not None and int(wanted) != there:
                return None
            self._generation += 1
            self.objects[name] = (data, self._generation)
            self.writes.append(name)
            return self.about(name)

    def about(self, name: str) -> dict[str, Any]:
        data, generation = self.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "generation": str(generation),
            "size": str(len(data)),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "updated": "2026-01-02T03:04:05.000Z",
            "timeCreated": "2026-01-02T03:04:05.000Z",
        }

    def _answer(self, request: Request) -> Response:
        self.before(request.method, request.path)
        path = request.path
        if request.method == "DELETE":  # of an upload that is given up
            self.uploads.pop(request.args.get("upload_id", ""), None)
            return Response(status=499)
        if request.method == "POST" and path == f"/upload{_OBJECTS}":
            return self._upload(request)
        if match := re.fullmatch(rf"(?:/download)?{_OBJECTS}/(.+)", path):
            return self._object(request, match[1])
        if path == _OBJECTS:
            return self._list(request)
        if path == _OBJECTS.removesuffix("/o"):
            return _json({"name": BUCKET})
        return _json({"error": {"code": 404, "message": "Not Found"}}, 404)

    def _upload(self, request: Request) -> Response:
        data, query = request.get_data(), request.args
        if "upload_id" in query:
            return self._part(request, query["upload_id"], data)
        wanted = query.get("ifGenerationMatch")
        if query["uploadType"] == "resumable":
            number = str(len(self.uploads))
            self.uploads[number] = (query["name"], wanted, bytearray())
            place = f"{self.endpoint}{request.path}?uploadType=resumable&upload_id={number}"
            return _json({}, headers={"Location": place})
        kind = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        about, body = message_from_bytes(kind + data, policy=policy.HTTP).iter_parts()
        name = json.loads(about.get_payload(decode=True))["name"]
        return self._write(name, body.get_payload(decode=True), wanted)

    def _part(self, request: Request, number: str, data: bytes) -> Response:
        name, wanted, so_far = self.uploads[number]
        so_far += data
        if request.headers["Content-Range"].endswith("/*"):
            return Response(status=308, headers={"Range": f"bytes=0-{len(so_far) - 1}"})
        return self._write(name, bytes(so_far), wanted)

    def _write(self, name: str, data: bytes, wanted: str | None) -> Response:
        about = self.write(name, data, wanted)
        if about is None:
            return _json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
        return _json(about)

    def _object(self, request: Request, name: str) -> Response:
        data, generation = self.objects.get(name, (b"", 0))
        if not generation or request.args.get("generation", str(generation)) != str(generation):
            return _json({"error": {"code": 404, "message": "Not Found"}}, 404)
        if request.args.get("alt") != "media":
            return _json(self.about(name))
        answer = Response(data, mimetype="application/octet-stream")
        return answer.make_conditional(request, accept_ranges=True, complete_length=len(data))

    def _list(self, request: Request) -> Response:
        prefix, edge = request.args.get("prefix", ""), request.args.get("delimiter")
        names = [name for name in sorted(self.objects) if name.startswith(prefix)]
        folders = {
            prefix + name.removeprefix(prefix).partition(edge)[0] + edge
            for name in names
            if edge and edge in name.removeprefix(prefix)
        }
        items = [self.about(n) for n in names if not any(n.startswith(f) for f in folders)]
        return _json({"items": items, "prefixes": sorted(folders)})


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(data), status, headers, mimetype="application/json")


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: object) -> None:
        pass
