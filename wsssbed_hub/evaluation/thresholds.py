"""The tau to label with: given, published, or the best of a curve on a split's ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Threshold
from wsssbed_hub.artifacts.maps import Maps
from wsssbed_hub.datasets import open_target
from wsssbed_hub.evaluation.curves import ThresholdCurve, threshold_curve
from wsssbed_hub.evaluation.pseudo_label import check_settings, published
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.progress import Progress

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule


def resolve_threshold(
    cam_key: str | Key | None,
    *,
    saliency: bool,
    tau: float | None = None,
    curve: ThresholdCurve | None = None,
    split: str | None = None,
) -> Threshold:
    """The tau to label with, and where it came from.

    That is ``tau`` if it is given; else the best of ``curve``, which was measured on the ground
    truth of ``split``; else what was published for the method that ``cam_key`` names
    (``cam/eps-vst-duts``: eps). ``cam_key`` is None for maps that have no key. ``saliency``:
    whether saliency maps take part in labelling.

    Raises UsageError for a tau outside [0, 1], for a tau and a curve together, for a curve without
    its split, for a curve or a published tau of labels that are made the other way (with or
    without saliency), and if nothing was published.
    """
    if tau is not None and curve is not None:
        raise UsageError("A tau is given and a curve is to be read: choose one of the two.")
    if tau is not None:
        check_settings(tau, 0, "paper")
        return Threshold(tau=tau, origin="given")
    if curve is not None:
        if split is None:
            raise UsageError("Name the split on whose ground truth the curve was measured.")
        _check_way(curve.sal_threshold is not None, saliency, "The curve")
        return Threshold(tau=curve.best_tau(), origin="curve", split=split)
    if cam_key is None:
        raise UsageError(
            "Activation maps without a key have no published threshold. Give a tau, or read one "
            "off a curve."
        )
    default = published(cam_key)
    _check_way(default.saliency, saliency, f"The published tau of {cam_key}, {default.tau},")
    return Threshold(tau=default.tau, origin="published")


def _check_way(with_saliency: bool, wanted: bool, what: str) -> None:
    if with_saliency != wanted:
        one, other = ("with", "without") if with_saliency else ("without", "with")
        raise UsageError(
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
    progress: Progress | None = None,
) -> Threshold:
    """``resolve_threshold`` as people ask for it: ``--tau``, or ``--tau-from`` where to take it.

    ``tau_from`` is ``published``, or ``curve:SPLIT``: then the curve of these maps is measured on
    that split of ``target``, whose files are below ``data_root``.

    Raises UsageError as ``resolve_threshold`` does and for another ``tau_from``; HubError if the
    curve cannot be measured.
    """
    source, _, split = tau_from.partition(":")
    if tau_from != "published" and not (source == "curve" and split):
        raise UsageError(
            f"tau cannot be taken from {tau_from!r}, only from 'published' or from 'curve:SPLIT', "
            "such as curve:train."
        )
    if tau_from == "published":
        return resolve_threshold(cam.key, saliency=sal is not None, tau=tau)
    if tau is not None:
        raise UsageError(
            f"tau is given, and is to be taken from {tau_from}: choose one of the two."
        )
    dataset = open_target(target, data_root)
    curve = threshold_curve(
        cam,
        dataset.ground_truth(split),
        sal,
        num_classes=dataset.num_classes,
        sal_threshold=sal_threshold,
        rule=rule,
        progress=progress,
    )
    return resolve_threshold(cam.key, saliency=sal is not None, curve=curve, split=split)
