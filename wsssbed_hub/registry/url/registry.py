"""A registry at a URL: ``s3://``, ``gs://``, ``https://``, all that fsspec reads.

It has the tree of a registry in a folder, so a folder that is copied there as it is
(``aws s3 sync``) becomes one, and the other way round. How to sign in is each driver's own matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from wsssbed_hub.artifacts.key_folder import MANIFEST, verify_folder
from wsssbed_hub.artifacts.keys import KINDS, Key
from wsssbed_hub.artifacts.manifest import MAX_BYTES, File, Manifest, parse_manifest
from wsssbed_hub.registry.publish_plan import Plan
from wsssbed_hub.registry.url.drivers import error_code
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.utils.files import CHUNK
from wsssbed_hub.utils.progress import Progress, share

_AHEAD = 8 << 20  # bytes that a driver asks for at a time
_THREADS = 8  # that ask for manifests
_WEB = ("http://", "https://")
_S3 = ("s3", "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
_GS = ("gs", "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS")
_HTTP = ("http", "")
_DRIVERS = {"s3": _S3, "s3a": _S3, "gs": _GS, "gcs": _GS, "http": _HTTP, "https": _HTTP}
_IN_URL = re.compile(r"(\w://)(?:[^\s/@]*@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?")


class UrlRegistry:
    """Artifacts below ``url``.

    Raises UsageError for what is no registry, HubError if the package that reads it is missing.
    """

    def __init__(self, url: str, namespace: str = "wsssbed"):
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
        self._place = f"{root.rstrip('/')}/{namespace}"

    def __str__(self) -> str:
        return self._shown

    def keys(self) -> list[Key]:
        """The keys that are published here. Raises HubError where folders cannot be listed, as on
        most web servers: their artifacts are found by key."""
        self.files.invalidate_cache()
        with self.trouble("its list of artifacts"):
            try:
                listed = self.files.ls(self._place, detail=False)
            except FileNotFoundError as error:
                self.check_place(error)
                return []
        found = []
        for name in {str(path).rstrip("/").rpartition("/")[2] for path in listed}:
            kind, _, rest = name.partition("-")
            with suppress(UsageError):  # something else that lies there
                if kind in KINDS:
                    found.append(Key.parse(f"{kind}/{rest}"))
        with ThreadPoolExecutor(_THREADS) as threads:
            there = list(threads.map(self._exists, found))
        return sorted((key for key, one in zip(found, there, strict=True) if one), key=str)

    def _exists(self, key: Key) -> bool:
        with self.trouble(f"{key.repository}/{MANIFEST}"):
            return bool(self.files.exists(self.path(key, MANIFEST)))

    def path(self, key: Key, file: str) -> str:
        """Where a file of ``key`` lies, as the driver names it."""
        return f"{self._place}/{key.repository}/{file}"

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all keys. Raises HubError at one that is not valid."""
        keys = self.keys()
        with ThreadPoolExecutor(_THREADS) as threads:
            yield from threads.map(self.find, keys)

    def find(self, key: Key) -> Manifest:
        """The manifest of ``key``, whatever its version.

        Raises UsageError, with keys that look alike, if nothing is published under it; HubError if
        the place cannot be read or the manifest is not valid.
        """
        self.files.invalidate_cache()
        with self.trouble(f"{key.repository}/{MANIFEST}"):
            try:
                data = self._read(self.path(key, MANIFEST))
            except FileNotFoundError as error:
                self.check_place(error)
                data = None
        if data is None:
            raise UsageError(f"There is no {key.unversioned} in {self}.{self._near(key)}")
        return self.parse(key, data)

    def parse(self, key: Key, data: bytes) -> Manifest:
        """The manifest that ``data``, read from here, holds. Raises HubError if it is not one, or
        not that of ``key``."""
        manifest = parse_manifest(data, f"{self}: {key.repository}/{MANIFEST}")
        if manifest.parsed_key != key.unversioned:
            raise HubError(f"{self}: the manifest of {key} speaks of {manifest.key}.")
        return manifest

    def _near(self, key: Key) -> str:
        try:
            return did_you_mean(str(key.unversioned), map(str, self.keys()))
        except HubError:
            return ""

    def fetch(self, key: Key, file: File, out: BinaryIO) -> None:
        """Writes what ``out`` lacks of ``file``. Raises HubError if it is not there."""
        with self.trouble(file.path):
            stream = self._open(self.path(key, file.path), out.tell())
        with closing(stream):
            while True:
                with self.trouble(file.path):
                    data = bytes(stream.read(CHUNK))
                if not data:
                    break
                out.write(data)

    def _read(self, path: str) -> bytes:
        """The file at ``path``, as much of it as a manifest may have."""
        if not self._shown.startswith(_WEB):  # a file that is opened is asked for twice
            return bytes(self.files.cat_file(path, start=0, end=MAX_BYTES + 1))
        with self._open(path, 0) as stream:
            return bytes(stream.read(MAX_BYTES + 1))

    def _open(self, path: str, offset: int) -> Any:
        if not self._shown.startswith(_WEB):
            stream = self.files.open(path, "rb", block_size=_AHEAD)
            stream.seek(offset)
            return stream
        # Of seekable files from the web fsspec asks for ranges, which not every server gives.
        headers = {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={offset}-"} if offset else {}
        stream = self.files.open(path, "rb", block_size=0, headers=headers)
        left = 0 if stream.r.status == 206 else offset
        while left > 0 and (data := stream.read(min(CHUNK, left))):
            left -= len(data)
        return stream

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """Publishes what the key folder ``folder`` holds; the keys with their versions.

        Everything is verified first, and becomes visible at once, when the manifest is written.
        With ``version`` the folder's only version is published under that number. What is there
        already with the same content stays as it is; with other content it is a HubError.
        Interrupted or killed it may be repeated: files that have arrived are not sent again. What
        keeps several publishers apart is said in ``url_publishing``.

        Raises UsageError for the web, which is read only.
        """
        if self._shown.startswith(_WEB):
            raise UsageError(
                f"{self} is read only: nothing is published over the web. Push {folder} to a "
                "folder, s3://, gs:// or hf:NAMESPACE."
            )
        from wsssbed_hub.registry.url.publisher import Publisher

        plan = Plan(folder, version)
        publisher = Publisher(self, plan, progress)
        publisher.check()
        verify_folder(folder, progress=share(progress, 0, plan.size, 2 * plan.size))
        publisher.run()
        if progress is not None:
            progress(2 * plan.size, 2 * plan.size)
        return plan.keys

    @contextmanager
    def trouble(self, what: str, done: str = "read") -> Iterator[None]:
        """Turns whatever a driver raises, each its own, into a HubError that says that ``what``
        cannot be ``done``."""
        try:
            yield
        except HubError:
            raise
        except FileNotFoundError as error:
            self.check_place(error)
            raise HubError(f"{self} has no {what}.") from None
        except Exception as error:
            reason = self._bare(error)
            kind = type(error).__name__
            if isinstance(error, PermissionError) or kind == "NoCredentialsError":
                raise HubError(
                    f"{self}: {what} cannot be {done}, access is refused: {reason}.{self._sign_in}"
                ) from None
            raise HubError(f"{self}: {what} cannot be {done}: {reason}.") from None

    def check_place(self, error: FileNotFoundError) -> None:
        """Raises HubError if a driver says "not found" because there is no such bucket, or of a
        server that it could not even ask."""
        cause = error.__cause__
        if error_code(error) == "NoSuchBucket":
            raise HubError(f"{self}: there is no such bucket. Make it first.") from None
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise HubError(f"{self} cannot be reached: {self._bare(cause)}.") from None

    def _bare(self, error: BaseException) -> str:
        """What a driver says on one line, without what may be secret in the URLs that it names."""
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _IN_URL.sub(r"\1\2", text).rstrip(".")[:300]


def without_secrets(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
