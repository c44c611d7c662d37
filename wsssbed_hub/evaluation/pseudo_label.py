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
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule

IGNORE = 255
MAX_CLASS_ID = IGNORE - 2  # class id c is written as c + 1, and 255 is taken
RULES = ("paper", "release")


@dataclass(frozen=True)
class PublishedThreshold:
    """How a method's labels are made: its tau, and whether saliency maps take part."""

    tau: float
    saliency: bool


# Table 6 of the WSSS-BED paper, on VOC 2012; the release's scripts for COCO 2014 (of CAM, DRS, EPS
# and L2G) have the same. EPS and L2G already learnt from saliency maps (Section 3.2).
PUBLISHED: Mapping[str, PublishedThreshold] = MappingProxyType(
    {
        "cam": PublishedThreshold(0.1, saliency=True),
        "oaa": PublishedThreshold(0.3, saliency=True),
        "mcis": PublishedThreshold(0.5, saliency=True),
        "drs": PublishedThreshold(0.5, saliency=True),
        "edam": PublishedThreshold(0.5, saliency=True),
        "eps": PublishedThreshold(0.2, saliency=False),
        "l2g": PublishedThreshold(0.3, saliency=False),
    }
)


def method_of(cam_key: str | Key) -> str:
    """The method that a cam key names: ``eps`` for ``cam/eps-vst-duts@1.0.0``.

    Raises UsageError if the key is not one of activation maps.
    """
    key = Key.parse(str(cam_key))
    if key.kind != "cam":
        raise UsageError(f"{key} does not name activation maps. Their keys begin with cam/.")
    return key.name.split("-")[0]


def published(cam_key: str | Key) -> PublishedThreshold:
    """The published settings of the method that ``cam_key`` names.

    Raises UsageError if the key is no cam key or nothing was published for its method.
    """
    method = method_of(cam_key)
    if method not in PUBLISHED:
        raise UsageError(
            f"No published threshold is known for {method!r} ({cam_key}), only for "
            f"{', '.join(PUBLISHED)}.{did_you_mean(method, PUBLISHED)} Give a tau, or read one "
            "off a curve."
        )
    return PUBLISHED[method]


def pseudo_label(
    activations: np.ndarray,
    class_ids: np.ndarray,
    saliency: np.ndarray | None,
    tau: float,
    *,
    sal_threshold: float = 0.2,
    rule: Rule = "paper",
    ignore: bool = True,
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
    ``rule`` decides about equality and precision, see the module.

    Raises UsageError for tau, sal_threshold or rule, HubError for the arrays.
    """
    check_settings(tau, sal_threshold, rule)
    check_inputs(activations, class_ids, saliency)
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


def check_settings(tau: float, sal_threshold: float, rule: str) -> None:
    """Raises UsageError unless both numbers are in [0, 1] and the rule exists."""
    for name, value in (("tau", tau), ("sal_threshold", sal_threshold)):
        number = isinstance(value, int | float | np.integer | np.floating)
        if not number or isinstance(value, bool) or not math.isfinite(value):
            raise UsageError(f"{name} is {value!r}; it must be a number from 0 to 1.")
        if not 0 <= value <= 1:
            raise UsageError(f"{name} is {value}; it must be from 0 to 1 (grey value / 255).")
    if rule not in RULES:
        raise UsageError(
            f"There is no rule {rule!r}.{did_you_mean(str(rule), RULES)} "
            f"Rules are {' and '.join(RULES)}."
        )


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
    saliency it does not exceed tau.
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


def _float32_scores() -> np.ndarray:
    return np.arange(256, dtype=np.float32) / np.float32(255)
