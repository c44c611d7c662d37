"""What is wrong with a folder or zip of maps, compared with the target that they should cover.

An error makes the maps useless, or another thing than they should be; a warning is worth a look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from wsssbed_hub.errors import HubError
from wsssbed_hub.reader import Activations, Maps
from wsssbed_hub.targets import TARGETS, Target, open_target

Check = Literal["count", "ids", "sizes", "classes"]

PUBLISHED = {"voc12": 10582, "coco14": 82081}  # images that maps are made for
TOLERATED = 0.01  # share of images whose classes may differ, as published label lists do
_DARK = 1  # grey levels: maps that never exceed it were written as 0..1
_NAMED = 5  # images that a message names


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the images that it is wrong with."""

    severity: Literal["error", "warning"]
    what: str
    images: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(self.images[:_NAMED])
        more = f" and {len(self.images) - _NAMED:,} more" if len(self.images) > _NAMED else ""
        return self.what + (f": {named}{more}" if named else "")


@dataclass(frozen=True)
class Goal:
    """What is at hand of a target: its published number of images, or its lists and images."""

    name: str
    count: int | None = None
    target: Target | None = None
    split: str = "train_aug"
    ids: tuple[str, ...] = ()

    @property
    def checks(self) -> list[Check]:
        """What maps can be compared with."""
        if self.target is None:
            return ["count"] if self.count else []
        return ["ids", "sizes", "classes"]

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) that a map has to have."""
        assert self.target is not None
        return self.target.size(image_id)


def goal_of(name: str, data_root: Path) -> Goal:
    """The target ``name`` as far as it is below ``data_root``."""
    if name in TARGETS:
        try:
            target = open_target(name, data_root)
            split = target.splits[0]
            return Goal(name, None, target, split, tuple(target.image_ids(split)))
        except HubError:
            pass  # its lists are not at hand
    return Goal(name, PUBLISHED.get(name))


def check_lists(
    image_ids: Sequence[str],
    goal: Goal,
    class_ids: Callable[[str], Sequence[int]] | None = None,
) -> list[Problem]:
    """What the names of the files tell: missing and unknown images and, for activation maps, whose
    classes ``class_ids`` gives, wrong classes."""
    if goal.target is None:
        if goal.count is None or len(image_ids) >= goal.count:
            return []
        what = f"{len(image_ids):,} images; {goal.name} has {goal.count:,}"
        return [Problem("error", what)]
    have, wanted = set(image_ids), set(goal.ids)
    others = sorted(have - wanted)
    known = _known(goal.target, others)
    unknown = [image_id for image_id in others if image_id not in known]
    found = [
        _problem("error", f"missing images of {goal.name} {goal.split}", sorted(wanted - have)),
        _problem("error", f"images that {goal.name} does not have", unknown),
        _problem("warning", f"images beyond {goal.split}", sorted(known)),
    ]
    if class_ids is not None:
        found += _check_classes(class_ids, goal.target, sorted(have & wanted))
    return [problem for problem in found if problem is not None]


def check_map_size(goal: Goal, image_id: str, maps: np.ndarray | Activations) -> None:
    """Raises HubError unless the maps have the size of the target's image."""
    height, width = _shape(maps)
    if goal.size(image_id) != (height, width):
        right = goal.size(image_id)
        raise HubError(
            f"the map of image {image_id} is {height} x {width} pixels, the image is "
            f"{right[0]} x {right[1]}."
        )


def _shape(maps: np.ndarray | Activations) -> tuple[int, int]:
    one = maps.activations[0] if isinstance(maps, Activations) else maps
    return one.shape[0], one.shape[1]


def _known(target: Target, ids: Iterable[str]) -> set[str]:
    """Those of ``ids`` that are images of the target, whether or not its first list has them."""
    listed: set[str] = set()
    for split in target.splits:
        try:
            listed.update(target.image_ids(split))
        except HubError:
            continue  # a list that is not there knows no image
    return {i for i in ids if i in listed or target.image_path(i).is_file()}


def _check_classes(
    class_ids: Callable[[str], Sequence[int]], target: Target, ids: Sequence[str]
) -> list[Problem | None]:
    foreign, wrong, shifted = [], [], 0
    for image_id in ids:
        classes, labels = list(class_ids(image_id)), list(target.image_labels(image_id))
        if classes == labels:
            continue
        wrong.append(image_id)
        shifted += [c - 1 for c in classes] == labels
        if classes and classes[-1] >= target.num_classes:
            foreign.append(image_id)
    severity: Literal["error", "warning"] = (
        "error" if len(wrong) > TOLERATED * len(ids) else "warning"
    )
    hint = " (they seem to be counted from 1, not from 0)" if shifted > len(wrong) // 2 else ""
    return [
        _problem(severity, f"classes other than the image-level labels{hint}", wrong),
        _problem("error", f"classes beyond the {target.num_classes} of {target.name}", foreign),
    ]


def _problem(
    severity: Literal["error", "warning"], what: str, images: Sequence[str]
) -> Problem | None:
    return Problem(severity, what, tuple(images)) if images else None


@dataclass
class Pixels:
    """What decoded maps tell, gathered one image at a time."""

    kind: str
    images: int = 0
    highest: int = 0
    inverted: int = 0
    constant: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    first_damage: str = ""
    classes: dict[str, list[int]] = field(default_factory=dict)

    def look(self, image_id: str, maps: np.ndarray | Activations) -> None:
        pixels = maps.activations if isinstance(maps, Activations) else maps[None]
        self.images += 1
        if isinstance(maps, Activations):
            self.classes[image_id] = maps.class_ids.tolist()
        self.highest = max(self.highest, int(pixels.max()))
        if any(int(one.min()) == int(one.max()) for one in pixels):
            self.constant.append(image_id)
        elif self.kind == "sal":
            self.inverted += _is_brighter_outside(pixels[0])

    def problems(self) -> list[Problem]:
        found = [
            _problem("error", f"damaged maps ({self.first_damage})", self.damaged),
            _problem("error", "maps of another size than their image", self.sizes),
        ]
        if self.kind != "label":
            found.append(_problem("warning", "maps of one value only", self.constant))
            if self.images and self.highest <= _DARK:
                what = f"no value above {self.highest}: written as 0..1 and not as 0..255?"
                found.append(Problem("error", what))
        if self.images and self.inverted > self.images / 2:
            what = (
                f"{self.inverted:,} of {self.images:,} maps are brighter at the border than inside:"
                " inverted?"
            )
            found.append(Problem("warning", what))
        return [problem for problem in found if problem is not None]


def _is_brighter_outside(saliency: np.ndarray) -> bool:
    """Whether the border, an eighth of each side wide, is brighter than the rest."""
    height, width = saliency.shape
    top, left = max(1, height // 8), max(1, width // 8)
    inside = saliency[top : height - top, left : width - left]
    if not inside.size:
        return False
    border = (int(saliency.sum(dtype=np.int64)) - int(inside.sum(dtype=np.int64))) / max(
        1, saliency.size - inside.size
    )
    return bool(border > inside.mean())


def look_at_all(
    maps: Maps, goal: Goal, progress: Callable[[int, int], None] | None = None
) -> Pixels:
    """Decodes every map; what cannot be read is noted, not raised. ``progress(images, of)``."""
    pixels = Pixels(maps.kind)
    wanted = set(goal.ids)
    for done, image_id in enumerate(maps.image_ids, 1):
        try:
            found = maps.read(image_id)
            if image_id in wanted and goal.size(image_id) != _shape(found):
                pixels.sizes.append(image_id)
            pixels.look(image_id, found)
        except HubError as error:
            pixels.damaged.append(image_id)
            if not pixels.first_damage:
                pixels.first_damage = str(error)
        if progress is not None:
            progress(done, len(maps))
    return pixels
