"""The last line of a program."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several processes ends without tidying up: in about one of twenty orderly ends, threads
    of torch's gloo abort the process when all its work is done (seen with torch 2.14).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    sys.exit(code)
