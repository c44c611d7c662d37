"""Did better saliency give better labels and better segmentation? Said from the numbers alone.

Rows are compared two by two, within one activation map and only where the numbers were measured on
the same thing (equal Basis). One saliency map is better than another if MAE, max F and S-measure
do not contradict each other about it. Numbers that print the same are tied; so are segmentation
results that differ by at most two standard errors of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from wsssbed_hub.report.data import LabelScore, Row, SegmentationScore

Verdict = Literal["yes", "in part", "no", "cannot tell"]
DECIMALS = 3  # of MAE, max F and S-measure, and of mIoU as a fraction: what the tables print
ERRORS_APART = 2.0
NOTHING_MADE = (
    "There are no labels and no segmentation to compare, so this run cannot tell whether better "
    "saliency gives better ones."
)
MOST_REASONS = 6  # lines about pairs that are not compared


@dataclass(frozen=True)
class Finding:
    """``verdict`` in a word, the same as a sentence, and the numbers and limits behind it."""

    verdict: Verdict
    sentence: str
    details: tuple[str, ...] = ()


class Pair(NamedTuple):
    """Two rows, the one with the better saliency map first."""

    better: Row
    worse: Row


@dataclass(frozen=True)
class Count:
    """In how many pairs the better saliency gave the better, the worse, or no different result."""

    better: int = 0
    worse: int = 0
    tied: int = 0

    @property
    def pairs(self) -> int:
        return self.better + self.worse + self.tied

    @property
    def word(self) -> str:
        """``better``, ``worse``, ``tied`` where all pairs agree, else ``mixed``; ``""`` of none."""
        for word in ("better", "worse", "tied"):
            if self.pairs and getattr(self, word) == self.pairs:
                return word
        return "mixed" if self.pairs else ""


def find(rows: Sequence[Row]) -> Finding:
    """The finding of a results table; works for any number of rows and any missing number."""
    measured = [row for row in rows if row.role == "saliency" and row.saliency is not None]
    candidates = [
        pair for pair in combinations(measured, 2) if pair[0].activations == pair[1].activations
    ]
    if not candidates:
        return Finding(
            "cannot tell",
            "Two saliency maps of measured quality are needed to tell whether better saliency "
            "gives better labels; this run has fewer.",
        )
    pairs, left_out = _ordered(candidates)
    if not pairs:
        return Finding(
            "cannot tell",
            "No two saliency maps of this run differ clearly in quality, so it cannot tell "
            "whether better saliency gives better labels.",
            tuple(left_out),
        )
    counts = [_count(pairs, compare) for compare in (compare_fixed, compare_best, compare_seg)]
    tau = fixed_words(rows)
    sentence = _one(counts, tau) if len(pairs) == 1 else _many(counts, tau)
    details = [*_numbers(pairs, tau), *_doubts(pairs), *left_out]
    return Finding(_verdict(counts), sentence, tuple(details))


def fixed_words(rows: Sequence[Row]) -> str:
    """What the tau is that was not read off a curve: ``published tau``, ``given tau`` or both."""
    origins = {row.fixed.threshold.origin for row in rows if row.fixed is not None}
    words = [word for word in ("published", "given") if word in origins] or ["published"]
    return " or ".join(words) + " tau"


def order_saliency(one: Row, other: Row) -> int | None:
    """1 if ``one`` has the better saliency map, -1 if ``other``, 0 if they tie.

    None if the measures contradict each other, none is known of both, or the basis differs.
    """
    signs = _saliency_signs(one, other)
    if not signs or {1, -1} <= signs:
        return None
    return 1 if 1 in signs else -1 if -1 in signs else 0


def _saliency_signs(one: Row, other: Row) -> set[int]:
    """The sign of each measure that is known of both on the same images, 1 where ``one`` wins."""
    mine, its = one.saliency, other.saliency
    if mine is None or its is None or mine.basis != its.basis:
        return set()
    signs = (
        _sign(its.mae, mine.mae),
        _sign(mine.max_f, its.max_f),
        _sign(mine.s_measure, its.s_measure),
    )
    return {sign for sign in signs if sign is not None}


def compare_fixed(pair: Pair) -> int | None:
    """Sign of the difference in label mIoU at the published or given tau."""
    return _compare_labels(pair.better.fixed, pair.worse.fixed)


def compare_best(pair: Pair) -> int | None:
    """Sign of the difference in label mIoU at the best tau of each."""
    return _compare_labels(pair.better.best, pair.worse.best)


def compare_seg(pair: Pair) -> int | None:
    """Sign of the difference in segmentation mIoU; 0 within two standard errors of it.

    None also if one was trained on labels at the best tau and the other was not.
    """
    one, other = pair.better.segmentation, pair.worse.segmentation
    if one is None or other is None or one.basis != other.basis:
        return None
    if _origin(one) != _origin(other):
        return None
    sign = _sign(one.miou, other.miou)
    if sign is None or one.miou is None or other.miou is None:
        return None
    if one.standard_error is not None and other.standard_error is not None:
        error = math.hypot(one.standard_error, other.standard_error)
        if abs(one.miou - other.miou) <= ERRORS_APART * error:
            return 0
    return sign


def _origin(score: SegmentationScore) -> str:
    return score.threshold.origin if score.threshold else ""


def _sign(one: float | None, other: float | None) -> int | None:
    if one is None or other is None:
        return None
    difference = round(one, DECIMALS) - round(other, DECIMALS)
    return (difference > 0) - (difference < 0)


def _compare_labels(one: LabelScore | None, other: LabelScore | None) -> int | None:
    if one is None or other is None or one.basis != other.basis:
        return None
    return _sign(one.miou_ignored_missed, other.miou_ignored_missed)


def _ordered(candidates: Sequence[tuple[Row, Row]]) -> tuple[list[Pair], list[str]]:
    """The pairs with a better saliency map, and why the others are left out."""
    pairs, reasons = [], []
    for one, other in candidates:
        order = order_saliency(one, other)
        if order:
            pairs.append(Pair(one, other) if order > 0 else Pair(other, one))
            continue
        reasons.append(f"{one.name} and {other.name} are not compared: {_why(one, other)}.")
    reasons = list(dict.fromkeys(reasons))  # the same pair may stand with several activation maps
    more = len(reasons) - MOST_REASONS
    return pairs, reasons[:MOST_REASONS] + ([f"Nor are {more} more pairs."] if more > 0 else [])


def _why(one: Row, other: Row) -> str:
    """Why two rows have no better saliency map."""
    signs = _saliency_signs(one, other)
    if {1, -1} <= signs:
        return "MAE, max F and S-measure disagree on which saliency map is better"
    if signs:
        return "their saliency maps are equally good"
    if one.saliency and other.saliency and one.saliency.basis != other.saliency.basis:
        return "their saliency maps were measured on different images"
    return "no measure of saliency is known of both"


def _count(pairs: Sequence[Pair], compare: Callable[[Pair], int | None]) -> Count:
    signs = [compare(pair) for pair in pairs]
    return Count(signs.count(1), signs.count(-1), signs.count(0))


def _verdict(counts: Sequence[Count]) -> Verdict:
    fixed, best, segmentation = (count.word for count in counts)
    words = {fixed, best, segmentation} - {""}
    if not words:
        return "cannot tell"
    if words == {"better"} and (fixed or best) and segmentation:
        return "yes"
    return "in part" if words & {"better", "mixed"} else "no"


def _one(counts: Sequence[Count], tau: str) -> str:
    """The sentence for one pair."""
    fixed, best, segmentation = (count.word for count in counts)
    labels = _labels_of_one(fixed, best, tau)
    nouns = {
        "better": "better segmentation",
        "worse": "worse segmentation",
        "tied": "no clearly different segmentation",
    }
    seg = nouns.get(segmentation, "")
    if not labels and not seg:
        return NOTHING_MADE
    if not labels or not seg:
        missing = "segmentation" if labels else "label"
        return (
            f"Better saliency gave {labels or seg} in this run. There are no {missing} results to "
            "compare."
        )
    joint = "and" if ({fixed, best} - {""} == {"better"}) == (segmentation == "better") else "but"
    return f"Better saliency gave {labels} {joint} {seg} in this run."


def _labels_of_one(fixed: str, best: str, tau: str) -> str:
    nouns = {"better": "better labels", "worse": "worse labels", "tied": "equally good labels"}
    if fixed == best:
        return nouns.get(fixed, "")
    if not fixed or not best:
        where = f"at the {tau}" if fixed else "at the best tau"
        return f"{nouns[fixed or best]} {where}"
    return f"{nouns[fixed]} at the {tau} and {nouns[best].replace(' labels', ' ones')} at the best"


def _many(counts: Sequence[Count], tau: str) -> str:
    """The sentence for several pairs: how often it was so."""
    parts = [
        f"better {what} in {count.better} of {count.pairs} comparisons"
        + (f" ({count.tied} too close to tell)" if count.tied else "")
        for count, what in zip(
            counts,
            (f"labels at the {tau}", "labels at the best tau", "segmentation"),
            strict=True,
        )
        if count.pairs
    ]
    if not parts:
        return NOTHING_MADE
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    missing = "" if counts[2].pairs else " There are no segmentation results to compare."
    return f"Better saliency gave {listed}.{missing}"


def _numbers(pairs: Sequence[Pair], tau: str) -> list[str]:
    """The numbers of a single pair in words; several pairs are better read in the table."""
    if len(pairs) > 1:
        return []
    better, worse = pairs[0]
    parts = []
    if better.saliency and worse.saliency:
        for name, field in (("MAE", "mae"), ("max F", "max_f"), ("S-measure", "s_measure")):
            one, other = getattr(better.saliency, field), getattr(worse.saliency, field)
            if one is not None and other is not None:
                parts.append(f"{name} {one:.3f} against {other:.3f}")
    for name, compare, part, field in (
        (f"label mIoU at the {tau}", compare_fixed, "fixed", "miou_ignored_missed"),
        ("label mIoU at the best tau", compare_best, "best", "miou_ignored_missed"),
        ("segmentation mIoU", compare_seg, "segmentation", "miou"),
    ):
        if compare(pairs[0]) is not None:
            one, other = (getattr(getattr(row, part), field) for row in pairs[0])
            parts.append(f"{name} {100 * one:.1f} against {100 * other:.1f} %")
    return [f"{better.name} against {worse.name}: {'; '.join(parts)}."]


def _doubts(pairs: Sequence[Pair]) -> list[str]:
    """What a careful reader would object."""
    doubts = []
    turned = [pair for pair in pairs if _turns(pair)]
    if turned:
        many = f"In {len(turned)} of {len(pairs)} comparisons this" if len(pairs) > 1 else "This"
        doubts.append(
            f"{many} turns around for the labels at the best tau if only labelled pixels count; "
            "see their coverage."
        )
    measured = [pair for pair in pairs if compare_seg(pair) is not None]
    single = [p for p in measured if any(_lone(row) for row in p)]
    if single:
        doubts.append(
            "Segmentation was trained with one seed, so the spread between seeds is not known."
        )
    elif any(compare_seg(pair) == 0 for pair in measured):
        doubts.append("Segmentation differs by at most two standard errors where it is tied.")
    return doubts


def _lone(row: Row) -> bool:
    return row.segmentation is not None and row.segmentation.standard_error is None


def _turns(pair: Pair) -> bool:
    one, other = pair.better.best, pair.worse.best
    if one is None or other is None or one.basis != other.basis:
        return False
    partly = _sign(one.miou, other.miou)
    wholly = _sign(one.miou_ignored_missed, other.miou_ignored_missed)
    return partly is not None and wholly is not None and partly * wholly < 0
