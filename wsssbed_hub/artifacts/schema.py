"""``python -m wsssbed_hub.artifacts.schema [--check] FILE``: the manifest's JSON schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wsssbed_hub.artifacts.manifest import json_schema


def main(arguments: list[str]) -> int:
    """Write the schema to FILE; with ``--check`` only say (exit code 1) that it is out of date."""
    path = Path(arguments[-1])
    text = json.dumps(json_schema(), indent=2) + "\n"
    if arguments[0] != "--check":
        path.write_text(text)
    elif not path.is_file() or path.read_text() != text:
        print(f"{path} is out of date. Run `make schema`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
