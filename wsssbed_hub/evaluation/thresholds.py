"""The tau to label with: given, published, or the best of a curve on a split's ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Threshold
from wsssbed_hub.artifacts.maps import Maps
from wsssbed_hub.datasets import open_target
from wsssbed_hub.evaluation.curves import ThresholdCurve, threshold_curve
from wsssbed_hub.evaluation.method_rules import (
    AUTHORS_RULES,
    EDAM_BETA,
    check_curve_rule,
    check_rule,
    check_settings,
)
from wsssbed_hub.evaluation.published import PUBLISHED, method_of, published
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.progress import Progress

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule


def published_thresholds(
    cam_key: str | Key | None, *, saliency: bool, rule: Rule = "paper"
) -> list[Threshold]:
    """What was published about labels made this way, the benchmark's first; none at all is [].

    ``cam_key`` names the method (``cam/eps-vst-duts``: eps), None is of no known one. The rules
    paper and release are one here, as the benchmark's paper and its program are. An authors' rule
    has its tau whatever the maps are from.
    """
    if rule in AUTHORS_RULES:
        known = PUBLISHED[rule]
    elif cam_key is None or method_of(cam_key) not in PUBLISHED:
        return []
    else:
        known = published(cam_key)
    asked = rule if rule in AUTHORS_RULES else "paper"
    found = [
        Threshold(tau=way.tau, origin="authors")
        for way in known.authors
        if (way.saliency, way.rule) == (saliency, asked)
    ]
    if (known.benchmark.saliency, known.benchmark.rule) == (saliency, asked):
        found.insert(0, Threshold(tau=known.benchmark.tau, origin="published"))
    return found


def resolve_threshold(
    cam_key: str | Key | None,
    *,
    saliency: bool,
    rule: Rule = "paper",
    tau: float | None = None,
    source: Literal["published", "authors"] = "published",
    curve: ThresholdCurve | None = None,
    split: str | None = None,
) -> Threshold:
    """The tau to label with, and where it came from.

    That is ``tau`` if it is given; else the best of ``curve``, which was measured on the ground
    truth of ``split``; else what ``source`` says for the method that ``cam_key`` names
    (``cam/eps-vst-duts``: eps): ``published``, the benchmark's, or by an authors' rule theirs;
    ``authors``, what the method's authors label with. ``cam_key`` is None for maps that have no
    key. ``saliency``: whether saliency maps take part in labelling.

    Raises UsageError for a tau outside [0, 1], for a tau and a curve together, for a curve without
    its split, for a curve or a published tau of labels that are made the other way (with or
    without saliency, by another rule), and if nothing was published.
    """
    if tau is not None and curve is not None:
        raise UsageError("A tau is given and a curve is to be read: choose one of the two.")
    if tau is not None:
        check_settings(tau, 0, rule)
        return Threshold(tau=tau, origin="given")
    if curve is not None:
        if split is None:
            raise UsageError("Name the split on whose ground truth the curve was measured.")
        if (curve.sal_threshold is not None) != saliency:
            raise _other_way(not saliency, saliency, "The curve")
        return Threshold(tau=curve.best_tau(), origin="curve", split=split)
    check_rule(rule, saliency=saliency, ignore=True, beta=EDAM_BETA)
    for one in published_thresholds(cam_key, saliency=saliency, rule=rule):
        if one.origin == source or rule in AUTHORS_RULES:
            return one
    raise _nothing_published(cam_key, source, saliency)


def _nothing_published(cam_key: str | Key | None, source: str, saliency: bool) -> UsageError:
    """The error that says what was published instead, for labels by Algorithm 1."""
    if cam_key is None:
        return UsageError(
            "Activation maps without a key have no published threshold. Give a tau, or read one "
            "off a curve."
        )
    known = published(cam_key)
    if source == "published":
        what = f"The published tau of {cam_key}, {known.benchmark.tau},"
        return _other_way(known.benchmark.saliency, saliency, what)
    ways = " or ".join(f"tau {one}" for one in known.authors)
    advice = "Label that way, take" if ways else "Take"
    return UsageError(
        f"The authors of {method_of(cam_key)} published {ways or 'nothing about labels'}. {advice} "
        "the published tau (the benchmark's), or give one."
    )


def _other_way(with_saliency: bool, wanted: bool, what: str) -> UsageError:
    one, other = ("with", "without") if with_saliency else ("without", "with")
    return UsageError(
        f"{what} is for labels {one} saliency maps, and these are to be made {other} them. "
        f"Label {one} saliency maps, give a tau, or read one off a curve of such labels."
    )


def choose_threshold(
    cam: Maps,
    sal: Maps | None,
    *,
    tau: float | None,
    tau_from: str,
    target: str,
    data_root: Path,
    rule: Rule = "paper",
    sal_threshold: float = 0.2,
    beta: float = EDAM_BETA,
    progress: Progress | None = None,
) -> Threshold:
    """``resolve_threshold`` as people ask for it: ``--tau``, or ``--tau-from`` where to take it.

    ``tau_from`` is ``published``, ``authors`` (see ``resolve_threshold``), or ``curve:SPLIT``: then
    the curve of these maps is measured on that split of ``target``, whose files are below
    ``data_root``.

    Raises UsageError as ``resolve_threshold`` does and for another ``tau_from``; HubError if the
    curve cannot be measured.
    """
    source, _, split = tau_from.partition(":")
    if tau_from not in ("published", "authors") and not (source == "curve" and split):
        raise UsageError(
            f"tau cannot be taken from {tau_from!r}, only from 'published', from 'authors' or from "
            "'curve:SPLIT', such as curve:train."
        )
    if tau is not None and tau_from != "published":
        raise UsageError(
            f"tau is given, and is to be taken from {tau_from}: choose one of the two."
        )
    saliency = sal is not None
    if tau_from == "published":
        return resolve_threshold(cam.key, saliency=saliency, rule=rule, tau=tau)
    if tau_from == "authors":
        return resolve_threshold(cam.key, saliency=saliency, rule=rule, source="authors")
    check_curve_rule(rule)  # before the target is opened
    dataset = open_target(target, data_root)
    curve = threshold_curve(
        cam,
        dataset.ground_truth(split),
        sal,
        num_classes=dataset.num_classes,
        sal_threshold=sal_threshold,
        rule=rule,
        beta=beta,
        progress=progress,
    )
    return resolve_threshold(cam.key, saliency=saliency, rule=rule, curve=curve, split=split)
