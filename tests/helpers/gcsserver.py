"""As much of Google Cloud Storage's JSON API on loopback as gcsfs needs: objects, generations and
the conditions on them, uploads in one piece and in several, listing.

Written from https://cloud.google.com/storage/docs/json_api/v1; no credentials, one bucket.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# Or gcsfs asks Google what kind of bucket it is. It reads this when it is imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

BUCKET = "maps"


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
        class Handler(_Handler):
            state = self

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
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


class _Handler(BaseHTTPRequestHandler):
    state: GcsServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self._begin()
        if match := re.fullmatch(rf"(?:/download)?/storage/v1/b/{BUCKET}/o/(.+)", path):
            self._object(unquote(match[1]))
        elif path == f"/storage/v1/b/{BUCKET}/o":
            self._list()
        elif path == f"/storage/v1/b/{BUCKET}":
            self._json({"name": BUCKET})
        else:
            self._json({"error": {"code": 404, "message": "Not Found"}}, 404)

    def do_POST(self) -> None:
        path = self._begin()
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path != f"/upload/storage/v1/b/{BUCKET}/o":
            self._json({"error": {"code": 404, "message": "Not Found"}}, 404)
        elif "upload_id" in self.query:
            self._part(self.query["upload_id"], data)
        elif self.query["uploadType"] == "resumable":
            number = str(len(self.state.uploads))
            wanted = self.query.get("ifGenerationMatch")
            self.state.uploads[number] = (self.query["name"], wanted, bytearray())
            place = f"{self.state.endpoint}{path}?uploadType=resumable&upload_id={number}"
            self._json({}, headers={"Location": place})
        else:
            kind = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, body = message_from_bytes(kind + data, policy=policy.HTTP).iter_parts()
            name = json.loads(about.get_payload(decode=True))["name"]
            self._write(name, body.get_payload(decode=True), self.query.get("ifGenerationMatch"))

    def do_DELETE(self) -> None:
        self._begin()
        self.state.uploads.pop(self.query.get("upload_id", ""), None)
        self._send(499, b"")

    def _begin(self) -> str:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.state.before(self.command, unquote(parts.path))
        return parts.path

    def _part(self, number: str, data: bytes) -> None:
        name, wanted, so_far = self.state.uploads[number]
        so_far += data
        if self.headers["Content-Range"].endswith("/*"):
            self._send(308, b"", {"Range": f"bytes=0-{len(so_far) - 1}"})
        else:
            self._write(name, bytes(so_far), wanted)

    def _write(self, name: str, data: bytes, wanted: str | None) -> None:
        about = self.state.write(name, data, wanted)
        if about is None:
            self._json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
        else:
            self._json(about)

    def _object(self, name: str) -> None:
        data, generation = self.state.objects.get(name, (b"", 0))
        if not generation or self.query.get("generation", str(generation)) != str(generation):
            self._json({"error": {"code": 404, "message": "Not Found"}}, 404)
        elif self.query.get("alt") != "media":
            self._json(self.state.about(name))
        elif match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), min(int(match[2] or len(data)) + 1, len(data))
            span = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            self._send(206, data[start:stop], span)
        else:
            self._send(200, data)

    def _list(self) -> None:
        prefix, edge = self.query.get("prefix", ""), self.query.get("delimiter")
        names = [name for name in sorted(self.state.objects) if name.startswith(prefix)]
        folders = {
            prefix + name.removeprefix(prefix).partition(edge)[0] + edge
            for name in names
            if edge and edge in name.removeprefix(prefix)
        }
        items = [self.state.about(n) for n in names if not any(n.startswith(f) for f in folders)]
        self._json({"items": items, "prefixes": sorted(folders)})

    def _json(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(data).encode(), headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # gcsfs asks two things and takes one answer
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass
