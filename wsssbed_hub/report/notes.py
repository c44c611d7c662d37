"""Footnotes of the results: what the numbers mean and what they were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

from wsssbed_hub.report.data import (
    Basis,
    OwnLabelScore,
    Report,
    ResultRow,
    SaliencyScore,
    SegmentationScore,
)

TAU_WORDS = {"curve": "best", "published": "published", "authors": "authors'", "given": "given"}
_GROUPS = {
    "saliency": ("saliency",),
    "labels": ("fixed", "best"),
    "own": ("own",),
    "segmentation": ("segmentation",),
}
GROUP_OF = {part: group for group, parts in _GROUPS.items() for part in parts}


class Notes:
    """One note for each group of columns. It says what the numbers were measured on if that is one
    thing for all rows; otherwise each cell has a note of its own for that.

    ``texts``: (mark, text) of all notes that were asked for, in the order of their marks.
    """

    def __init__(self, report: Report) -> None:
        self._rows = report.rows
        self._classes = len(report.classes)
        self._marks: dict[str, str] = {}
        self._measured = {group: self._distinct(group) for group in _GROUPS}

    @property
    def texts(self) -> list[tuple[str, str]]:
        return [(mark, text) for text, mark in self._marks.items()]

    def of_group(self, part: str) -> str:
        """The mark at the heading of the columns that show ``part`` of a row."""
        group = GROUP_OF[part]
        measured = self._measured[group]
        if group == "saliency":
            text = "Mean absolute error, maximum F-measure (β² = 0.3), S-measure, as fractions."
        elif group == "labels":
            text = self._labels()
        elif group == "own":
            text = "Labels that were made elsewhere, as they are, against the ground truth."
        else:
            text = "Mean intersection over union" + _trained_on(self._rows)
        return self._mark(f"{text} {measured[0]}" if len(measured) == 1 else text)

    def of_cell(self, part: str, row: ResultRow) -> str:
        """The mark at one number, empty where the group's note says it all."""
        if len(self._measured[GROUP_OF[part]]) == 1:
            return ""
        return self._mark(_measured(getattr(row, part)))

    def _distinct(self, group: str) -> list[str]:
        scores = [getattr(row, part) for part in _GROUPS[group] for row in self._rows]
        return list(dict.fromkeys(_measured(score) for score in scores if score is not None))

    def _mark(self, text: str) -> str:
        count = len(self._marks)
        letter = ascii_lowercase[count % 26] * (1 + count // 26)
        return self._marks.setdefault(text, letter)

    def _labels(self) -> str:
        count = f"the {self._classes} classes and background" if self._classes else "all classes"
        text = (
            f"Mean intersection over union of {count}. mIoU counts ignored pixels as misses, "
            "“labelled” leaves them out, coverage is the share of pixels that are not ignored."
        )
        scores = [row.best for row in self._rows if row.best is not None]
        if scores and all(score.threshold.split == score.basis.split for score in scores):
            text += (
                " The best tau has the highest mIoU on this very ground truth: an upper bound, "
                "not a setting known beforehand."
            )
        elif scores:
            splits = {score.threshold.split or score.basis.split for score in scores}
            text += f" The best tau was read off the ground truth of {', '.join(sorted(splits))}."
        return text


def short_digest(digest: str) -> str:
    """``sha256:0123456789ab``: enough to tell two apart by eye."""
    name, _, value = digest.partition(":")
    return f"{name}:{value[:12]}"


def _trained_on(rows: Sequence[ResultRow]) -> str:
    """On labels at which tau segmentation was trained, where that is known."""
    taus = {
        row.name: row.segmentation.threshold
        for row in rows
        if row.segmentation and row.segmentation.threshold
    }
    origins = {threshold.origin for threshold in taus.values()}
    if not origins:
        return "."
    if len(origins) == 1:
        return f" of a network trained on the labels at the {TAU_WORDS[origins.pop()]} tau."
    each = "; ".join(f"{name} {t.tau:.3f} ({TAU_WORDS[t.origin]})" for name, t in taus.items())
    return f" of a network trained on the labels at tau: {each}."


def _measured(score: SaliencyScore | OwnLabelScore | SegmentationScore) -> str:
    seeds = ""
    if isinstance(score, SegmentationScore) and score.seeds:
        listed = ", ".join(map(str, score.seeds))
        seeds = f"One seed ({listed}), so no standard error. "
        if len(score.seeds) > 1:
            seeds = f"Mean ± standard error over {len(score.seeds)} seeds ({listed}). "
    return seeds + _measured_on(score.basis)


def _measured_on(basis: Basis) -> str:
    images = "1 image" if basis.images == 1 else f"{basis.images:,} images"
    digest = f", list {short_digest(basis.image_list)}" if basis.image_list else ""
    details = "".join(f"; {name}: {value}" for name, value in basis.details.items())
    return f"Measured on {basis.split} ({images}{digest}){details}."
