"""What goes wrong between here and the Hugging Face Hub: when to try again, and how it is said."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from wsssbed_hub.registry.base import Missing
from wsssbed_hub.utils.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from httpx2 import Response
    from huggingface_hub.errors import HfHubHTTPError

TRIES = 5
LONGEST_WAIT = 120.0  # seconds; who is told to wait longer is better told than kept waiting
_FAILING = (500, 502, 503, 504)
_PASSING = (408, 429, *_FAILING)
_SIGN_IN = "`hf auth login`, or HF_TOKEN in the environment"

T = TypeVar("T")

_OURS: ContextVar[bool] = ContextVar("_OURS", default=False)
"""Whether the client is called by us: it has one session and one log for all of the process."""


class Conflict(HubError):
    """Somebody else has committed since the state was read."""


class Passing(HubError):
    """Trouble that may pass by itself; ``wait`` is the number of seconds that the Hub asks for."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class Offline(HubError):
    """HF_HUB_OFFLINE is set."""


def patiently(
    action: Callable[[], T], waiting: Callable[[Exception, int], float | None] | None = None
) -> T:
    """The result of ``action``, which is tried again while what goes wrong may pass by itself.

    It waits as long as the Hub says, or 1, 2, 4 and 8 seconds. Not for what changes something: that
    may have happened although the answer was lost.
    """
    for attempt in range(TRIES - 1):
        try:
            return action()
        except Exception as error:
            wait = (waiting or may_pass)(error, attempt)
            if wait is None:
                raise
        time.sleep(wait)
    return action()


def may_pass(error: Exception, attempt: int) -> float | None:
    """Seconds after which another try makes sense; None if it does not, or not so soon."""
    from httpx2 import TransportError

    if isinstance(error, TransportError):
        return float(2 ** min(attempt, 3))
    return _asked_to_wait(error, attempt, _PASSING)


def server_fails(error: Exception, attempt: int) -> float | None:
    """As ``may_pass``, for what the client does not try again by itself where it downloads."""
    return _asked_to_wait(error, attempt, _FAILING)


def _asked_to_wait(error: Exception, attempt: int, statuses: tuple[int, ...]) -> float | None:
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError) or error.response.status_code not in statuses:
        return None
    told = told_to_wait(error.response.headers)
    wait = float(2 ** min(attempt, 3)) if told is None else told
    return wait if wait <= LONGEST_WAIT else None


def _refuse_long_waits(response: Response) -> None:
    """Raises at once what the client would after its last try, if the next came too late: it waits
    for as long as it is told to."""
    from huggingface_hub.utils import hf_raise_for_status

    passing = _OURS.get() and response.status_code in _PASSING
    if passing and (told_to_wait(response.headers) or 0) > LONGEST_WAIT:
        hf_raise_for_status(response)


def _not_ours(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not _OURS.get()


def told_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After (a number, or a date) or RateLimit asks for."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


@contextmanager
def client_call(name: str) -> Iterator[None]:
    """Calls of the Hub's client about the repository (or namespace) ``name``.

    What it raises becomes a HubError that says what to do: Missing, Conflict, Passing or Offline if
    it is one of these. Tokens never get into it, and the client's warnings, which name signed URLs,
    not to the terminal.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    hooks = session.event_hooks
    if _refuse_long_waits not in hooks["response"]:
        session.event_hooks = hooks | {"response": [*hooks["response"], _refuse_long_waits]}
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_not_ours)
    ours = _OURS.set(True)
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        said = _explain(error, name)
        if said is None:
            raise
        raise said from None
    finally:
        _OURS.reset(ours)


@contextmanager
def no_bars() -> Iterator[None]:
    """Keeps the bars that the client shows as it uploads from the terminal."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _explain(error: BaseException, name: str) -> HubError | None:
    from httpx2 import HTTPError
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return Offline(
            f"HF_HUB_OFFLINE is set, and {name} or what is wanted of it is not in the cache. Unset "
            "it to ask the Hub."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_answer(error, name)
    if isinstance(error, HTTPError):
        return Passing(
            f"{name}: {constants.ENDPOINT} cannot be reached, or the connection was cut "
            f"({_clean(str(error)) or type(error).__name__}). Run it again, it goes on."
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubError(f"{name}: to publish there sign in first: {_SIGN_IN}.")
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of a file's upload
        return _explain(error.__cause__, name)
    if isinstance(error, OSError) and error.errno is None:  # Xet's, or a file that is incomplete
        return Passing(f"{name}: {_clean(str(error))} Run it again, it goes on.")
    if isinstance(error, RuntimeError | ValueError):
        return HubError(f"{name}: the Hub's client gave up: {_clean(str(error))}")
    return None


def _explain_answer(error: HfHubHTTPError, name: str) -> HubError:
    from huggingface_hub import constants, errors, get_token

    status = error.response.status_code
    said = _clean(error.server_message or "")
    where = f"{constants.ENDPOINT}/datasets/{name}"
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{name} is gated: its authors give access to those who ask. Ask at {where} and sign "
            f"in as the same user ({_SIGN_IN})."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return Missing(f"{name} has no such branch, tag or commit.")
    if isinstance(error, errors.EntryNotFoundError):
        return Missing(f"{name} has no such file: {error.response.url.path}.")
    if status == 401 and "credentials" in said.lower():
        return HubError(f"The Hub does not accept your token. Sign in again: {_SIGN_IN}.")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        who = "the signed-in user may not see it" if get_token() else f"sign in first: {_SIGN_IN}"
        return Missing(f"There is no {name} on {constants.ENDPOINT}; if it is private, {who}.")
    if status == 403:
        return HubError(
            f"{name}: your token does not allow this ({said}). Use one with write access to it, or "
            "publish to a namespace of your own."
        )
    if status == 412:
        return Conflict(f"{name}: somebody else has committed meanwhile.")
    if status == 429 or status >= 500:
        wait = told_to_wait(error.response.headers)
        what = "too many requests" if status == 429 else "the Hub has trouble of its own"
        when = "later" if wait is None else f"in {wait:.0f} seconds"
        return Passing(f"{name}: {what} ({status}). Run it again {when}, it goes on.", wait)
    return HubError(f"{name}: the Hub refused this with {status}: {said}")


def _clean(text: str) -> str:
    """``text`` without tokens and without the signatures of URLs, in one line."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "***")
    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "***", text)
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    return " ".join(text.split())[:500]
