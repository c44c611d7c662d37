"""The command line of a stage as its container sees it: paths of a machine become places there.

``wsssbed-hub run`` gives a container such arguments, and a provenance states them, wherever the
stage ran: what is published names no folder of the person who made it. ``--data-root`` and
``--out`` fall away, since ``/data`` and ``/artifacts`` are their defaults; what lies below them
gets its path there; whatever else an argument names lies below ``/inputs``, in a folder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wsssbed_hub.artifacts.keys import names_artifact
from wsssbed_hub.utils.errors import UsageError

DATA, ARTIFACTS, CACHE, INPUTS = "/data", "/artifacts", "/cache", "/inputs"
MAPS_OPTIONS = ("--sal", "--cam", "--labels", "--maps")  # a key, a path, or a word of the stage
FILE_OPTIONS = ("--weights", "--init")  # a path, or a word of the stage
FOLDER_OPTION = "--predictions-of"  # a folder if a slash is in it, else a word of the stage
OUTPUT_OPTION = "--predictions"  # a folder that is made
ROOT_OPTIONS = ("--data-root", "--out")
_BESIDE = (OUTPUT_OPTION, FOLDER_OPTION, "--server")  # of what is made beside the artifacts
_OWN_WORDS = {"ground-truth", "none", "random", "timm"}
_PATH_BEGINS = ("/", "./", "../", "~")


class Argument(NamedTuple):
    """A part of a command line: ``--sal sal/x``, ``--init trunk=net.pth``, ``--fresh``, ``7``."""

    option: str | None
    """None for a value whose option is not one of those above."""
    value: str | None
    """None for an option without a value, or one whose value is the next argument."""
    name: str = ""
    """What stands before the value, with its equals sign: ``trunk=``."""

    @property
    def words(self) -> list[str]:
        """As they stand on a command line."""
        value = [] if self.value is None else [self.name + self.value]
        return ([] if self.option is None else [self.option]) + value


def parse(arguments: Sequence[str]) -> Iterator[Argument]:
    """The parts of a command line. Raises UsageError for an option of those above without value."""
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("--"):
            yield Argument(None, word)
        elif equals:
            yield _named(option, value)
        elif option in (*MAPS_OPTIONS, *FILE_OPTIONS, *ROOT_OPTIONS, *_BESIDE, "--target"):
            following = next(words, None)
            if following is None:
                raise UsageError(f"{option} needs a value.")
            yield _named(option, following)
        else:
            yield Argument(option, None)


def _named(option: str, value: str) -> Argument:
    name, equals, rest = value.partition("=")
    if option in ("--init", "--maps") and equals and name.isidentifier():
        return Argument(option, rest, f"{name}=")
    return Argument(option, value)


def in_container(
    arguments: Sequence[Argument],
    roots: Mapping[str, Path],
    find: Callable[[Argument], Path | None],
) -> tuple[list[str], dict[Path, str]]:
    """The words in the container, and what of this machine lies below ``/inputs`` there.

    ``roots`` are the folders that lie at ``/data`` and ``/artifacts``; ``find`` gives the path of
    this machine that an argument means, None if it means none.
    """
    inputs: dict[Path, str] = {}
    words: list[str] = []
    for argument in arguments:
        if argument.option in ROOT_OPTIONS:
            continue
        path = None if argument.value is None else find(argument)
        if path is not None:
            argument = argument._replace(value=_inside(path, roots, inputs))
        words += argument.words
    return words, inputs


def _inside(path: Path, roots: Mapping[str, Path], inputs: dict[Path, str]) -> str:
    for place, root in roots.items():
        if path.is_relative_to(root):
            return str(Path(place) / path.relative_to(root))
    if path not in inputs:
        inputs[path] = f"{INPUTS}/{len(inputs) + 1}/{path.name}"
    return inputs[path]


def looks_like_path(argument: Argument) -> bool:
    """Whether a value can only be meant as a path, be it there or not."""
    value = argument.value or ""
    if argument.option == OUTPUT_OPTION:
        return True
    with_slash = (*FILE_OPTIONS, FOLDER_OPTION)
    return value.startswith(_PATH_BEGINS) or (argument.option in with_slash and "/" in value)


def path_of(argument: Argument) -> Path | None:
    """The path of this machine that an argument means, resolved; None if it means none."""
    value, option = argument.value or "", argument.option
    if option in MAPS_OPTIONS and (names_artifact(value) or value in _OWN_WORDS):
        return None
    path = Path(value).expanduser()
    given = option in (*MAPS_OPTIONS, *FILE_OPTIONS) and value not in _OWN_WORDS and path.exists()
    return path.resolve() if given or looks_like_path(argument) else None


def published_command(arguments: Sequence[str], data_root: Path, out: Path) -> list[str]:
    """The arguments of a stage as its provenance states them, without those that make something
    beside the artifacts. The two folders are for when they name none."""
    parts = [part for part in parse(arguments) if part.option not in _BESIDE]
    given = {part.option: part.value for part in parts}
    folders = {DATA: given.get("--data-root") or data_root, ARTIFACTS: given.get("--out") or out}
    roots = {place: Path(folder).expanduser().resolve() for place, folder in folders.items()}
    return in_container(parts, roots, path_of)[0]
