"""One place at a URL, as reading and publishing both need it: paths, files, and plain errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from wsssbed_hub.artifacts.key_folder import MANIFEST
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import MAX_BYTES, Manifest, parse_manifest
from wsssbed_hub.registry.base import NAMESPACE, Missing
from wsssbed_hub.registry.url.drivers import error_code
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import CHUNK

_AHEAD = 8 << 20  # bytes that a driver asks for at a time
_WEB = ("http://", "https://")
_S3 = ("s3", "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
_GS = ("gs", "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS")
_HTTP = ("http", "")
_DRIVERS = {"s3": _S3, "s3a": _S3, "gs": _GS, "gcs": _GS, "http": _HTTP, "https": _HTTP}
_IN_URL = re.compile(r"(\w://)(?:[^\s/@]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?")


class Place:
    """The files below ``url``, and the driver (``files``) that reaches them.

    Raises UsageError for what is no registry, HubError if the package that reads it is missing.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UsageError(f"That registry is not a URL: {error}.") from None
        self._shown = without_secrets(url)
        if "?" in url:
            raise UsageError(f"{self}: a registry's URL has nothing after a question mark.")
        if "::" in url.partition("://")[0]:
            raise UsageError("A registry's URL is one URL, not a chain of them.")
        extra, sign_in = _DRIVERS.get(parts.scheme, ("", ""))
        self._sign_in = sign_in and f" Sign in with {sign_in}."
        login = parts.netloc.rpartition("@")[0]
        self._secrets = [login, parts.password] if parts.password else []
        try:
            self.files, root = url_to_fs(url.rstrip("/"))
        except ImportError as error:
            needed = f"pip install 'wsssbed-hub[{extra}]'" if extra else str(error).rstrip(".")
            raise HubError(f"{self} needs a package that is not installed: {needed}.") from None
        except ValueError as error:
            raise UsageError(f"{self} is not a registry: {self._bare(error)}.") from None
        self.root = f"{root.rstrip('/')}/{NAMESPACE}"
        self.is_web = self._shown.startswith(_WEB)

    def __str__(self) -> str:
        return self._shown

    def path(self, key: Key, file: str = MANIFEST) -> str:
        """Where a file of ``key`` lies, as the driver names it."""
        return f"{self.root}/{key.repository}/{file}"

    def where(self, key: Key) -> str:
        """How messages call the manifest of ``key``."""
        return f"{self}: {key.repository}/{MANIFEST}"

    def parse(self, key: Key, data: bytes) -> Manifest:
        """The manifest that ``data``, read from here, holds. Raises HubError if it is not one."""
        return parse_manifest(data, self.where(key))

    def read_manifest(self, key: Key) -> Manifest:
        """The manifest of ``key`` as it is now. Raises Missing if there is none."""
        self.files.invalidate_cache()
        try:
            with self.errors(f"{key.repository}/{MANIFEST}", may_miss=True):
                if self.is_web:
                    with self._open(self.path(key), 0) as stream:
                        data = bytes(stream.read(MAX_BYTES + 1))
                else:
                    data = bytes(self.files.cat_file(self.path(key), start=0, end=MAX_BYTES + 1))
        except FileNotFoundError:
            raise Missing from None
        return self.parse(key, data)

    def fetch(self, key: Key, file: str, out: BinaryIO) -> None:
        """Writes what ``out`` lacks of a file of ``key``. Raises HubError if it cannot be read."""
        with self.errors(file):
            stream = self._open(self.path(key, file), out.tell())
        with closing(stream):
            while True:
                with self.errors(file):
                    data = bytes(stream.read(CHUNK))
                if not data:
                    break
                out.write(data)

    def _open(self, path: str, offset: int) -> Any:
        if not self.is_web:
            stream = self.files.open(path, "rb", block_size=_AHEAD)
            stream.seek(offset)
            return stream
        # Of seekable files from the web fsspec asks for ranges, which not every server gives. It
        # asks for the size before, and tells errors wrong, unless it is given one.
        headers = {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={offset}-"} if offset else {}
        stream = self.files.open(path, "rb", block_size=0, size=1, headers=headers)
        left = 0 if stream.r.status == 206 else offset
        while left > 0 and (data := stream.read(min(CHUNK, left))):
            left -= len(data)
        return stream

    @contextmanager
    def errors(self, what: str, done: str = "read", *, may_miss: bool = False) -> Iterator[None]:
        """Turns whatever a driver raises, each its own, into a HubError that says that ``what``
        cannot be ``done``; with ``may_miss`` a FileNotFoundError is let through."""
        try:
            yield
        except HubError:
            raise
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise HubError(f"{self}: there is no such bucket. Make it first.") from None
            cause = error.__cause__  # of a server that the driver could not even ask
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise HubError(f"{self} cannot be reached: {self._bare(cause)}.") from None
            if may_miss:
                raise
            raise HubError(f"{self} has no {what}.") from None
        except Exception as error:
            reason = self._bare(error)
            if self.is_web and isinstance(error, OSError):
                raise HubError(f"{self} cannot be reached: {reason}.") from None
            if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
                reason = f"access is refused: {reason}"
                raise HubError(
                    f"{self}: {what} cannot be {done}, {reason}.{self._sign_in}"
                ) from None
            raise HubError(f"{self}: {what} cannot be {done}: {reason}.") from None

    def _bare(self, error: BaseException) -> str:
        """A driver's message on one line, without what may be secret in the URLs that it names."""
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _IN_URL.sub(r"\1\2", text).rstrip(".")[:300]


def without_secrets(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
