"""What `data check` says of a target in the layout of VOC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsssbed_hub.datasets.base import Finding, all_opened
from wsssbed_hub.datasets.image_files import some
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import Progress

if TYPE_CHECKING:
    from wsssbed_hub.datasets.voc import VocTarget


def inspect(target: VocTarget, *, deep: bool, progress: Progress | None) -> Iterator[Finding]:
    """For each split its list, and how many of its images, annotations and masks are there.

    ``deep`` also opens every file: headers of images, annotations, masks and their sizes.
    """
    splits: dict[str, str] = {}  # image id to the first split that has it
    for split in target.splits:
        published = target.spec.counts.get(split)
        try:
            ids = target.image_ids(split)
        except HubError as error:
            yield Finding(f"{split}: list", False, None, published, detail=str(error))
            continue
        splits = dict.fromkeys(ids, split) | splits
        right = published in (None, len(ids))
        detail = "" if right else "not the published number"
        source = target.list_source(split)
        yield Finding(f"{split}: list", right, len(ids), published, source, detail)
        yield _presence(f"{split}: images", ids, target.image_path)
        yield _presence(f"{split}: annotations", ids, target.annotation_path)
        yield _masks(target, split, ids)
    if deep:
        yield from _open_all(target, splits, progress)


def _presence(what: str, ids: Sequence[str], path_of: Callable[[str], Path]) -> Finding:
    missing = [image_id for image_id in ids if not path_of(image_id).is_file()]
    folder = path_of(ids[0]).parent
    lacks = f"missing: {some(missing)}" if folder.is_dir() else "the folder is not there"
    found = len(ids) - len(missing)
    return Finding(what, not missing, found, len(ids), str(folder), lacks if missing else "")


def _masks(target: VocTarget, split: str, ids: Sequence[str]) -> Finding:
    used: Counter[str] = Counter()
    missing = []
    for image_id in ids:
        candidates = target.mask_candidates(image_id, split)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            missing.append(image_id)
        else:
            used[str(path.parent)] += 1
    found = len(ids) - len(missing)
    folder = max(used, key=lambda name: used[name], default=str(candidates[0].parent))
    parts = [f"{count:,} from {name}" for name, count in used.items() if len(used) > 1]
    if missing:
        parts.append(f"missing: {some(missing)}")
    return Finding(f"{split}: masks", not missing, found, len(ids), folder, "; ".join(parts))


def _open_all(
    target: VocTarget, splits: dict[str, str], progress: Progress | None
) -> Iterator[Finding]:
    """Opens everything that is there; what is missing was said before."""
    problems: dict[str, list[str]] = {"image": [], "annotation": [], "mask": []}
    unnamed = []
    for done, (image_id, split) in enumerate(sorted(splits.items()), start=1):
        found = _open(target, image_id, split, problems)
        if found["annotation"] is not None and found["mask"] is not None:
            seen = {int(value) - 1 for value in np.unique(found["mask"]) if 0 < value < 255}
            if seen - set(found["annotation"]):
                unnamed.append(image_id)
        if progress is not None:
            progress(done, len(splits))
    yield from all_opened(problems, target.folder)
    detail = f"{some(unnamed)}: not an error, annotators disagree" if unnamed else ""
    yield Finding("masks with a class that the annotation lacks", True, len(unnamed), detail=detail)


def _open(
    target: VocTarget, image_id: str, split: str, problems: dict[str, list[str]]
) -> dict[str, Any]:
    """What is read of one image; None for what is not there and for what is bad, which goes to
    ``problems``."""
    masks = [path for path in target.mask_candidates(image_id, split) if path.is_file()]
    readers: dict[str, tuple[bool, Callable[[], Any]]] = {
        "image": (target.image_path(image_id).is_file(), lambda: target.size(image_id)),
        "annotation": (
            target.annotation_path(image_id).is_file(),
            lambda: _labels(target, image_id),
        ),
        "mask": (bool(masks), lambda: target.read_mask(image_id, split)),
    }
    found: dict[str, Any] = dict.fromkeys(readers)
    for what, (there, read) in readers.items():
        if there:
            try:
                found[what] = read()
            except HubError as error:
                problems[what].append(str(error))
    return found


def _labels(target: VocTarget, image_id: str) -> tuple[int, ...]:
    labels = target.image_labels(image_id)
    if not labels:
        raise HubError(f"{target.annotation_path(image_id)} names no object.")
    return labels
