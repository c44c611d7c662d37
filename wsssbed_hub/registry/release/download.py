"""One big file from the web: resumed where it was cut, and not asked for once all of it is here."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import (
    CHUNK,
    check_room,
    disk_errors,
    exclusive,
    sync_folder,
    write_all,
    write_whole,
)
from wsssbed_hub.utils.progress import Progress
from wsssbed_hub.utils.retry import Passing, patiently, retry_after

MAX_BYTES = 64 << 30  # of one download
TIMEOUT = 60  # seconds without a byte
_AGENT = "wsssbed-hub"


class Downloaded(NamedTuple):
    """A whole file."""

    path: Path
    size: int
    sha256: str


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


def download(url: str, path: Path, *, progress: Progress | None = None) -> Downloaded:
    """Fetches ``url`` to ``path``, which appears when it is whole; the caller trusts no byte of it.

    A cut connection or a killed process goes on where it was if the server still has the same file
    (by its ETag or date), else from the beginning. Raises HubError for a file that is not there, a
    server that fails again and again, and a full disk. ``progress(bytes, of)`` as it goes.
    """
    with disk_errors(path.parent):
        if not path.exists():
            partial = path.with_name(f"{path.name}.partial")
            with exclusive(partial) as descriptor:
                if path.exists():  # while this process waited, another fetched it
                    partial.unlink()
                else:
                    _Download(url, path, descriptor, progress).run()
    return Downloaded(path, path.stat().st_size, file_digest(path))


def remote_size(url: str) -> int | None:
    """The size of the file at ``url``, which is not fetched; None if the server does not say.

    Raises HubError if it is not there or its server cannot be asked.
    """
    try:
        with _open(urllib.request.Request(url, method="HEAD", headers=_headers())) as answer:
            return _length(answer.headers)
    except Passing as error:
        raise HubError(f"{url}: {error}.") from None


class _Download:
    """A file on its way; the caller holds the lock of the partial file."""

    def __init__(self, url: str, path: Path, descriptor: int, progress: Progress | None):
        self.url, self.path, self.descriptor, self.progress = url, path, descriptor, progress
        self.partial = path.with_name(f"{path.name}.partial")
        self.state = path.with_name(f"{path.name}.json")

    def run(self) -> None:
        try:
            patiently(self._receive, position=self._here)
        except Passing as error:
            here = f"{self._here():,} bytes are here. " if self._here() else ""
            later = f"Run it again later{', it goes on from there' if here else ''}."
            raise HubError(f"{self.url}: {error}. {here}{later}") from None
        os.fsync(self.descriptor)
        os.replace(self.partial, self.path)
        self.state.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _here(self) -> int:
        return os.fstat(self.descriptor).st_size

    def _receive(self) -> None:
        """Brings what is missing. Raises Passing where another try may bring more."""
        done, (validator, size) = self._here(), self._remembered()
        if done and done == size:
            return  # an earlier run ended between the last byte and the file's name
        if done and (validator is None or done > (size or done)):
            done = self._restart()
        headers = _headers()
        if done and validator is not None:
            headers |= {"Range": f"bytes={done}-", "If-Range": validator}
        with _open(urllib.request.Request(self.url, headers=headers)) as answer:
            if answer.status == 416 and done:
                # Nothing lies behind these bytes: they are all, or the file has become another one.
                if answer.headers.get("Content-Range") != f"bytes */{done}":
                    self._restart()
                    raise Passing("it has become shorter than what was fetched of it", 0)
                return
            if answer.status == 206:
                total = _check_range(self.url, answer.headers, done)
            else:
                done = self._restart()
                total = _length(answer.headers)
                self._remember(answer.headers, total)
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
                raise Passing(f"the connection was cut ({_why(error)})") from None
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
            raise Passing(f"the connection was cut at {done:,} of {total:,} bytes")

    def _restart(self) -> int:
        os.ftruncate(self.descriptor, 0)
        return 0

    def _remember(self, headers: Any, size: int | None) -> None:
        """Writes down how much will come, and what says later that it is still the same file."""
        etag = headers.get("ETag")
        strong = etag if etag and not etag.startswith("W/") else None
        validator = strong or headers.get("Last-Modified")
        state = {"url": self.url, "validator": validator, "size": size}
        write_whole(self.state, json.dumps(state).encode())

    def _remembered(self) -> tuple[str | None, int | None]:
        """Validator and size of the file that is on its way, as far as they are known."""
        try:
            state = json.loads(self.state.read_text())
            return state["validator"] and str(state["validator"]), state.get("size")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None, None


def _headers() -> dict[str, str]:
    return {"User-Agent": _AGENT, "Accept-Encoding": "identity"}


def _open(request: urllib.request.Request) -> Any:
    """The answer, if it is a good one or 416. Raises HubError, Passing for what may pass."""
    url = request.full_url
    try:
        return urllib.request.build_opener(_NoDowngrade).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        with error:
            raise _refusal(url, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise Passing(f"its server cannot be reached ({_why(error)})") from None


def _refusal(url: str, error: urllib.error.HTTPError) -> HubError:
    code = error.code
    if code in (408, 429) or code >= 500:
        seconds = retry_after(error.headers.get("Retry-After"))
        what = "its server wants fewer requests" if code == 429 else "its server fails"
        later = f" and asks to wait {seconds:.0f} s" if seconds else ""
        return Passing(f"{what} (HTTP {code}){later}", seconds)
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
