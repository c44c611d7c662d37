"""Errors that say what is wrong, with what, and what to do next.

Everything expected (bad input, missing data, wrong bytes, a full disk) is raised as one of these
two; the command line prints the message without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HubError(Exception):
    """A failure: the request was fine, the world was not. Exit code 1."""

    exit_code = 1


class UsageError(HubError):
    """A mistake in the request itself: unknown key, contradictory options. Exit code 2."""

    exit_code = 2


def did_you_mean(wrong: str, known: Iterable[str], *, most: int = 3) -> str:
    """`` Did you mean 'sal/vst-duts'?`` for the nearest of ``known``, else an empty string."""
    near = difflib.get_close_matches(wrong, list(known), n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
