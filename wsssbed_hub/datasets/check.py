"""`data check`: the files of a dataset that are there, those that are missing, where to get it.

Datasets declare what they should have (see ``inventory``); here it is looked for, the same for all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from wsssbed_hub.datasets.base import DatasetSpec, DownloadSource, NotThere
from wsssbed_hub.datasets.catalog import SOD_DATASETS, TARGETS, find_target, own_targets
from wsssbed_hub.datasets.image_files import either, some, some_messages
from wsssbed_hub.datasets.inventory import ClassCheck, DrawnMasks, ImageFiles, ImageList, Inventory
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean
from wsssbed_hub.utils.progress import Progress


@dataclass(frozen=True)
class FileFinding:
    """One thing that a check looked at. ``found`` and ``expected`` are numbers of images."""

    what: str
    ok: bool
    found: int | None = None
    expected: int | None = None
    path: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class DatasetReport:
    """The findings of one dataset. ``ok``: all of it is there, in the published numbers."""

    name: str
    title: str
    data_root: str
    ok: bool
    findings: tuple[FileFinding, ...]
    sources: tuple[DownloadSource, ...]
    licence: str
    paper: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check(
    name: str, data_root: Path, *, deep: bool = False, progress: Progress | None = None
) -> DatasetReport:
    """Looks at the files of a target or a SOD dataset, or of both where they share a name.

    ``deep`` also opens every file: sizes of images and masks, labels, annotations. Problems of the
    files are findings, not errors. Raises UsageError for an unknown name.
    """
    data_root = Path(data_root)
    candidates = (find_target(name, data_root), SOD_DATASETS.get(name))
    specs: list[DatasetSpec] = [spec for spec in candidates if spec is not None]
    if not specs:
        own = (spec.name for spec in own_targets(data_root))
        known = dict.fromkeys((*TARGETS, *own, *SOD_DATASETS))
        raise UsageError(
            f"There is no dataset {name!r}.{did_you_mean(name, known)} "
            f"Datasets are {', '.join(known)}."
        )
    parts = [part for spec in specs for part in spec.parts_or_self]
    findings = [found for part in parts for found in _findings(part, data_root, deep, progress)]
    return DatasetReport(
        name=name,
        title=specs[0].title,
        data_root=str(data_root),
        ok=all(finding.ok for finding in findings),
        findings=tuple(findings),
        sources=tuple(dict.fromkeys(source for spec in specs for source in spec.sources)),
        licence=specs[0].licence,
        paper=specs[0].paper,
    )


def _findings(
    spec: DatasetSpec, data_root: Path, deep: bool, progress: Progress | None
) -> Iterator[FileFinding]:
    what, expected = f"{spec.name}: images", spec.published_images
    try:
        inventory = spec.inventory(data_root)
    except NotThere as error:  # the report says apart where it is to be had
        detail = f"looked for {either(error.looked_for)}"
        yield FileFinding(what, False, 0, expected, detail=detail)
    except HubError as error:
        yield FileFinding(what, False, None, expected, detail=str(error))
    else:
        lists: list[ImageList] = []
        yield from _presence(inventory, lists)
        if deep:
            yield from _opening(inventory, lists, progress)


def _presence(inventory: Inventory, lists: list[ImageList]) -> Iterator[FileFinding]:
    """The lists, which are collected in ``lists``, and how many of their files are there."""
    names = cache(_file_names)
    for name, published, read in inventory.lists:
        try:
            listed = read()
        except HubError as error:
            yield FileFinding(f"{name}: list", False, None, published, detail=str(error))
            continue
        lists.append(listed)
        count = len(listed.ids)
        if listed.source is not None:
            right = published in (None, count)
            detail = listed.note if right else "not the published number"
            yield FileFinding(
                f"{name}: list", right and count > 0, count, published, listed.source, detail
            )
            published = None
        for files in listed.files:
            what = f"{name}: {files.what}s"
            if isinstance(files, DrawnMasks):
                drawn = "drawn from the instances"
                yield FileFinding(what, True, count, count, str(files.source), drawn)
            else:
                yield _presence_of(files, what, listed.ids, published, names)


def _presence_of(
    files: ImageFiles, what: str, ids: Sequence[str], published: int | None, names: Any
) -> FileFinding:
    """``names`` gives the files of a folder: asking for each image alone takes far longer."""
    used: Counter[str] = Counter()
    missing = []
    for image_id in ids:
        candidates = files.candidates(image_id)
        path = next((path for path in candidates if path.name in names(path.parent)), None)
        if path is None:
            missing.append(image_id)
        else:
            used[str(path.parent)] += 1
    found = len(ids) - len(missing)
    right = published in (None, found)
    first = files.candidates(ids[0])[0].parent if ids else None
    parts = [f"{count:,} from {name}" for name, count in used.items() if len(used) > 1]
    if missing and not any(path.parent.is_dir() for path in files.candidates(ids[0])):
        parts.append("the folder is not there")
    elif missing:
        parts.append(f"missing: {some(missing)}")
    elif not right:
        parts.append("not the published number")
    folder = max(used, key=lambda name: used[name], default=None if first is None else str(first))
    expected = len(ids) if published is None else published
    return FileFinding(what, right and not missing, found, expected, folder, "; ".join(parts))


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _opening(
    inventory: Inventory, lists: Sequence[ImageList], progress: Progress | None
) -> Iterator[FileFinding]:
    """Opens everything that is there, an image of several lists once; what is missing was said."""
    first: dict[str, ImageList] = {}
    for listed in lists:
        first = dict.fromkeys(listed.ids, listed) | first
    problems: dict[str, list[str]] = {files.what: [] for listed in lists for files in listed.files}
    beyond = []
    for done, (image_id, listed) in enumerate(sorted(first.items()), start=1):
        for files in listed.files:
            try:
                if not _is_there(files, image_id):
                    continue
                found = files.read(image_id)
            except HubError as error:
                problems[files.what].append(str(error))
                continue
            if files.what == "mask" and _has_other_classes(inventory.classes, image_id, found):
                beyond.append(image_id)
        if progress is not None:
            progress(done, len(first))
    for what, messages in problems.items():
        title = f"{inventory.prefix}every {what} opened"
        yield FileFinding(title, not messages, detail=some_messages(messages))
    if inventory.classes is not None:
        what, _, hint, tolerated = inventory.classes
        detail = f"{some(beyond)}: {hint}" if beyond else ""
        yield FileFinding(what, tolerated or not beyond, len(beyond), detail=detail)


def _is_there(files: ImageFiles | DrawnMasks, image_id: str) -> bool:
    if isinstance(files, DrawnMasks):
        return True
    return any(path.is_file() for path in files.candidates(image_id))


def _has_other_classes(classes: ClassCheck | None, image_id: str, mask: np.ndarray) -> bool:
    if classes is None:
        return False
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    try:
        return not {value - 1 for value in values if 0 < value < 255} <= {*classes.labels(image_id)}
    except HubError:  # labels that cannot be read are another finding
        return False
