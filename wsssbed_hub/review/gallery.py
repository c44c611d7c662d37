"""The images that are worth a look: those with something wrong first, then some of each class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsssbed_hub.evaluation.inspect import Expectation, Problem
from wsssbed_hub.utils.errors import HubError

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.maps import Maps

_EACH = 3  # images of one problem


def gallery(
    maps: Maps, expected: Expectation, problems: Sequence[Problem], *, images: int = 8
) -> bytes:
    """A PNG file with thumbnails of ``images`` images and their maps, the suspicious ones first.

    Without the target's images the maps stand alone. Raises ValueError if there are no maps.
    """
    from wsssbed_hub.report import thumbnail_gallery

    marks = _marks(problems)
    shown = choose(maps, expected, problems, images)
    return thumbnail_gallery(expected.target, [(maps.kind, maps)], shown, remarks=marks)


def choose(
    maps: Maps, expected: Expectation, problems: Sequence[Problem], images: int
) -> list[str]:
    """The ids of at most ``images`` images: a few of each problem in their order, then others."""
    chosen: dict[str, None] = {}
    for problem in problems:
        chosen |= dict.fromkeys(problem.images[:_EACH])
    chosen |= dict.fromkeys(_others(maps, expected, images))
    return list(chosen)[:images]


def _others(maps: Maps, expected: Expectation, images: int) -> list[str]:
    """Images that show many classes where those are known; else such as their names decide."""
    from wsssbed_hub.report import choose_images

    if expected.target is not None:
        known = sorted(set(maps.image_ids) & set(expected.ids))
        try:
            return choose_images(expected.target, known, images)
        except HubError:
            pass  # an annotation is missing
    return sorted(maps.image_ids, key=lambda i: hashlib.sha256(i.encode()).digest())[:images]


def _marks(problems: Sequence[Problem]) -> dict[str, str]:
    """The problem of each image, in two words; the first of several."""
    marks: dict[str, str] = {}
    for problem in problems:
        for image_id in problem.images:
            marks.setdefault(image_id, problem.mark)
    return marks
