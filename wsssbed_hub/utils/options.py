"""Options of a command line that would change nothing: refused, never read and ignored."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from wsssbed_hub.utils.errors import UsageError

if TYPE_CHECKING:
    import typer


def given(context: typer.Context) -> dict[str, str]:
    """The options that stand on the command line itself: parameter to flag, ``seed: --seed``.

    Defaults and environment variables do not count.
    """
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            found[str(parameter.name)] = parameter.opts[0]
    return found


def refuse(context: typer.Context, names: Collection[str], because: str) -> None:
    """Raises UsageError if one of these parameters is given; ``because`` says why."""
    useless = [flag for name, flag in given(context).items() if name in names]
    if useless:
        raise UsageError(f"{because}; leave {', '.join(useless)} out.")
