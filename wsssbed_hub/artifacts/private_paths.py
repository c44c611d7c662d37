"""Paths of a person's machine in what is about to be published."""

from __future__ import annotations

import re
from pathlib import Path

from wsssbed_hub.artifacts.stage_command import ARTIFACTS, CACHE, DATA, INPUTS

_PLACES = tuple(f"{place}/" for place in (DATA, ARTIFACTS, CACHE, INPUTS))
_PATH = re.compile(
    r"""(?:^|(?<=[\s"'`=(\[{,:;<>|]))     # where a word begins, but not inside a URL
    (?: /(?=[\w.~-]+/)                     # /home/alice, not a lone /x
      | ~[\w.-]*/ | \.\.?/                 # ~/maps, ../maps
      | file:/+ | [A-Za-z]:\\ | \\\\\w )
    [^\s"'`)\]},;<>|]*""",
    re.VERBOSE,
)


def private_paths(text: str) -> list[str]:
    """Paths in ``text`` that are none of a container's places, and the home folder, each once."""
    found = [match[0] for match in _PATH.finditer(text)]
    home = str(Path.home())
    if len(Path(home).parts) > 1 and home in text:
        found.append(home)
    return [path for path in dict.fromkeys(found) if not path.startswith(_PLACES)]
