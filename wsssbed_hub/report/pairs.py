"""Did better saliency give better labels and better segmentation? Pairs of rows, number by number.

Rows are compared two by two, within one activation map and only where the numbers were measured on
the same thing (equal Basis). One saliency map is better than another if MAE, max F and S-measure
do not contradict each other about it. Numbers that print the same are tied; so are segmentation
results that differ by at most two standard errors of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from wsssbed_hub.report.data import ResultRow, SegmentationScore
from wsssbed_hub.report.notes import TAU_WORDS

Verdict = Literal["yes", "in part", "no", "cannot tell"]
DECIMALS = 3  # of MAE, max F and S-measure, and of mIoU as a fraction: what the tables print
ERRORS_APART = 2.0
MOST_REASONS = 6  # lines about pairs that are not compared
SALIENCY = (("MAE", "mae", -1), ("max F", "max_f", 1), ("S", "s_measure", 1))
"""Title, field, and 1 if higher is better."""
OUTCOMES = (
    ("fixed", "miou_ignored_missed"),
    ("best", "miou_ignored_missed"),
    ("segmentation", "miou"),
)
"""Part of a row and field, of labels at the fixed and at the best tau, and of a network."""


class Compared(NamedTuple):
    """A number of the row with the better saliency map, that of the other, and 1 if the first is
    better, -1 if it is worse, 0 if they are tied."""

    better: float
    worse: float
    sign: int


class MapPair(NamedTuple):
    """Two rows, the one with the better saliency map first, and what came of it."""

    better: ResultRow
    worse: ResultRow
    saliency: tuple[Compared | None, ...]
    """As SALIENCY; None where a number is missing."""
    outcomes: tuple[Compared | None, ...]
    """As OUTCOMES; None where a number is missing or was measured on something else."""


@dataclass(frozen=True)
class Finding:
    """The pairs, the verdict on them in a word and as a sentence, and remarks on their limits."""

    verdict: Verdict
    sentence: str
    pairs: tuple[MapPair, ...] = ()
    remarks: tuple[str, ...] = ()


def find(rows: Sequence[ResultRow]) -> Finding:
    """The finding of a results table; works for any number of rows and any missing number."""
    measured = [row for row in rows if row.role == "saliency" and row.saliency is not None]
    candidates = [two for two in combinations(measured, 2) if len({r.activations for r in two}) < 2]
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
            remarks=tuple(left_out),
        )
    signs = [[c.sign for pair in pairs if (c := pair.outcomes[n])] for n in range(len(OUTCOMES))]
    sentence = _sentence(signs, fixed_words(rows))
    return Finding(_verdict(signs), sentence, tuple(pairs), (*_doubts(pairs), *left_out))


def fixed_words(rows: Sequence[ResultRow]) -> str:
    """The tau that was not read off a curve: ``published tau``, ``given tau`` or both."""
    origins = {row.fixed.threshold.origin for row in rows if row.fixed is not None}
    words = [TAU_WORDS[word] for word in ("published", "authors", "given") if word in origins]
    words = words or ["published"]
    return " or ".join(words) + " tau"


def _ordered(candidates: Sequence[tuple[ResultRow, ...]]) -> tuple[list[MapPair], list[str]]:
    """The pairs with a better saliency map, and why the others are left out."""
    pairs, reasons = [], []
    for one, other in candidates:
        signs = {c.sign for c in _saliency(one, other) if c is not None}
        if 1 in signs and -1 not in signs:
            pairs.append(_pair(one, other))
        elif -1 in signs and 1 not in signs:
            pairs.append(_pair(other, one))
        else:
            why = _why(one, other, signs)
            reasons.append(f"{one.name} and {other.name} are not compared: {why}.")
    reasons = list(dict.fromkeys(reasons))  # the same pair may stand with several activation maps
    more = len(reasons) - MOST_REASONS
    return pairs, reasons[:MOST_REASONS] + ([f"Nor are {more} more pairs."] if more > 0 else [])


def _why(one: ResultRow, other: ResultRow, signs: set[int]) -> str:
    if {1, -1} <= signs:
        return "MAE, max F and S-measure disagree on which saliency map is better"
    if signs:
        return "their saliency maps are equally good"
    if one.saliency and other.saliency and one.saliency.basis != other.saliency.basis:
        return "their saliency maps were measured on different images"
    return "no measure of saliency is known of both"


def _pair(better: ResultRow, worse: ResultRow) -> MapPair:
    outcomes = tuple(_outcome(better, worse, part, field) for part, field in OUTCOMES)
    return MapPair(better, worse, _saliency(better, worse), outcomes)


def _saliency(one: ResultRow, other: ResultRow) -> tuple[Compared | None, ...]:
    mine, its = one.saliency, other.saliency
    if mine is None or its is None or mine.basis != its.basis:
        return (None,) * len(SALIENCY)
    return tuple(
        _compare(getattr(mine, field), getattr(its, field), direction)
        for _, field, direction in SALIENCY
    )


def _outcome(better: ResultRow, worse: ResultRow, part: str, field: str) -> Compared | None:
    one, other = getattr(better, part), getattr(worse, part)
    if one is None or other is None or one.basis != other.basis:
        return None
    compared = _compare(getattr(one, field), getattr(other, field))
    if compared is None or not isinstance(one, SegmentationScore):
        return compared
    if _origin(one) != _origin(other):  # one network learnt from labels at the best tau
        return None
    if one.standard_error is not None and other.standard_error is not None:
        error = math.hypot(one.standard_error, other.standard_error)
        if abs(compared.better - compared.worse) <= ERRORS_APART * error:
            return compared._replace(sign=0)
    return compared


def _origin(score: SegmentationScore) -> str:
    return score.threshold.origin if score.threshold else ""


def _compare(one: float | None, other: float | None, direction: int = 1) -> Compared | None:
    if one is None or other is None:
        return None
    difference = direction * (round(one, DECIMALS) - round(other, DECIMALS))
    return Compared(one, other, (difference > 0) - (difference < 0))


def _verdict(signs: Sequence[Sequence[int]]) -> Verdict:
    """Yes if all labels and all segmentation are better, no if nothing is."""
    *labels, segmentation = signs
    known = {sign for of_outcome in signs for sign in of_outcome}
    if not known:
        return "cannot tell"
    if known == {1} and any(labels) and segmentation:
        return "yes"
    return "in part" if 1 in known else "no"


def _sentence(signs: Sequence[Sequence[int]], tau: str) -> str:
    """How often better saliency gave better labels and better segmentation."""
    what = (f"labels at the {tau}", "labels at the best tau", "segmentation")
    parts = [_gave(name, found) for name, found in zip(what, signs, strict=True) if found]
    if not parts:
        return (
            "There are no labels and no segmentation to compare, so this run cannot tell whether "
            "better saliency gives better ones."
        )
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    missing = "" if signs[-1] else " There are no segmentation results to compare."
    return f"Better saliency gave {listed}.{missing}"


def _gave(what: str, signs: Sequence[int]) -> str:
    """``worse segmentation`` of one pair, ``better segmentation in 2 of 3 pairs`` of several."""
    if len(signs) == 1:
        return f"{('equally good', 'better', 'worse')[signs[0]]} {what}"
    tied = f" ({signs.count(0)} too close to tell)" if 0 in signs else ""
    return f"better {what} in {signs.count(1)} of {len(signs)} pairs{tied}"


def _doubts(pairs: Sequence[MapPair]) -> Iterator[str]:
    """Objections of a careful reader."""
    turned = sum(map(_turns, pairs))
    if turned:
        yield (
            f"In {turned} of {len(pairs)} pairs the order of the labels at the best tau turns "
            "around if only labelled pixels count; see their coverage."
        )
    measured = [pair for pair in pairs if pair.outcomes[-1] is not None]
    rows = [row for pair in measured for row in (pair.better, pair.worse)]
    if any(row.segmentation and row.segmentation.standard_error is None for row in rows):
        yield "Segmentation was trained with one seed, so the spread between seeds is not known."
    elif any(pair.outcomes[-1] and not pair.outcomes[-1].sign for pair in measured):
        yield "Segmentation differs by at most two standard errors where it is tied."


def _turns(pair: MapPair) -> bool:
    fields = ("miou", "miou_ignored_missed")
    one, other = (_outcome(pair.better, pair.worse, "best", field) for field in fields)
    return one is not None and other is not None and one.sign * other.sign < 0
