"""The labels of one image at all thresholds, for the rules drs and edam: spans of tau.

As tau rises a pixel's label changes a few times: ignored because of a conflict, then a class, then
background. Each step is a column (0 background, 1..K the image's classes in ascending order, K + 1
ignored) and the last level, 0..256, at which it holds: a level is the lowest grey value that is
above tau, see ``first_label_value``. Spans come in order; a pixel whose last level is not above
that of the span before is in none of this span.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from wsssbed_hub.evaluation.method_rules import DRS_CONFLICT, DRS_SALIENT
from wsssbed_hub.evaluation.pseudo_label import scores_of, winners

ALWAYS = 256


class Span(NamedTuple):
    """What pixels are labelled: column, int or uint8[H, W], up to and with level uint16[H, W]."""

    column: np.ndarray | int
    until: np.ndarray | int


def drs_spans(
    activations: np.ndarray, class_ids: np.ndarray, saliency: np.ndarray
) -> Iterator[Span]:
    """The label of each pixel by DRS' rule: a conflict, the winner, or nothing.

    Maps as ``check_inputs`` wants them.
    """
    salient = saliency > DRS_SALIENT
    winner, value = _winners(activations, class_ids)
    ignored = len(class_ids) + 1
    # Beside the background's score of 1 two classes make a conflict, else three.
    crowd = np.zeros((3, *saliency.shape), np.uint8)
    highest = np.sort(activations, axis=0)[::-1][:3]
    crowd[: len(highest)] = highest
    deciding = np.where(salient, crowd[2], crowd[1])
    yield Span(ignored, np.where(deciding >= _first_above(DRS_CONFLICT), deciding, 0))
    yield Span(winner * salient, np.where(salient, value, np.uint16(ALWAYS)))
    yield Span(ignored, ALWAYS)


def edam_spans(
    activations: np.ndarray,
    class_ids: np.ndarray,
    saliency: np.ndarray,
    sal_threshold: float,
    beta: float,
) -> Iterator[Span]:
    """The label of each pixel by EDAM's rule: a class above beta, the winner, or background.

    Maps as ``check_inputs`` wants them.
    """
    winner, value = _winners(activations, class_ids)
    first = _first_above(beta)
    for column, index in enumerate(np.argsort(class_ids), 1):
        one = activations[index]
        yield Span(column, np.where(one >= first, one, 0))
    yield Span(winner, np.where(saliency > sal_threshold * 100, value, 0))
    yield Span(0, ALWAYS)


def _winners(activations: np.ndarray, class_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return winners(activations, class_ids, np.argsort(np.argsort(class_ids)) + 1)


def _first_above(score: float) -> int:
    """The lowest grey value, 1..256, whose score is above ``score``."""
    above = scores_of(np.arange(256, dtype=np.uint8)) > np.float32(score)
    return 256 - int(above.sum())
