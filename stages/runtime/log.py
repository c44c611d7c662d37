"""The metrics log: one JSON line for each optimiser step. A resumed training writes the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stages.runtime import distributed
from wsssbed_hub.utils.files import expect_trouble


class Log:
    """The file at ``path``, written by the first process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    @contextmanager
    def opened(self, length: int) -> Iterator[None]:
        """Open the log; what lies beyond ``length`` bytes was written after the checkpoint."""
        if not distributed.is_main():
            yield
            return
        with expect_trouble(self._path.parent), open(self._path, "ab") as file:
            file.truncate(min(length, self._path.stat().st_size))
            self._file = file
            try:
                yield
            finally:
                self._file = None

    def step(self, phase: str, step: int, rate: float, terms: Mapping[str, float]) -> None:
        """Note a step, counted from 0 here and from 1 in the log."""
        if self._file is not None:
            entry = {"phase": phase, "step": step + 1, "rate": rate, "loss": sum(terms.values())}
            self._file.write(json.dumps(entry | {"terms": dict(terms)}).encode() + b"\n")
            self._file.flush()

    def flush(self) -> int:
        """Bring the log to the disk; returns its length in bytes."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size
