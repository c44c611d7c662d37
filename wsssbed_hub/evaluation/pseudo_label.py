"""Pseudo labels from activation maps and a saliency map: Algorithm 1 of WSSS-BED.

Paper: "Rethinking Saliency-Guided Weakly-Supervised Semantic Segmentation" (arXiv 2404.00918),
Section 2.4. The paper and the program that its authors published decide some pixels differently;
the choice is called ``rule``:

``paper``
    Algorithm 1 to the letter: a class needs ``A > tau``. Compared in float64, so that tau = 0.2 is
    exactly grey value 51. The paper has no soft saliency; with ``sal_threshold=0`` the comparison
    ``A > 1 - S`` is made without any rounding: the grey values must add up to more than 255.
``release``
    The published program: with saliency ``A >= tau`` is enough, without saliency it takes
    ``A > tau``. Compared in float32, and ``1 - S`` of the soft saliency is rounded to float32,
    which moves pixels whose two grey values add up to 255.

The rules of the methods' own authors (``oaa``, ``mcis``, ``drs``, ``edam``) are in
``wsssbed_hub.evaluation.method_rules``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wsssbed_hub.evaluation.method_rules import (
    EDAM_BETA,
    LEVELS,
    check_rule,
    check_settings,
    label_drs,
    label_edam,
    label_oaa,
)
from wsssbed_hub.evaluation.method_rules import IGNORE as IGNORE  # part of this module's names
from wsssbed_hub.utils.errors import HubError

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule

MAX_CLASS_ID = IGNORE - 2  # class id c is written as c + 1, and 255 is taken


def pseudo_label(
    activations: np.ndarray,
    class_ids: np.ndarray,
    saliency: np.ndarray | None,
    tau: float,
    *,
    sal_threshold: float = 0.2,
    rule: Rule = "paper",
    ignore: bool = True,
    beta: float = EDAM_BETA,
) -> np.ndarray:
    """The pseudo label of one image.

    ``activations``: uint8[K, H, W], one map for each class that is present; 0..255 stands for
    [0, 1]. ``class_ids``: int[K], 0-based, background not counted, in any order, at most 253.
    ``saliency``: uint8[H, W], or None for labels without saliency (EPS, L2G). ``tau`` and
    ``sal_threshold`` are in [0, 1]. Result: uint8[H, W], 0 background, ``c + 1`` class, 255 ignore.

    A pixel is salient if its saliency is above ``sal_threshold`` (strictly). A salient pixel gets
    the class with the highest activation (of equal ones the lowest class) if that exceeds tau,
    else 255, or 0 with ``ignore=False``; any other pixel gets 0. Without saliency the class needs
    to exceed tau, else 0: nothing is ignored. ``sal_threshold=0`` keeps the saliency soft, as the
    release can: the class must also exceed ``1 - S``, and what fails with ``S > 0`` is ignored.
    ``rule`` decides about equality and precision, see the module. The other rules label as
    ``method_rules`` says: ``tau`` is the score below which a class counts as 0; ``oaa``, ``mcis``
    and ``drs`` take saliency maps alone and their own idea of salient; ``ignore`` is for ``drs``
    as here, for ``oaa`` and ``mcis`` always, for ``edam`` never; ``beta`` is edam's alone.

    Raises UsageError for the settings, HubError for the arrays.
    """
    check_settings(tau, sal_threshold, rule)
    check_rule(rule, saliency=saliency is not None, ignore=ignore, beta=beta)
    check_inputs(activations, class_ids, saliency)
    if rule not in ("paper", "release"):
        how = {"tau": tau, "sal_threshold": sal_threshold, "beta": beta}
        return _by_authors_rule(activations, class_ids, saliency, rule, ignore=ignore, **how)
    label, values = winners(activations, class_ids, np.asarray(class_ids) + 1)
    labelled = values >= first_label_value(tau, rule=rule, saliency=saliency is not None)
    if saliency is None:
        label *= labelled
        return label
    gate = saliency_gate(values, saliency, sal_threshold, rule)
    labelled &= gate.eligible
    label *= labelled
    if ignore:
        # What is labelled is salient too, so "salient and not labelled" is an exclusive or.
        label |= (labelled ^ gate.salient) * np.uint8(IGNORE)
    return label


def _by_authors_rule(
    activations: np.ndarray,
    class_ids: np.ndarray,
    saliency: np.ndarray | None,
    rule: str,
    *,
    tau: float,
    ignore: bool,
    **of_edam: float,
) -> np.ndarray:
    if rule == "edam":
        return label_edam(scores_of(activations), class_ids, saliency, tau=tau, **of_edam)
    assert saliency is not None  # see check_rule
    if rule == "drs":
        return label_drs(scores_of(activations), class_ids, saliency, tau=tau, ignore=ignore)
    return label_oaa(activations, class_ids, saliency, tau=tau, levels=LEVELS[rule])


def check_inputs(
    activations: np.ndarray, class_ids: np.ndarray, saliency: np.ndarray | None
) -> None:
    """Raises HubError unless the maps of one image agree with each other."""
    if activations.dtype != np.uint8 or activations.ndim != 3:
        raise HubError(
            "Activations must be uint8[K, H, W], one map for each class, not "
            f"{activations.dtype}{list(activations.shape)}."
        )
    ids = np.asarray(class_ids)
    if ids.ndim != 1 or len(ids) != len(activations):
        raise HubError(
            f"{len(activations)} activation maps need as many class ids, in one row; these have "
            f"shape {list(ids.shape)}."
        )
    if len(ids):  # an empty list has no dtype of its own
        _check_class_ids(ids)
    if saliency is None:
        return
    if saliency.dtype != np.uint8 or saliency.ndim != 2:
        raise HubError(f"Saliency must be uint8[H, W], not {saliency.dtype}{list(saliency.shape)}.")
    if saliency.shape != activations.shape[1:]:
        raise HubError(
            f"The saliency map is {dimensions(saliency)} and the activation maps are "
            f"{dimensions(activations)} (height x width). Both must have the size of the image."
        )


def _check_class_ids(ids: np.ndarray) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise HubError(f"Class ids must be integers, not {ids.dtype}.")
    if ids.min() < 0 or ids.max() > MAX_CLASS_ID:
        raise HubError(
            f"Class ids must be from 0 to {MAX_CLASS_ID}, background not counted; these are "
            f"{ids.tolist()}."
        )
    if len(np.unique(ids)) != len(ids):
        raise HubError(f"A class id is given twice: {ids.tolist()}.")


def dimensions(maps: np.ndarray) -> str:
    """Height x width of a map or a stack of maps, for messages."""
    return f"{maps.shape[-2]}x{maps.shape[-1]}"


def winners(
    activations: np.ndarray, class_ids: np.ndarray, marks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """At each pixel the mark of the class with the highest activation, and that activation.

    ``marks``: int[K], what to write for each class, 1..255. Of equal activations the lowest class
    id wins. Both results are uint8[H, W]. Without classes the value is 0 everywhere, which no
    threshold lets pass, and the mark is 1.
    """
    if len(activations) == 0:
        shape = activations.shape[1:]
        return np.ones(shape, np.uint8), np.zeros(shape, np.uint8)
    first, *others = np.argsort(class_ids)
    values = activations[first].copy()
    label = np.full(values.shape, marks[first], np.uint8)
    for other in others:
        better = activations[other] > values
        # Replaces where better; modulo 256 this is exact, and many times as fast as a masked copy.
        label += (np.uint8(marks[other]) - label) * better
        np.maximum(values, activations[other], out=values)
    return label, values


def first_label_value(tau: float, *, rule: str, saliency: bool) -> int:
    """The lowest grey value, 1..256, that gets a class at ``tau``; 256 says that none does.

    Grey value 0 never does: with saliency it ties with the background's score of 0, without
    saliency it does not exceed tau. All rules but the paper's compare as the release does; those
    of OAA and MCIS compare no grey values.
    """
    grey = np.arange(256)
    if rule == "paper":
        passes = grey / 255 > tau
    else:
        scores, limit = _float32_scores(), np.float32(tau)
        passes = scores >= limit if saliency else scores > limit
    return max(1, 256 - int(passes.sum()))


class Gate(NamedTuple):
    """Where saliency lets a class through, and where a pixel without a class is ignored."""

    eligible: np.ndarray  # bool[H, W]
    salient: np.ndarray  # bool[H, W], contains ``eligible``


def saliency_gate(
    values: np.ndarray, saliency: np.ndarray, sal_threshold: float, rule: str
) -> Gate:
    """Pixels that saliency lets through, given the highest activation at each (uint8[H, W])."""
    if sal_threshold == 0:
        return Gate(values > np.take(_soft_bars(rule), saliency), saliency > 0)
    if rule == "paper":
        passes = np.arange(256) / 255 > sal_threshold
    else:
        passes = _float32_scores() > np.float32(sal_threshold)
    salient = saliency >= 256 - int(passes.sum())
    return Gate(salient, salient)


@lru_cache(maxsize=2)
def _soft_bars(rule: str) -> np.ndarray:
    """uint8[256]: for each saliency value the highest activation that does not exceed 1 - S."""
    if rule == "paper":
        return np.arange(255, -1, -1, dtype=np.uint8)
    scores = _float32_scores()
    exceeds = scores[:, None] > np.float32(1) - scores[None, :]  # activation, saliency
    return (255 - exceeds.sum(axis=0)).astype(np.uint8)


def scores_of(grey: np.ndarray) -> np.ndarray:
    """float32 scores in [0, 1] of grey values uint8."""
    return grey.astype(np.float32) / np.float32(255)


def _float32_scores() -> np.ndarray:
    return scores_of(np.arange(256, dtype=np.uint8))
