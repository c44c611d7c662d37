"""The command line: parse, call, print. Heavy libraries are imported by the commands that use them,
so that ``wsssbed-hub --help`` answers at once."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from wsssbed_hub.cli import (
    cache,
    containers,
    contribute,
    data,
    demo,
    evaluate,
    find,
    measure,
    transfer,
)
from wsssbed_hub.utils.errors import HubError

app = typer.Typer(
    name="wsssbed-hub",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Saliency and activation maps for weakly-supervised segmentation: find, verify, combine, "
    "measure, publish.",
)
find.register(app)
transfer.register(app)
measure.register(app)
evaluate.register(app)
contribute.register(app)
data.register(app)
demo.register(app)
app.add_typer(cache.app, name="cache")
containers.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wsssbed-hub {installed_version('wsssbed-hub')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an expected error becomes one message and an exit code of 1 or 2."""
    try:
        app()
    except HubError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror}{where}. Nothing is lost: mend that and run it again.", 1)


def _fail(message: str, exit_code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(exit_code)
