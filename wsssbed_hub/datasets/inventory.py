"""ImageFiles that a dataset should have on this machine, as the dataset itself declares them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class ImageFiles:
    """A file of each image: its picture, its annotation, its mask.

    ``candidates`` gives the paths where it may be, the preferred one first, and ``read`` opens it;
    it raises HubError for a file that is damaged or does not fit its image.
    """

    what: str
    candidates: Callable[[str], Sequence[Path]]
    read: Callable[[str], Any]


@dataclass(frozen=True)
class DrawnMasks:
    """Masks that are no files: they are drawn from the annotation file ``source``."""

    source: Path
    read: Callable[[str], Any]
    what: str = "mask"


class ImageList(NamedTuple):
    """Images of one list, and what each should have.

    ``source`` is the file or folder that lists them; None where the list is whatever lies in the
    folders, so that the published number is that of their files.
    """

    ids: Sequence[str]
    files: Sequence[ImageFiles | DrawnMasks]
    source: str | None = None
    note: str = ""


class ExpectedList(NamedTuple):
    """A list of the dataset by its name; ``read`` raises HubError if it is not there or wrong."""

    name: str
    published: int | None
    read: Callable[[], ImageList]


class ClassCheck(NamedTuple):
    """Comparison of the classes in a mask with those that ``labels`` gives of the image.

    ``what`` names the masks that have more, ``hint`` says why that may be; it is a fault of the
    dataset unless ``tolerated``.
    """

    what: str
    labels: Callable[[str], Collection[int]]
    hint: str
    tolerated: bool


@dataclass(frozen=True)
class Inventory:
    """All that a dataset should have; ``prefix`` precedes what is said of its files."""

    lists: Sequence[ExpectedList]
    prefix: str = ""
    classes: ClassCheck | None = None
