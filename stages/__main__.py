"""``python -m stages`` lists the stages; ``python -m stages sod-poolnet --data duts`` runs one.

``python -m stages keys`` is for programs: JSON, by stage the key of the maps or weights it makes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any, NoReturn

from stages.runtime.catalogue import Stage, all_stages, find_stage
from wsssbed_hub.containers.inside import require_mounts
from wsssbed_hub.utils.arithmetic import portable_settings
from wsssbed_hub.utils.errors import HubError

# torch's threads spin while they wait for each other. Where other work shares the cores, that costs
# far more than waking them up does: measured on two cores, a step took 1.2 s instead of 6.4 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

USAGE = """Usage: python -m stages STAGE [OPTIONS]

Every stage is one command that makes one artifact; `python -m stages STAGE --help` tells its
options. Stages:
"""

KEYS = "keys"
_TRAINED_ON = {"stages.sod": "{data}", "stages.cam": "{sal}", "stages.seg": "{labels}"}


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
        if arguments != [KEYS]:
            return _run_named(arguments[0], arguments[1:])
        _require_torch()
        print(json.dumps(keys()))
        return 0
    except HubError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run_named(name: str, arguments: list[str]) -> int:
    stage = find_stage(name)
    require_mounts(stage.name, arguments)
    if "--deterministic" in arguments:  # before torch and NumPy are imported
        os.environ.update(portable_settings())
    _require_torch()
    return run_stage(stage, arguments)


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise HubError(
            "stages need torch, which the library alone does without. Install it with "
            "`pip install 'wsssbed-hub[stages]'` (in a checkout: `make install`)."
        )


def keys() -> dict[str, str]:
    """The keys of what saliency models, activation methods and segmentation networks make.

    With ``{data}``, ``{sal}`` or ``{labels}`` for the name of what they are trained on, where the
    key has it: ``sal/vst-{data}``, ``cam/eps-{sal}``, ``weights/seg-deeplabv2-{labels}``, but
    ``sal/move`` and ``cam/drs``.
    """
    found = {}
    for name, stage in all_stages().items():
        if stage.family in _TRAINED_ON:
            family, method = stage.load()
            found[name] = family.key_of(name, method, _TRAINED_ON[stage.family])
    return found


def run_stage(stage: Stage, arguments: list[str]) -> int:
    """Parse the arguments and run the stage; returns the exit code.

    0: done. 1: a failure. 2: a mistake in the request. 130 and 143: stopped by SIGINT or SIGTERM.
    """
    from stages.runtime.errors import blamed, guarded  # torch; the list does not wait for it
    from stages.runtime.options import command, described

    family, method = stage.load()
    work = partial(family.run, stage.name, *([method] if method else []))

    def understood(options: Any) -> None:
        with blamed(getattr(options, "set", None) or ()):
            work(options)

    epilog = ""
    if method is not None:
        epilog = "\n\n".join(
            f"Recipe {name}: {described(recipe)}" for name, recipe in method.recipes.items()
        )
    app = command(
        family.Options,
        lambda options: guarded(lambda: understood(options())),
        name=stage.name,
        title=f"{stage.title}.",
        epilog=epilog,
    )
    try:
        app(arguments, prog_name=f"python -m stages {stage.name}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def leave(code: int) -> NoReturn:
    """End this process with an exit code, and every process that it started.

    After a failure without tidying up: exit hooks wait for processes and threads, and one that
    hangs would keep this one. One of several processes never tidies up: in about one of twenty
    orderly ends, threads of torch's gloo abort the process when all its work is done (seen with
    torch 2.14).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
