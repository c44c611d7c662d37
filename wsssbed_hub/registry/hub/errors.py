"""The Hub's client as it is called here: what it raises, says and waits for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from wsssbed_hub.registry.base import Missing
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.retry import LONGEST_WAIT, Passing, retry_after

if TYPE_CHECKING:
    from httpx2 import Response
    from huggingface_hub.errors import HfHubHTTPError

_PASSING = (408, 429, 500, 502, 503, 504)
_SIGN_IN = "`hf auth login`, or HF_TOKEN in the environment"

_OURS: ContextVar[bool] = ContextVar("_OURS", default=False)
"""Whether the client is called by us: it has one session and one log for all of the process."""


class Failing(Passing):
    """A server that fails: the client does not ask it again where it downloads."""


class Overtaken(Passing):
    """A commit that is to be looked for, and made again if it is not there: somebody else has
    committed since the state was read, or it was not answered, although it may have happened."""


class Offline(HubError):
    """HF_HUB_OFFLINE is set."""


@contextmanager
def client_call(name: str) -> Iterator[None]:
    """Calls of the Hub's client about the repository (or namespace) ``name``.

    What it raises becomes a HubError that says what to do: Missing, Overtaken, Passing or Offline
    if it is one of these. Tokens never get into it. The client's warnings, which name signed URLs,
    are not shown, and it does not wait as long as it is told to if that is too long.
    """
    from huggingface_hub.utils import get_session

    session = get_session()
    hooks = session.event_hooks
    if _refuse_long_waits not in hooks["response"]:
        session.event_hooks = hooks | {"response": [*hooks["response"], _refuse_long_waits]}
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_may_be_shown)
    before = _OURS.set(True)
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        explained = _explain(error, name)
        if explained is None:
            raise
        raise explained from None
    finally:
        _OURS.reset(before)


def _refuse_long_waits(response: Response) -> None:
    """Raises at once what the client would after all of its tries."""
    from huggingface_hub.utils import hf_raise_for_status

    passing = _OURS.get() and response.status_code in _PASSING
    if passing and (_told_to_wait(response.headers) or 0) > LONGEST_WAIT:
        hf_raise_for_status(response)


def _told_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that RateLimit or Retry-After asks for."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    return retry_after(headers.get("Retry-After"))


def _may_be_shown(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not _OURS.get()


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
    of_xet = isinstance(error, OSError) and error.errno is None  # others are of this machine
    if isinstance(error, RuntimeError | ValueError) or of_xet:
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
        return Overtaken(f"{name}: somebody else has committed meanwhile.", 0.0)
    if status in (408, 429) or status >= 500:
        wait = _told_to_wait(error.response.headers)
        what = "too many requests" if status == 429 else "the Hub has trouble of its own"
        when = "later" if wait is None else f"in {wait:.0f} seconds"
        kind = Failing if status >= 500 else Passing
        return kind(f"{name}: {what} ({status}). Run it again {when}, it goes on.", wait)
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
