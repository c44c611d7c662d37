"""The label rules of the methods' own authors, beside Algorithm 1 (``pseudo_label``).

``oaa``, ``mcis``
    ``gen_gt.py`` of OAA-PyTorch (Jiang et al., ICCV 2019) and of MCIS_wsss (Sun et al., ECCV
    2020), one rule with other levels. The background scores ``1 - S``, a class its activation,
    stretched to [0, 1] in each map; scores below tau, the background's too, count as 0, and the
    highest wins. Ignored: pixels with two scores above the conflict level; background where
    ``S >= 32`` of 255 or an activation is above the high level; the whole image if fewer than 1 %
    of its pixels have a class.
``drs``
    ``pseudo_seg_label_gen.py`` of DRS (Kim, Han and Kim, AAAI 2021). Salient means above 50 of
    255, and scores of a class below tau (the code's alpha) count as 0. Ignored: pixels with three
    scores above 0.9, the background's 1 counted; salient ones without a class. With
    ``ignore=False`` it is the map on which the authors measure.
``edam``
    ``infer_cls.py`` and ``eval.py`` of EDAM (Wu et al., CVPR 2021). Salient means above
    ``100 * sal_threshold`` of 255 (theta; the code multiplies by 100). A salient pixel gets its
    best class if that is at least tau (alpha), any pixel the first class above beta. Nothing is
    ignored. Without saliency the background's score is the constant tau.

A class whose map is missing is none of ``class_ids`` and takes no part. Scores are compared in
float32, as the programs do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from wsssbed_hub.utils.errors import UsageError, did_you_mean

IGNORE = 255
RULES = ("paper", "release", "oaa", "mcis", "drs", "edam")
AUTHORS_RULES = ("oaa", "mcis", "drs", "edam")
CURVE_RULES = ("paper", "release", "drs", "edam")
"""Rules whose labels at all thresholds are found in one pass, see ``check_curve_rule``."""

DRS_SALIENT = 50
DRS_CONFLICT = 0.9
EDAM_BETA = 0.95


class Levels(NamedTuple):
    """The two levels in which OAA and MCIS differ: of a conflict, and of a certain object."""

    conflict: float
    high: float


LEVELS: Mapping[str, Levels] = MappingProxyType(
    {"oaa": Levels(0.9, 0.8), "mcis": Levels(0.99, 0.95)}
)
_SALIENT_ENOUGH = 32  # of 255: such a pixel is no certain background
_LEAST_SHARE = 0.01


def check_settings(tau: float, sal_threshold: float, rule: str) -> None:
    """Raises UsageError unless both numbers are in [0, 1] and the rule exists."""
    check_share("tau", tau)
    check_share("sal_threshold", sal_threshold)
    if rule not in RULES:
        raise UsageError(
            f"There is no rule {rule!r}.{did_you_mean(str(rule), RULES)} "
            f"Rules are {', '.join(RULES)}."
        )


def check_share(name: str, value: float) -> None:
    """Raises UsageError unless ``value`` is a number in [0, 1]."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"{name} is {value!r}; it must be a number from 0 to 1.")
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is {value}; it must be from 0 to 1 (grey value / 255).")


def check_rule(rule: str, *, saliency: bool, ignore: bool, beta: float) -> None:
    """Raises UsageError for a rule that cannot label so: without saliency, or without 255."""
    check_share("beta", beta)
    if rule in ("oaa", "mcis", "drs") and not saliency:
        raise UsageError(f"The rule {rule} needs saliency maps. Give some, or take the rule paper.")
    if rule in LEVELS and not ignore:
        raise UsageError(f"The rule {rule} always ignores pixels: what it ignores is the rule.")


def check_curve_rule(rule: str) -> None:
    """Raises UsageError for a rule whose labels at all thresholds cannot be had in one pass."""
    if rule not in CURVE_RULES:
        raise UsageError(
            f"There is no curve by the rule {rule}: it stretches each map to [0, 1], so that "
            "labels change between the 256 thresholds, and it ignores an image whole if too few "
            "of its pixels have a class. Label at each tau in question, and score the labels "
            "(wsssbed-hub eval labels)."
        )


def useless_settings(rule: str, *, saliency: bool) -> Iterator[tuple[Collection[str], str]]:
    """Names of settings that change nothing by ``rule``, and why, for the commands to refuse."""
    if not saliency:
        because = "Without --sal no saliency decides what is labelled or ignored"
        yield ["sal_threshold", "ignore", "beta"], because
        return
    if rule in LEVELS:
        because = f"By the rule {rule}, saliency is soft, and what is ignored is the rule's own"
        yield ["sal_threshold", "ignore"], because
    if rule == "drs":
        yield ["sal_threshold"], f"By the rule drs, salient means above {DRS_SALIENT} of 255"
    if rule == "edam":
        yield ["ignore"], "By the rule edam, nothing is ignored"
    else:
        yield ["beta"], "Only the rule edam has a beta"


def salient_above(rule: str, sal_threshold: float) -> float | None:
    """The ``sal_threshold`` in force: what is given, drs' own, or None for soft saliency."""
    if rule in LEVELS:
        return None
    return DRS_SALIENT / 255 if rule == "drs" else sal_threshold


def label_oaa(
    activations: np.ndarray,
    class_ids: np.ndarray,
    saliency: np.ndarray,
    *,
    tau: float = 0.3,
    levels: Levels = LEVELS["oaa"],
) -> np.ndarray:
    """The label uint8[H, W] by OAA's rule, or with MCIS' ``levels`` by theirs.

    ``activations``: uint8[K, H, W]; ``class_ids``: int[K], 0-based; ``saliency``: uint8[H, W].
    """
    order = np.argsort(class_ids)
    scores = np.empty((len(order) + 1, *saliency.shape), np.float32)
    scores[0] = 1 - saliency.astype(np.float32) / np.float32(255)
    uncertain = saliency >= _SALIENT_ENOUGH
    for row, one in zip(scores[1:], activations[order], strict=True):
        low, high = one.min(), one.max()
        stretched = (one - low) / (float(high - low) + 1e-8)
        uncertain |= stretched > levels.high
        row[:] = stretched
    scores[scores < np.float32(tau)] = 0
    label = _marks(class_ids)[scores.argmax(axis=0)]
    label[(scores > np.float32(levels.conflict)).sum(axis=0) > 1] = IGNORE
    label[(label == 0) & uncertain] = IGNORE
    if ((label > 0) & (label < IGNORE)).sum() / label.size < _LEAST_SHARE:
        label[:] = IGNORE
    return label


def label_drs(
    scores: np.ndarray,
    class_ids: np.ndarray,
    saliency: np.ndarray,
    *,
    tau: float = 0.2,
    ignore: bool = True,
) -> np.ndarray:
    """The label uint8[H, W] by DRS' rule.

    ``scores``: float32[K, H, W], grey values / 255; refined maps as the network gives them may be
    below 0 and above 1. ``class_ids``: int[K]; ``saliency``: uint8[H, W].
    """
    salient = saliency > DRS_SALIENT
    kept = np.maximum(scores[np.argsort(class_ids)], 0)
    kept[kept < np.float32(tau)] = 0
    stack = np.concatenate([1 - salient[None].astype(np.float32), kept])
    label = _marks(class_ids)[stack.argmax(axis=0)]
    if ignore:
        label[(stack > np.float32(DRS_CONFLICT)).sum(axis=0) > 2] = IGNORE
        label[(label == 0) & salient] = IGNORE
    return label


def label_edam(
    scores: np.ndarray,
    class_ids: np.ndarray,
    saliency: np.ndarray | None,
    *,
    tau: float,
    sal_threshold: float = 0.2,
    beta: float = EDAM_BETA,
) -> np.ndarray:
    """The label uint8[H, W] by EDAM's rule, which ignores nothing.

    ``scores``: float32[K, H, W], grey values / 255, or what a CRF made of them. ``class_ids``:
    int[K]; ``saliency``: uint8[H, W] or None. ``tau``, ``sal_threshold`` and ``beta`` are the
    code's alpha, theta and beta; without saliency ``tau`` is its theta.
    """
    kept = scores[np.argsort(class_ids)]
    if saliency is None:
        background = np.full(kept.shape[1:], tau, np.float32)
    else:
        background = (saliency <= sal_threshold * 100).astype(np.float32)
        kept = np.where(kept < np.float32(tau), np.float32(-2), kept)
        kept = np.where(kept > np.float32(beta), np.float32(2), kept)
    stack = np.concatenate([background[None], kept])
    return _marks(class_ids)[stack.argmax(axis=0)]


def _marks(class_ids: np.ndarray) -> np.ndarray:
    """uint8[K + 1]: what is written for the background and for the classes in ascending order."""
    return np.array([0, *(np.sort(class_ids) + 1)], np.uint8)
