"""Problems of a folder or zip of maps, compared with the target that they should cover.

An error makes the maps useless, or another thing than they should be; a warning is worth a look.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np

from wsssbed_hub.artifacts.maps import Activations, Maps
from wsssbed_hub.datasets import TARGETS, Target, find_target
from wsssbed_hub.evaluation.pseudo_label import IGNORE
from wsssbed_hub.utils.errors import HubError, did_you_mean
from wsssbed_hub.utils.progress import Progress

Severity = Literal["error", "warning"]
About = Literal["ids", "sizes", "classes", "values"]
Check = Literal["count", "ids", "sizes", "classes"]

TOLERATED = 0.01  # share of images whose classes may differ, as published label lists do
_DARK = 1  # grey levels: maps that never exceed it were written as 0..1
_NAMED = 5  # images that a message names


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and the images that it is wrong with.

    ``mark`` says it in two words, below a thumbnail; ``about`` is what of the maps it concerns.
    """

    severity: Severity
    what: str
    images: tuple[str, ...] = ()
    mark: str = ""
    about: About | None = None

    def __str__(self) -> str:
        named = ", ".join(self.images[:_NAMED])
        more = f" and {len(self.images) - _NAMED:,} more" if len(self.images) > _NAMED else ""
        return self.what + (f": {named}{more}" if named else "")


@dataclass(frozen=True)
class Expectation:
    """The part of a target that is at hand to compare maps with: its published number of images, or
    its lists and images."""

    name: str
    known: bool = True
    count: int | None = None
    target: Target | None = None
    split: str = "train_aug"
    ids: tuple[str, ...] = ()

    @property
    def checks(self) -> list[Check]:
        """The things that maps can be compared with."""
        if self.target is None:
            return ["count"] if self.count else []
        return ["ids", "sizes", "classes"]

    def shortfall(self, data_root: Path) -> str:
        """The comparisons that fail because the target is not at hand, in words."""
        if not self.known:
            near = did_you_mean(self.name, TARGETS)
            return f"No target {self.name!r} is known here: nothing could be compared.{near}"
        what = "the number of images was compared" if self.checks else "nothing could be compared"
        return f"The lists of {self.name} are not below {data_root}: {what}."

    def size(self, image_id: str) -> tuple[int, int]:
        """(height, width) that a map has to have."""
        assert self.target is not None
        return self.target.size(image_id)


def expectation_of(name: str, data_root: Path) -> Expectation:
    """The target ``name`` as far as it is below ``data_root``."""
    spec = find_target(name, data_root)
    if spec is None:
        return Expectation(name, known=False)
    split = spec.splits[0]
    try:
        target = spec.open(spec, data_root)
        ids = tuple(target.image_ids(split))
    except HubError:  # its lists are not at hand
        return Expectation(name, count=spec.counts.get(split))
    return Expectation(name, target=target, split=split, ids=ids)


def check_lists(
    image_ids: Sequence[str],
    expected: Expectation,
    class_ids: Callable[[str], Sequence[int]] | None = None,
) -> list[Problem]:
    """Problems that the names of the files tell: missing and unknown images and, for activation
    maps, whose classes ``class_ids`` gives, wrong classes."""
    if expected.target is None:
        if expected.count is None or len(image_ids) >= expected.count:
            return []
        what = f"{len(image_ids):,} images; {expected.name} has {expected.count:,}"
        return [Problem("error", what, about="ids")]
    have, wanted = set(image_ids), set(expected.ids)
    others = sorted(have - wanted)
    known = _known(expected.target, others)
    unknown = [image_id for image_id in others if image_id not in known]
    missing = f"missing images of {expected.name} {expected.split}"
    found = [
        _problem("error", missing, sorted(wanted - have), "missing", "ids"),
        _problem("error", f"images that {expected.name} does not have", unknown, "unknown", "ids"),
        _problem("warning", f"images beyond {expected.split}", sorted(known), "not listed", "ids"),
    ]
    if class_ids is not None:
        found += _check_classes(class_ids, expected.target, sorted(have & wanted))
    return [problem for problem in found if problem is not None]


class WrongMaps(HubError):
    """The maps themselves are wrong, not the disk or the machine."""


def check_map_size(expected: Expectation, image_id: str, size: tuple[int, int]) -> None:
    """Raises WrongMaps unless ``size``, (height, width) of the maps, is that of the image."""
    right = expected.size(image_id)
    if right != size:
        raise WrongMaps(
            f"the map of image {image_id} is {size[0]} x {size[1]} pixels, the image is "
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
    unknown, wrong, shifted = [], [], 0
    for image_id in ids:
        classes, labels = list(class_ids(image_id)), list(target.image_labels(image_id))
        if classes == labels:
            continue
        wrong.append(image_id)
        shifted += [c - 1 for c in classes] == labels
        if classes and classes[-1] >= target.num_classes:
            unknown.append(image_id)
    severity: Severity = "error" if len(wrong) > TOLERATED * len(ids) else "warning"
    hint = " (they seem to be counted from 1, not from 0)" if shifted > len(wrong) // 2 else ""
    other = f"classes other than the image-level labels{hint}"
    beyond = f"classes beyond the {target.num_classes} of {target.name}"
    return [
        _problem(severity, other, wrong, "wrong classes", "classes"),
        _problem("error", beyond, unknown, "wrong classes", "classes"),
    ]


def _check_label_classes(
    classes: Mapping[str, Sequence[int]], target: Target, ids: Sequence[str]
) -> list[Problem | None]:
    """Labels hold the target's classes. Others than the image-level labels are worth a look:
    pseudo labels have none, the output of a segmentation network may."""
    beyond = [i for i in classes if max(classes[i], default=0) >= target.num_classes]
    other = [i for i in ids if not set(classes[i]) <= set(target.image_labels(i))]
    what = f"values that are no class of {target.name}"
    return [
        _problem("error", what, beyond, "wrong classes", "classes"),
        _problem("warning", "classes that the image-level labels do not have", other, "classes?"),
    ]


def _problem(
    severity: Severity,
    what: str,
    images: Sequence[str],
    mark: str = "",
    about: About | None = None,
) -> Problem | None:
    return Problem(severity, what, tuple(images), mark, about) if images else None


def _sorted_sum(one: list[str], other: list[str]) -> list[str]:
    return sorted(one + other)


def _first(one: str, other: str) -> str:
    return one or other


# How the values of two MapStatistics become one: every field but the kind says it.
_SUM, _HIGHEST, _SORTED, _UNION, _FIRST = (
    {"together": function} for function in (operator.add, max, _sorted_sum, operator.or_, _first)
)


@dataclass
class MapStatistics:
    """Statistics of decoded maps, gathered one image at a time."""

    kind: str
    images: int = field(default=0, metadata=_SUM)
    highest: int = field(default=0, metadata=_HIGHEST)
    inverted: list[str] = field(default_factory=list, metadata=_SORTED)
    constant: list[str] = field(default_factory=list, metadata=_SORTED)
    dark: list[str] = field(default_factory=list, metadata=_SORTED)
    damaged: list[str] = field(default_factory=list, metadata=_SORTED)
    sizes: list[str] = field(default_factory=list, metadata=_SORTED)
    first_damage: str = field(default="", metadata=_FIRST)
    classes: dict[str, list[int]] = field(default_factory=dict, metadata=_UNION)

    def add(self, image_id: str, maps: np.ndarray | Activations) -> None:
        """Takes in the maps of one image."""
        pixels = maps.activations if isinstance(maps, Activations) else maps[None]
        self.images += 1
        if isinstance(maps, Activations):
            self.classes[image_id] = maps.class_ids.tolist()
        elif self.kind == "label":
            values = np.flatnonzero(np.bincount(maps.ravel(), minlength=256))
            self.classes[image_id] = [int(v) - 1 for v in values if v not in (0, IGNORE)]
        highest = int(pixels.max())
        self.highest = max(self.highest, highest)
        if any(int(one.min()) == int(one.max()) for one in pixels):
            self.constant.append(image_id)
        elif highest <= _DARK:
            self.dark.append(image_id)
        elif self.kind == "sal" and _is_brighter_outside(pixels[0]):
            self.inverted.append(image_id)

    def merge(self, other: MapStatistics) -> None:
        """Takes in what was gathered elsewhere, of other images and the same kind."""
        for one in fields(self):
            if one.name != "kind":
                mine, theirs = getattr(self, one.name), getattr(other, one.name)
                setattr(self, one.name, one.metadata["together"](mine, theirs))

    def problems(self) -> list[Problem]:
        damaged, size = (
            f"damaged maps ({self.first_damage})",
            "maps of another size than their image",
        )
        found = [
            _problem("error", damaged, self.damaged, "damaged", "values"),
            _problem("error", size, self.sizes, "wrong size", "sizes"),
        ]
        if self.kind != "label":
            one = "maps of one value only"
            found.append(_problem("warning", one, self.constant, "one value", "values"))
            if self.images and self.highest <= _DARK:
                what = f"no value above {self.highest}: written as 0..1 and not as 0..255?"
                found.append(Problem("error", what, about="values"))
            elif self.dark:
                what = f"maps without a value above {_DARK}, written as 0..1?"
                found.append(_problem("warning", what, self.dark, "0..1?", "values"))
        if len(self.inverted) > self.images / 2:
            what = (
                f"{len(self.inverted):,} of {self.images:,} maps are brighter at the border than "
                "inside, inverted?"
            )
            found.append(_problem("warning", what, self.inverted, "inverted?", "values"))
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


def inspect_maps(
    maps: Maps, expected: Expectation, progress: Progress | None = None
) -> list[Problem]:
    """All that is wrong with ``maps``, errors first. Every map is decoded; ``progress(images,
    of)``."""
    statistics = gather_statistics(maps, expected, progress)
    found: list[Problem | None] = [*check_lists(maps.image_ids, expected), *statistics.problems()]
    if expected.target is not None:
        listed = sorted(statistics.classes.keys() & set(expected.ids))
        if maps.kind == "cam":
            found += _check_classes(statistics.classes.__getitem__, expected.target, listed)
        elif maps.kind == "label":
            found += _check_label_classes(statistics.classes, expected.target, listed)
    return sorted((one for one in found if one is not None), key=lambda one: one.severity)


def gather_statistics(
    maps: Maps, expected: Expectation, progress: Progress | None = None
) -> MapStatistics:
    """Decodes every map; what cannot be read is noted, not raised. ``progress(images, of)``."""
    statistics = MapStatistics(maps.kind)
    wanted = set(expected.ids)
    for done, image_id in enumerate(maps.image_ids, 1):
        try:
            found = maps.read(image_id)
            if image_id in wanted and expected.size(image_id) != _shape(found):
                statistics.sizes.append(image_id)
            statistics.add(image_id, found)
        except HubError as error:
            statistics.damaged.append(image_id)
            if not statistics.first_damage:
                statistics.first_damage = str(error)
        if progress is not None:
            progress(done, len(maps))
    return statistics
