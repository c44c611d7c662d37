"""Trying again what may go right later, for as long as somebody would wait.

Ours and not a library's, as three things decide here that those leave to the caller: how long the
server asks to be left alone, whether a try got on although it failed, and how long is too long.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from wsssbed_hub.utils.errors import HubError

TRIES = 5  # in a row that get nowhere
MOST_TRIES = 50  # in all
LONGEST_WAIT = 120.0  # seconds; who is told to wait longer is better told than kept waiting

T = TypeVar("T")


class Passing(HubError):
    """A failure that may pass by itself; ``wait`` is the number of seconds that were asked for."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


def patiently(
    action: Callable[[], T],
    *,
    position: Callable[[], int] = lambda: 0,
    tries: int = TRIES,
    kind: type[Passing] = Passing,
) -> T:
    """The result of ``action``, which is tried again while it raises Passing (that ``kind`` of it).

    It waits as long as the error says, or 1, 2, 4 and 8 seconds; not at all after a try from which
    ``position`` came out higher. The last error is raised after ``tries`` in a row that got no
    further, ``MOST_TRIES`` in all, or where the wait would be longer than ``LONGEST_WAIT``. Not for
    what changes something unless it may happen twice: it may have although the answer was lost.
    """
    vain = 0
    for number in range(1, MOST_TRIES + 1):
        before = position()
        try:
            return action()
        except kind as error:
            vain = 0 if position() > before else vain + 1
            wait = min(2.0 ** (vain - 1), 8.0) if vain else 0.0
            wait = wait if error.wait is None else error.wait
            if vain >= tries or number == MOST_TRIES or wait > LONGEST_WAIT:
                raise
        if wait:
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def retry_after(text: str | None) -> float | None:
    """Seconds that Retry-After, a number or a date (RFC 9110, 10.2.3), asks for; None if none."""
    text = text or ""
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
