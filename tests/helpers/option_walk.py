"""Every option of a command line, found by walking it, and what an invocation of it came to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

_DATE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00|Z)?")


def options_of(app: typer.Typer) -> set[tuple[str, str]]:
    """(command, flag) of all options but ``--help``; of several spellings the first."""
    return set(_options(get_command(app), ""))


def _options(command: Any, name: str) -> Iterator[tuple[str, str]]:
    for parameter in command.params:
        flag = parameter.opts[0]
        if parameter.param_type_name == "option" and not flag.endswith("-completion"):
            yield name, flag
    for below, inner in getattr(command, "commands", {}).items():
        yield from _options(inner, f"{name} {below}".strip())


@dataclass(frozen=True)
class Seen:
    """What an invocation came to: exit code, what it said, every file that is there now."""

    code: int
    out: str
    err: str
    files: dict[str, str] = field(default_factory=dict)

    def part(self, see: str) -> Any:
        """``result``: code, output and files; ``said``: that and the remarks; else the files that
        a pattern matches."""
        if see == "result":
            return self.code, self.out, self.files
        if see == "said":
            return self.code, self.out, self.err, self.files
        return {name: digest for name, digest in self.files.items() if fnmatch(name, see)}


def see(folder: Path, code: int, out: str, err: str) -> Seen:
    """As it is now in ``folder``, with dates taken out."""
    files = {
        str(path.relative_to(folder)): hashlib.sha256(_undated(path.read_bytes())).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Seen(code, _DATE.sub("DATE", out), _DATE.sub("DATE", err), files)


def _undated(data: bytes) -> bytes:
    return re.sub(_DATE.pattern.encode(), b"DATE", data)
