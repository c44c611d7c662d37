"""What the server does wrong, and when."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Trouble for requests whose path (with its query) has a match of ``path``, ``times`` over."""

    path: str
    method: str | None = None
    times: int = 1
    status: int | None = None  # answered instead, with ``headers``
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # bytes of the body, sent or received, and the connection is cut
    lose_answer: bool = False  # the work is done, and the connection cut before it is said
    flip: int | None = None  # position of a byte of the file that is sent wrong
    etag: str | None = None  # of an earlier state, sent instead of the true one
    ignore_range: bool = False  # the whole file is sent, whatever part was asked for
    first: Callable[[], object] | None = None  # what others do just before the request is served

    def meets(self, method: str, path: str) -> bool:
        return self.method in (None, method) and re.search(self.path, path) is not None


NONE = Fault("", times=0)


class Faults:
    """The faults that are still to come, in the order in which they were added."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._waiting += faults

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, method: str, path: str) -> Fault:
        """The fault of this request, which has then happened once more."""
        with self._lock:
            for fault in self._waiting:
                if fault.meets(method, path):
                    fault.times -= 1
                    if fault.times <= 0:
                        self._waiting.remove(fault)
                    return fault
        return NONE
