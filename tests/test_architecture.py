"""The rooms of docs/architecture.md are what the code is: who imports whom, one way, no circles.

Every import counts: at the top of a module, inside a function, or for types alone. A module that
is named in a string for ``import_module`` or ``python -m`` counts too, where its whole name is
written out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("wsssbed_hub", "stages")
# A family of methods; what the paper itself builds on another method is imported from there.
FAMILIES = ("sod", "cam", "ssnet", "pseudo", "seg")


def modules() -> dict[str, Path]:
    """The dotted names of all modules of the product, with their files."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """The modules that ``name`` imports; from a package it is the submodule, if that is meant."""
    return set(_imported(ast.parse(MODULES[name].read_text()))) - {name}


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif node.module in MODULES:
                    yield str(node.module)
        elif isinstance(node, ast.Constant) and node.value in MODULES and "." in str(node.value):
            yield str(node.value)


GRAPH = {name: imports(name) for name in MODULES}


def room(name: str) -> str:
    """The folder right below ``wsssbed_hub`` or ``stages``; "" is what lies beside the rooms."""
    parts = name.split(".")
    inside = (ROOT.joinpath(*parts[:2])).is_dir()
    return parts[1] if len(parts) > 1 and inside else ""


def rooms_on_the_page(package: str) -> dict[str, tuple[str, set[str]]]:
    """Of the page's table of ``package``: each room, its duty and the rooms that it may import."""
    text = PAGE.read_text()
    section = text[text.index(f"## The rooms of `{package}/`") :].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)/` \| (.+?) \| (.*?) \|$", section, re.MULTILINE)
    return {name: (duty, set(re.findall(r"`(\w+)`", below))) for name, duty, below in rows}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_has_every_room(package: str) -> None:
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert set(rooms_on_the_page(package)) == folders


@pytest.mark.parametrize("package", PACKAGES)
def test_duties_are_the_rooms_own_docstrings(package: str) -> None:
    for name, (duty, _) in rooms_on_the_page(package).items():
        docstring = ast.get_docstring(ast.parse(MODULES[f"{package}.{name}"].read_text()))
        assert docstring is not None, name
        assert " ".join(docstring.split("\n\n")[0].split()) == duty


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_what_the_page_says(package: str) -> None:
    """Exactly that: an arrow that is gone from the code goes from the page as well."""
    page = {name: below for name, (_, below) in rooms_on_the_page(package).items()}
    code: dict[str, set[str]] = {name: set() for name in page}
    for name, used in GRAPH.items():
        here = room(name)
        if name.startswith(f"{package}.") and here:
            code[here] |= {room(other) for other in used if other.startswith(f"{package}.")}
    for name in code:
        assert code[name] - {name, ""} == page[name], name


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_are_a_ladder(package: str) -> None:
    """The table is in order: a room imports only rooms that stand below it."""
    above: list[str] = []
    for name, (_, below) in rooms_on_the_page(package).items():
        assert not below & {name, *above}, name
        above.append(name)


def test_the_front_door_is_not_used_inside() -> None:
    """Rooms import each other by name; the package itself is for people."""
    inside = [name for name in MODULES if name.startswith("wsssbed_hub.")]
    assert [name for name in inside if "wsssbed_hub" in GRAPH[name]] == []


def test_no_circles_between_modules() -> None:
    """A package's ``__init__`` that gathers its own modules' names is read as part of them."""
    gathered = {
        name: {other for other in used if not name.startswith(f"{other}.")}
        for name, used in GRAPH.items()
    }
    try:
        list(TopologicalSorter(gathered).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_hub_knows_nothing_of_the_stages_and_of_torch() -> None:
    for name, path in MODULES.items():
        if name.startswith("wsssbed_hub"):
            assert not [other for other in GRAPH[name] if other.startswith("stages")], name
            assert not re.search(r"^\s*(import|from) (torch|timm)\b", path.read_text(), re.M), name


def test_nothing_goes_sideways_from_family_to_family() -> None:
    for name, used in GRAPH.items():
        if name.startswith("stages.") and room(name) in FAMILIES:
            rooms = {room(other) for other in used if other.startswith("stages.")}
            assert not (rooms & set(FAMILIES)) - {room(name)}, name


@pytest.mark.parametrize("name", MODULES)
def test_files_are_short(name: str) -> None:
    """About 400 lines; a method's network, losses and recipe in one file may be longer."""
    limit = 560 if name.startswith("stages.") and room(name) in FAMILIES else 420
    assert len(MODULES[name].read_text().splitlines()) <= limit
