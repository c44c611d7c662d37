"""How the drivers of fsspec write: on a condition where the store knows of conditions.

``publisher`` says what follows from that.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from wsssbed_hub.artifacts.manifest import MAX_BYTES
from wsssbed_hub.utils.retry import Passing

BLOCK = 16 << 20  # bytes that are sent at a time; S3 takes 10,000 of them as one file
_TURN = threading.Lock()


class Lost(Passing):
    """Another publisher has written what was to be written; who waits a little may be next."""

    def __init__(self) -> None:
        super().__init__("Another publisher was faster.", random.uniform(0, 0.2))


def error_code(error: BaseException) -> str | None:
    """S3's code of the error, if it is one of S3's."""
    answer = getattr(error.__cause__, "response", None) or {}
    return (answer.get("Error") or {}).get("Code")


@contextmanager
def losing() -> Iterator[None]:
    """Turns what drivers say when a condition does not hold into Lost."""
    try:
        yield
    except OSError as error:
        lost = error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict")
        if isinstance(error, FileExistsError) or lost:
            raise Lost from None
        raise


class Driver:
    """A driver of fsspec that knows of no conditions."""

    conditions = False

    def __init__(self, files: Any):
        self.files = files

    def turn(self) -> AbstractContextManager[Any]:
        """Held while something is published."""
        return _TURN

    def read(self, path: str) -> tuple[bytes, str | None]:
        """The bytes at ``path`` and their mark."""
        return bytes(self.files.cat_file(path, start=0, end=MAX_BYTES + 1)), None

    def create(self, path: str) -> Any:
        """A new file at ``path``, to write to."""
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return self.files.open(path, "wb", block_size=BLOCK)

    def replace(self, path: str, data: bytes, mark: str | None) -> None:
        """``data`` as the file at ``path``; Lost if what lies there has not this mark any more.

        It is renamed into place, since some drivers write files piece by piece.
        """
        folder, _, name = path.rpartition("/")
        self.files.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{name}.{uuid4().hex}.tmp"
        try:
            self.files.pipe_file(temporary, data)
            self.files.mv(temporary, path)
        except BaseException:
            with suppress(Exception):
                self.files.rm(temporary)
            raise


class _S3(Driver):
    """s3fs. The mark is the ETag."""

    conditions = True

    def turn(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def read(self, path: str) -> tuple[bytes, str | None]:
        mark = self.files.info(path, refresh=True)["ETag"]
        return super().read(path)[0], mark  # what is newer than its mark is not replaced

    def create(self, path: str) -> Any:
        return self.files.open(path, "xb", block_size=BLOCK)

    def replace(self, path: str, data: bytes, mark: str | None) -> None:
        condition = {"mode": "create"} if mark is None else {"IfMatch": mark}
        try:
            with losing():
                self.files.pipe_file(path, data, **condition)
        except FileNotFoundError:
            if mark is None:
                raise
            raise Lost from None  # somebody has deleted it


class _Gs(_S3):
    """gcsfs. The mark is the generation."""

    def read(self, path: str) -> tuple[bytes, str | None]:
        mark = str(self.files.info(path)["generation"])
        most = MAX_BYTES + 1
        # No cache between holds anything else under a generation.
        return self.files.cat_file(path, start=0, end=most, generation=mark), mark

    def replace(self, path: str, data: bytes, mark: str | None) -> None:
        bucket, _, name = path.partition("/")
        about = {"name": name, "cacheControl": "no-cache", "contentType": "application/yaml"}
        edge = uuid4().hex
        body = b"".join(
            f"--{edge}\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n"
            for kind, part in (
                ("application/json; charset=UTF-8", json.dumps(about).encode()),
                ("application/yaml", data),
            )
        )
        with losing():
            self.files.call(
                "POST",
                f"{self.files.base.removesuffix('storage/v1/')}upload/storage/v1/b/{quote(bucket)}/o",
                uploadType="multipart",
                ifGenerationMatch=mark or "0",
                headers={"Content-Type": f"multipart/related; boundary={edge}"},
                data=body + f"--{edge}--".encode(),
            )
        self.files.invalidate_cache()


def driver_of(files: Any) -> Driver:
    """How ``files``, a file system of fsspec, is written to."""
    names = files.protocol if isinstance(files.protocol, tuple | list) else (files.protocol,)
    return _S3(files) if "s3" in names else _Gs(files) if "gs" in names else Driver(files)


def give_up(stream: Any) -> None:
    """Lets nothing come of what was written to ``stream``, where the driver can do that."""
    from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped]

    with suppress(Exception):  # the error that led here is the one to be told
        if isinstance(stream, AbstractBufferedFile):
            stream.discard()
            stream.closed = True  # or it would be sent when it is collected
        else:
            stream.close()
