"""``python -m stages`` lists the stages; ``python -m stages sod-poolnet --data duts`` runs one."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from stages.runtime.catalogue import all_stages, find_stage
from stages.runtime.ending import leave
from wsssbed_hub.utils.errors import HubError

# torch's threads spin while they wait for each other. Where other work shares the cores, that costs
# far more than waking them up does: measured on two cores, a step took 1.2 s instead of 6.4 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

USAGE = """Usage: python -m stages STAGE [OPTIONS]

Every stage is one command that makes one artifact; `python -m stages STAGE --help` tells its
options. Stages:
"""


def main(arguments: list[str]) -> int:
    """Run one stage, or list them; returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "list"):
        print(USAGE)
        stages = all_stages()
        width = max(map(len, stages))
        for name, stage in stages.items():
            print(f"  {name:{width}}  {stage.title}")
        return 0
    try:
        stage = find_stage(arguments[0])
    except HubError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if find_spec("torch") is None:
        print(
            "error: stages need torch, which the library alone does without. Install it with "
            "`pip install 'wsssbed-hub[stages]'` (in a checkout: `make install`).",
            file=sys.stderr,
        )
        return 1
    from stages.runtime.command import run_stage  # torch; the list does not wait for it

    return run_stage(stage, arguments[1:])


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
