"""One big file from the web: resumed where it was cut, retried a bounded number of times."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import (
    CHUNK,
    check_room,
    exclusive,
    expect_trouble,
    sync_folder,
    write_all,
    write_whole,
)
from wsssbed_hub.utils.progress import Progress

MAX_BYTES = 64 << 30  # of one download
TIMEOUT = 60  # seconds without a byte
TRIES = 4  # in a row that bring nothing
MOST_TRIES = 50  # in all
LONGEST_PAUSE = 60  # seconds; a server that wants more is left alone

_AGENT = "wsssbed-hub"


class Downloaded(NamedTuple):
    """A whole file."""

    path: Path
    size: int
    sha256: str


class _Trouble(Exception):
    """What may be gone at the next try; ``pause`` is how long the server wants to be left alone."""

    def __init__(self, what: str, pause: float | None = None):
        super().__init__(what)
        self.pause = pause


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything else."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new != "https"):
            raise HubError(f"{req.full_url} redirects to {new}://, which is not followed.")
        new_request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new_request is not None:
            new_request.method = req.get_method()  # HEAD stays HEAD
        return new_request


def download_path(root: Path, url: str) -> Path:
    """Where below the cache ``root`` the file of ``url`` lies while it is needed."""
    return root / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:32]


def download(
    url: str,
    path: Path,
    *,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Fetches ``url`` to ``path``, which appears when it is whole; the caller trusts no byte of it.

    A cut connection or a killed process goes on where it was if the server still has the same file
    (by its ETag or date), else from the beginning. Raises HubError for a file that is not there, a
    server that fails again and again, and a full disk. ``progress(bytes, of)`` as it goes.
    """
    with expect_trouble(path.parent):
        if not path.exists():
            partial = path.with_name(f"{path.name}.partial")
            with exclusive(partial) as descriptor:
                if path.exists():  # while this process waited, another fetched it
                    partial.unlink()
                else:
                    _Download(url, path, descriptor, progress).run(pause)
    return Downloaded(path, path.stat().st_size, file_digest(path))


def resolve(url: str) -> int | None:
    """Asks for ``url`` without fetching it: its size, None if the server does not say.

    Raises HubError if it is not there or its server cannot be asked.
    """
    try:
        with _open(urllib.request.Request(url, method="HEAD", headers=_headers())) as answer:
            return _length(answer.headers)
    except _Trouble as error:
        raise HubError(f"{url}: {error}.") from None


class _Download:
    """A file on its way; the caller holds the lock of the partial file."""

    def __init__(self, url: str, path: Path, descriptor: int, progress: Progress | None):
        self.url, self.path, self.descriptor, self.progress = url, path, descriptor, progress
        self.partial = path.with_name(f"{path.name}.partial")
        self.state = path.with_name(f"{path.name}.json")

    def run(self, pause: Callable[[float], None]) -> None:
        vain = 0
        for number in range(1, MOST_TRIES + 1):
            before = os.fstat(self.descriptor).st_size
            try:
                self._receive()
                break
            except _Trouble as error:
                vain = vain + 1 if os.fstat(self.descriptor).st_size <= before else 0
                if vain >= TRIES or number == MOST_TRIES or (error.pause or 0) > LONGEST_PAUSE:
                    raise HubError(f"{self.url}: {error}. {self._where()}") from None
                pause(error.pause if error.pause is not None else min(2.0**vain, LONGEST_PAUSE) - 1)
        os.fsync(self.descriptor)
        os.replace(self.partial, self.path)
        self.state.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _where(self) -> str:
        done = os.fstat(self.descriptor).st_size
        here = f"{done:,} bytes are here. " if done else ""
        return f"{here}Run it again later{', it goes on from there' if done else ''}."

    def _receive(self) -> None:
        done = os.fstat(self.descriptor).st_size
        headers = _headers()
        validator = self._validator()
        if done and validator is None:
            done = self._restart()
        if done and validator is not None:
            headers |= {"Range": f"bytes={done}-", "If-Range": validator}
        with _open(urllib.request.Request(self.url, headers=headers)) as answer:
            if answer.status == 206:
                total = _check_range(self.url, answer.headers, done)
            else:
                done = self._restart()
                total = _length(answer.headers)
                self._remember(answer.headers)
            if (total or 0) > MAX_BYTES:
                raise HubError(f"{self.url} has {total:,} bytes, more than {MAX_BYTES:,}.")
            check_room(self.path.parent, (total or done) - done)
            self._copy(answer, done, total)

    def _copy(self, answer: IO[bytes], done: int, total: int | None) -> None:
        os.lseek(self.descriptor, done, os.SEEK_SET)
        while True:
            try:
                data = answer.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                data = getattr(error, "partial", b"")
                write_all(self.descriptor, data)
                raise _Trouble(f"the connection was cut ({_why(error)})") from None
            if not data:
                break
            done += len(data)
            if done > (MAX_BYTES if total is None else total):
                self._restart()
                raise HubError(f"{self.url} sends more bytes than it said. Nothing was kept.")
            write_all(self.descriptor, data)
            if self.progress is not None:
                self.progress(done, total or done)
        if total is not None and done < total:
            raise _Trouble(f"the connection was cut at {done:,} of {total:,} bytes")

    def _restart(self) -> int:
        os.ftruncate(self.descriptor, 0)
        return 0

    def _remember(self, headers: Any) -> None:
        """Writes down what says, when the download goes on, that it is still the same file."""
        etag = headers.get("ETag")
        strong = etag if etag and not etag.startswith("W/") else None
        validator = strong or headers.get("Last-Modified")
        write_whole(self.state, json.dumps({"url": self.url, "validator": validator}).encode())

    def _validator(self) -> str | None:
        try:
            state = json.loads(self.state.read_text())
            return str(state["validator"]) if state["validator"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _headers() -> dict[str, str]:
    return {"User-Agent": _AGENT, "Accept-Encoding": "identity"}


def _open(request: urllib.request.Request) -> Any:
    """The answer, if it is a good one. Raises HubError or _Trouble."""
    url = request.full_url
    try:
        return urllib.request.build_opener(_NoDowngrade).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Trouble(f"its server cannot be reached ({_why(error)})") from None


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    code = error.code
    if code == 429 or code >= 500:
        wait = error.headers.get("Retry-After", "")
        seconds = float(wait) if re.fullmatch(r"\d{1,6}", wait) else None
        what = "its server wants fewer requests" if code == 429 else "its server fails"
        later = f" and asks to wait {seconds:.0f} s" if seconds else ""
        return _Trouble(f"{what} (HTTP {code}){later}", seconds)
    if code == 416:
        return HubError(f"{url} has become shorter than what was fetched of it (HTTP 416).")
    if code in (404, 410):
        return HubError(f"{url} is not there (HTTP {code}): the link is dead.")
    if code in (401, 403):
        return HubError(f"{url} is not for everyone (HTTP {code}).")
    return HubError(f"{url} cannot be had: HTTP {code} {error.reason}.")


def _check_range(url: str, headers: Any, done: int) -> int | None:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if found is None or int(found[1]) != done:
        raise HubError(f"{url}: its server sends another part than the one that was asked for.")
    return None if found[2] == "*" else int(found[2])


def _length(headers: Any) -> int | None:
    length = headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"\d{1,20}", length) else None


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason) or type(error).__name__
