"""Which stages there are: the tree of files is the list of them.

A folder of ``stages/`` with method files is a family, and ``stages/sod/poolnet.py`` is the stage
``sod-poolnet``; a folder without is a stage itself (``pseudo``), and so is one of a single method
that fits no family (``ssnet``). Files whose names begin with an underscore are no methods.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from wsssbed_hub.utils.errors import UsageError, did_you_mean

ROOT = Path(__file__).parents[1]
_SHARED = {"runtime", "backbones", "ops"}
_ALONE = {"ssnet"}  # folders of one method, in the file of that name; the other files are its parts


@dataclass(frozen=True)
class Stage:
    """A stage's name and where it is written."""

    name: str
    family: str
    """Module with ``Options`` and ``run``."""
    path: Path
    module: str
    """Module of the method; that of the family for a stage without method files."""

    @property
    def title(self) -> str:
        """First sentence of the module's docstring. Nothing is imported."""
        text = ast.get_docstring(ast.parse(self.path.read_text())) or self.name
        return " ".join(text.split("\n\n")[0].split()).removesuffix(".")

    def load(self) -> tuple[ModuleType, Any]:
        """The family's module and the class ``Method``, None for a stage without a method."""
        family = import_module(self.family)
        return family, getattr(import_module(self.module), "Method", None)


def all_stages(root: Path = ROOT) -> dict[str, Stage]:
    """Every stage by name, in alphabetical order."""
    found = {}
    for package in sorted(root.glob("*/__init__.py")):
        folder = package.parent
        if folder.name in _SHARED:
            continue
        family = f"stages.{folder.name}"
        methods = sorted(p for p in folder.glob("*.py") if not p.name.startswith("_"))
        if folder.name in _ALONE:
            path = folder / f"{folder.name}.py"
            found[folder.name] = Stage(folder.name, family, path, f"{family}.{folder.name}")
            continue
        for path in methods:
            name = f"{folder.name}-{path.stem}".replace("_", "-")
            found[name] = Stage(name, family, path, f"{family}.{path.stem}")
        if not methods:
            found[folder.name] = Stage(folder.name, family, package, family)
    return dict(sorted(found.items()))


def find_stage(name: str) -> Stage:
    """Raises UsageError for an unknown name, with near ones."""
    stages = all_stages()
    if name not in stages:
        raise UsageError(
            f"There is no stage {name!r}.{did_you_mean(name, stages)} "
            "`python -m stages` lists them."
        )
    return stages[name]
