"""From a command line to a stage at work, and from trouble to a message and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from functools import partial

from stages.runtime import distributed, interruption
from stages.runtime.catalogue import Stage
from stages.runtime.options import command
from stages.runtime.recipes import described
from stages.runtime.trouble import explained
from wsssbed_hub.utils.errors import HubError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


def run_stage(stage: Stage, arguments: list[str]) -> int:
    """Parse the arguments and run the stage; returns the exit code.

    0: done. 1: a failure. 2: a mistake in the request. 130 and 143: stopped by SIGINT or SIGTERM.
    """
    family, method = stage.load()
    work = partial(family.run, stage.name, *([method] if method else []))
    epilog = ""
    if method is not None:
        epilog = "\n\n".join(
            f"Recipe {name}: {described(recipe)}" for name, recipe in method.recipes.items()
        )
    app = command(
        family.Options,
        lambda options: guarded(lambda: work(options())),
        name=stage.name,
        title=f"{stage.title}.",
        epilog=epilog,
    )
    try:
        app(arguments, prog_name=f"python -m stages {stage.name}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def guarded(work: Callable[[], None]) -> int:
    """Do the work; expected trouble becomes one message on stderr. Returns the exit code."""
    try:
        with interruption.raising(), explained("The stage stopped"):
            work()
        distributed.stop()  # after trouble the others may be gone, and leaving would wait for them
    except HubError as error:
        _complain(str(error))
        return error.exit_code
    except distributed.SaidElsewhere as end:
        return int(str(end.code))
    except interruption.Interruption as end:
        _complain(str(end), kind="stopped")
        return end.exit_code
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _complain(f"{error.strerror}{where}. Mend that and run it again, it goes on.")
        return 1
    return 0


def _complain(message: str, kind: str = "error") -> None:
    who = "" if distributed.is_main() else f"process {distributed.rank()}: "
    print(f"{who}{kind}: {message}", file=sys.stderr, flush=True)
