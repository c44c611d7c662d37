"""Checkpoints of published code: their names mapped to ours, loaded without anything left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from wsssbed_hub.errors import HubError

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
_SHOWN = 5  # names in a message; a wrong checkpoint has hundreds
_COUNTER = ".num_batches_tracked"  # of no use to a frozen or evaluated batch norm


def rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """``state`` under new names: a wrapper's ``module.`` is dropped, then every rule is applied.

    A rule is a regular expression and what to put in its place, as for ``re.sub``; all rules are
    applied to every name, in order. Raises HubError if two names become one.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise HubError(f"The checkpoint holds {name!r} twice, the second time as {key!r}.")
        renamed[name] = value
    return renamed


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``network``; every entry must be there and have its shape.

    The counters ``num_batches_tracked`` may be missing. Raises HubError that names the entries
    which are unknown, missing or of another shape; the network is then unchanged.
    """
    own = network.state_dict()
    wrong = [
        _named("unknown", (key for key in state if key not in own)),
        _named("missing", (key for key in own if key not in state and not _is_counter(key))),
        _named(
            "of another shape",
            (
                f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
                for key, value in state.items()
                if key in own and value.shape != own[key].shape
            ),
        ),
    ]
    if any(wrong):
        raise HubError(
            f"{source} does not fit this network. {' '.join(filter(None, wrong))} "
            "Is it the checkpoint of this method, with the same backbone and number of classes?"
        )
    network.load_state_dict(own | dict(state))


def _is_counter(key: str) -> bool:
    return key.endswith(_COUNTER)


def _named(what: str, names: Iterable[str]) -> str:
    found = list(names)
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{more}."
