"""What `data check` says of a target in the layout of COCO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsssbed_hub.datasets.base import Finding, all_opened
from wsssbed_hub.datasets.image_files import image_size, listing, some
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import Progress

if TYPE_CHECKING:
    from wsssbed_hub.datasets.coco import CocoTarget


def inspect(target: CocoTarget, *, deep: bool, progress: Progress | None) -> Iterator[Finding]:
    """For each split its list, how many of its images are there, and where its masks come from.

    ``deep`` also opens every image's header, and draws or opens every mask.
    """
    splits: dict[str, str] = {}
    for split in target.splits:
        published = target.spec.counts.get(split)
        path = str(target.instances(split).path)
        try:
            ids = target.image_ids(split)
        except HubError as error:
            yield Finding(f"{split}: list", False, None, published, detail=str(error))
            continue
        splits |= dict.fromkeys(ids, split)
        right = published in (None, len(ids))
        without = target.instances(split).images - len(ids)
        detail = f"{without:,} images without instances are left out" if without else ""
        if not right:
            detail = "not the published number"
        yield Finding(f"{split}: list", right, len(ids), published, path, detail)
        folder = target.folder / f"{split}2014"
        yield _presence(f"{split}: images", ids, folder, ".jpg")
        masks = target.mask_folder(split)
        if masks is not None:
            yield _presence(f"{split}: masks", ids, masks, ".png")
        else:
            drawn = "drawn from the instances"
            yield Finding(f"{split}: masks", True, len(ids), len(ids), path, drawn)
    if deep:
        yield from _open_all(target, splits, progress)


def _presence(what: str, ids: Sequence[str], folder: Path, suffix: str) -> Finding:
    there = listing(folder)
    missing = [image_id for image_id in ids if image_id + suffix not in there]
    lacks = f"missing: {some(missing)}" if folder.is_dir() else "the folder is not there"
    found = len(ids) - len(missing)
    return Finding(what, not missing, found, len(ids), str(folder), lacks if missing else "")


def _open_all(
    target: CocoTarget, splits: dict[str, str], progress: Progress | None
) -> Iterator[Finding]:
    """Opens everything that is there; what is missing was said before."""
    problems: dict[str, list[str]] = {"image": [], "mask": []}
    unnamed = []
    for done, (image_id, split) in enumerate(sorted(splits.items()), start=1):
        try:
            _check_image(target, image_id)
        except HubError as error:
            problems["image"].append(str(error))
        try:
            seen = np.flatnonzero(np.bincount(_mask(target, image_id, split), minlength=256))
            if not set((seen[(seen > 0) & (seen < 255)] - 1).tolist()) <= set(
                target.image_labels(image_id)
            ):
                unnamed.append(image_id)
        except HubError as error:
            problems["mask"].append(str(error))
        if progress is not None:
            progress(done, len(splits))
    yield from all_opened(problems, target.folder)
    # The masks are made from the instances, whoever made them: another class is another numbering.
    detail = f"{some(unnamed)}: are they COCO's category ids?" if unnamed else ""
    what = "masks with a class that the instances lack"
    yield Finding(what, not unnamed, len(unnamed), detail=detail)


def _check_image(target: CocoTarget, image_id: str) -> None:
    path = target.image_path(image_id)
    if not path.is_file():
        return
    size, stated = image_size(path), target.size(image_id)
    if size != stated:
        raise HubError(
            f"{path} is {size[0]} x {size[1]} pixels, the annotations say "
            f"{stated[0]} x {stated[1]}."
        )


def _mask(target: CocoTarget, image_id: str, split: str) -> np.ndarray:
    """All pixels of the mask; none if it is not there."""
    folder = target.mask_folder(split)
    if folder is not None and not (folder / f"{image_id}.png").is_file():
        return np.zeros(0, np.uint8)
    return target.read_mask(image_id, split).ravel()
