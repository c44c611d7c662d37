"""Checkpoints of published code: their names mapped to ours, loaded without anything left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from wsssbed_hub.utils.errors import HubError

Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
_SHOWN = 5  # names in a message; a wrong checkpoint has hundreds
_COUNTER = ".num_batches_tracked"  # of no use to a frozen or evaluated batch norm


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], source: str, rules: Rules = ()
) -> None:
    """Copy ``state`` into ``network``; every entry must be there and have its shape.

    Names lose a wrapper's ``module.``, then all rules are applied to them, in order: regular
    expressions and what to put in their place, as for ``re.sub``. The counters
    ``num_batches_tracked`` may be missing. Raises HubError that names the entries which are
    unknown, missing or of another shape; the network is then unchanged.
    """
    own = network.state_dict()
    theirs = _renamed(state, rules, source)
    new = {name: state[key] for name, key in theirs.items()}
    wrong = [
        _named("unknown", (key for name, key in theirs.items() if name not in own)),
        _named("missing", (name for name in own if name not in new and not _is_counter(name))),
        _named(
            "of another shape",
            (
                f"{theirs[name]} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
                for name, value in new.items()
                if name in own and value.shape != own[name].shape
            ),
        ),
    ]
    if any(wrong):
        raise HubError(
            f"{source} does not fit this network. {' '.join(filter(None, wrong))} "
            "Is it the checkpoint of this method, with the same backbone and number of classes?"
        )
    network.load_state_dict(own | new)


def without_classifier(
    state: Mapping[str, Tensor], names: tuple[str, ...] = ("fc",)
) -> dict[str, Tensor]:
    """The features of an image classifier: all but the layers whose names begin with ``names``."""
    return {k: v for k, v in state.items() if not k.removeprefix("module.").startswith(names)}


def _renamed(state: Mapping[str, Tensor], rules: Rules, source: str) -> dict[str, str]:
    """Our name to theirs."""
    theirs: dict[str, str] = {}
    for key in state:
        name = key.removeprefix("module.")
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in theirs:
            raise HubError(f"{source} holds {theirs[name]!r} a second time, as {key!r}.")
        theirs[name] = key
    return theirs


def _is_counter(key: str) -> bool:
    return key.endswith(_COUNTER)


def _named(what: str, names: Iterable[str]) -> str:
    found = list(names)
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{more}."
