"""A registry at a URL, to read: ``s3://``, ``gs://``, ``https://``, all that fsspec reads.

It has the tree of a registry in a folder, so a folder that is copied there as it is
(``aws s3 sync``) becomes one. How to sign in is each driver's own matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from wsssbed_hub.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.files import CHUNK, Progress
from wsssbed_hub.keyfolder import MANIFEST
from wsssbed_hub.keys import KINDS, Key
from wsssbed_hub.manifest import MAX_BYTES, File, Manifest, parse_manifest

_AHEAD = 8 << 20  # bytes that a driver asks for at a time


class UrlRegistry:
    """Artifacts below ``url``, to which nobody publishes from here."""

    def __init__(self, url: str, namespace: str = "wsssbed"):
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        self._shown = _without_secrets(url)
        if "?" in url:
            raise UsageError(f"{self}: a registry's URL has nothing after a question mark.")
        try:
            self._files, root = url_to_fs(url.rstrip("/"))
        except ImportError as error:
            raise HubError(f"{self} needs a package that is not installed: {error}.") from None
        except ValueError as error:
            raise UsageError(f"{self} is not a registry: {error}.") from None
        self._place = f"{root.rstrip('/')}/{namespace}"

    def __str__(self) -> str:
        return self._shown

    def keys(self) -> list[Key]:
        """The keys that are published here. Raises HubError where folders cannot be listed, as on
        most web servers: their artifacts are found by key."""
        self._files.invalidate_cache()
        with self._trouble("its list of artifacts"):
            try:
                listed = self._files.ls(self._place, detail=False)
            except FileNotFoundError:
                return []
        found = []
        for name in {str(path).rstrip("/").rpartition("/")[2] for path in listed}:
            kind, _, rest = name.partition("-")
            if kind in KINDS and self._exists(f"{self._place}/{name}/{MANIFEST}"):
                found.append(Key.parse(f"{kind}/{rest}"))
        return sorted(found, key=str)

    def _exists(self, path: str) -> bool:
        with self._trouble(path):
            return bool(self._files.exists(path))

    def manifests(self) -> Iterator[Manifest]:
        """The manifests of all keys. Raises HubError at one that is not valid."""
        for key in self.keys():
            yield self.find(key)

    def find(self, key: Key) -> Manifest:
        """The manifest of ``key``, whatever its version.

        Raises UsageError, with keys that look alike, if nothing is published under it; HubError if
        the place cannot be read or the manifest is not valid.
        """
        self._files.invalidate_cache()
        path = f"{self._place}/{key.repository}/{MANIFEST}"
        with self._trouble(MANIFEST):
            try:
                with self._open(path, 0) as stream:
                    data = stream.read(MAX_BYTES + 1)
            except FileNotFoundError as error:
                if _unreachable(error):
                    raise HubError(f"{self} cannot be reached: {error.__cause__}.") from None
                data = None
        if data is None:
            raise UsageError(f"There is no {key.unversioned} in {self}.{self._near(key)}")
        manifest = parse_manifest(data, f"{self}: {key.repository}/{MANIFEST}")
        if manifest.parsed_key != key.unversioned:
            raise HubError(f"{self}: the manifest of {key} speaks of {manifest.key}.")
        return manifest

    def _near(self, key: Key) -> str:
        try:
            return did_you_mean(str(key.unversioned), map(str, self.keys()))
        except HubError:
            return ""

    def open(self, key: Key, file: File, offset: int = 0) -> BinaryIO:
        """``file`` of ``key`` from ``offset`` on. Raises HubError if it is not there."""
        return _Stream(self, f"{self._place}/{key.repository}/{file.path}", file, offset)  # type: ignore[return-value]

    def open_path(self, path: str, name: str, offset: int) -> Any:
        """The driver's file, at ``offset``."""
        with self._trouble(name):
            return self._open(path, offset)

    def _open(self, path: str, offset: int) -> Any:
        if not self._shown.startswith(("http://", "https://")):
            stream = self._files.open(path, "rb", block_size=_AHEAD)
            stream.seek(offset)
            return stream
        # Of seekable files from the web fsspec asks for ranges, which not every server gives.
        headers = {"Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={offset}-"} if offset else {}
        stream = self._files.open(path, "rb", block_size=0, headers=headers)
        left = 0 if stream.r.status == 206 else offset
        while left > 0 and (data := stream.read(min(CHUNK, left))):
            left -= len(data)
        return stream

    def publish(
        self, folder: Path, *, version: str | None = None, progress: Progress | None = None
    ) -> list[Key]:
        """Raises UsageError: there are no locks that would keep two publishers apart."""
        raise UsageError(
            f"{self} is read only. Push {folder} to a folder or to hf:<namespace>; a registry in a "
            "folder that is copied to a URL as it is becomes one there."
        )

    @contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        """Turns whatever a driver raises, each its own, into a HubError."""
        try:
            yield
        except HubError:
            raise
        except FileNotFoundError:
            raise HubError(f"{self} has no {what}.") from None
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise HubError(f"{self}: {what} cannot be read: {_bare(reason)}.") from None


class _Stream:
    """A driver's file, with its errors said plainly."""

    def __init__(self, registry: UrlRegistry, path: str, file: File, offset: int):
        self._registry, self._name = registry, file.path
        self._stream = registry.open_path(path, file.path, offset)

    def read(self, size: int = -1) -> bytes:
        with self._registry._trouble(self._name):
            return bytes(self._stream.read(size))

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _unreachable(error: FileNotFoundError) -> bool:
    """Whether a driver says "not found" of a server that it could not even ask."""
    cause = error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _without_secrets(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _bare(text: str) -> str:
    """A driver's message, in which each URL loses what may be secret."""
    return " ".join(
        _without_secrets(word) if "://" in word else word for word in text.rstrip(".").split(" ")
    )
