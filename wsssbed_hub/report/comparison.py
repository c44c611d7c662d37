"""Saliency maps compared on one activation map: what ``curve`` and ``report`` are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Manifest, Threshold
from wsssbed_hub.artifacts.maps import Maps
from wsssbed_hub.datasets import open_target
from wsssbed_hub.evaluation.curves import ThresholdCurve, threshold_curve
from wsssbed_hub.evaluation.method_rules import EDAM_BETA
from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.evaluation.score import Foreground, score_labels, score_saliency
from wsssbed_hub.evaluation.thresholds import published_thresholds
from wsssbed_hub.registry.pull import open_registry
from wsssbed_hub.report import (
    Node,
    OwnLabelScore,
    Report,
    ResultRow,
    SaliencyScore,
    SegmentationScore,
    choose_images,
    make_gallery,
    own_label_score,
    provenance_tree,
    row_of,
    saliency_score,
)
from wsssbed_hub.report.gallery import Readable
from wsssbed_hub.report.networks import Network, find_networks
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.progress import Progress

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule
    from wsssbed_hub.datasets import Target
    from wsssbed_hub.registry.base import Registry

QUALITY = ("mae", "f", "s")  # what the report's table shows of a saliency map


@dataclass(frozen=True)
class Pair:
    """The activation maps with one saliency map (or with none), at every threshold.

    ``thresholds`` are those that were published for labels made this way, the one that counts for
    the report first; there are none of a method that nobody published about, or only for labels
    that are made the other way (with or without saliency).
    """

    sal: Maps | None
    curve: ThresholdCurve
    thresholds: list[Threshold]
    quality: SaliencyScore | None

    @property
    def published(self) -> Threshold | None:
        return self.thresholds[0] if self.thresholds else None

    @property
    def name(self) -> str:
        return "no saliency" if self.sal is None else self.sal.key or self.sal.name

    def row(self, compared: Comparison, segmentation: SegmentationScore | None = None) -> ResultRow:
        """This pair as a row of the report."""
        cam = compared.cam
        return row_of(
            self.name,
            self.curve,
            compared.split,
            activations=cam.key or cam.name,
            fixed=self.published,
            image_list=compared.image_list,
            saliency=self.quality,
            segmentation=segmentation,
        )


@dataclass(frozen=True)
class OwnLabels:
    """Labels that were made elsewhere, and what they are worth."""

    maps: Maps
    score: OwnLabelScore

    @property
    def name(self) -> str:
        return self.maps.key or self.maps.name


@dataclass(frozen=True)
class Comparison:
    """One activation map with several saliency maps, measured on one split of a target.

    ``labels`` are further labels, from whatever they were made, measured on the same images.
    """

    cam: Maps
    pairs: list[Pair]
    labels: list[OwnLabels]
    target: Target
    split: str
    images: int
    image_list: str


def compare(
    cam: Maps,
    sals: Sequence[Maps],
    labels: Sequence[Maps] = (),
    *,
    target: str,
    data_root: Path,
    split: str,
    rule: Rule = "paper",
    sal_threshold: float = 0.2,
    beta: float = EDAM_BETA,
    saliency_quality: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """The curve of ``cam`` with each of ``sals``, or without saliency if there are none.

    ``labels`` are scored as they are. ``saliency_quality`` also scores each saliency map against
    the objects of the ground truth. ``progress(images, of)`` as it goes. Raises HubError for a
    dataset, images or maps that are missing or do not fit, UsageError for the settings.
    """
    dataset = open_target(target, data_root)
    truth = dataset.ground_truth(split)
    count = len(truth.image_ids)
    passes = max(1, len(sals)) + (len(sals) if saliency_quality else 0) + len(labels)
    done = 0

    def advance(images: int, of: int) -> None:
        if progress is not None:
            progress(done * count + images, passes * count)

    pairs = []
    for sal in sals or (None,):
        curve = threshold_curve(
            cam,
            truth,
            sal,
            num_classes=dataset.num_classes,
            sal_threshold=sal_threshold,
            rule=rule,
            beta=beta,
            progress=advance,
        )
        done += 1
        quality = None
        if sal is not None and saliency_quality:
            measures = score_saliency(sal, Foreground(truth), measures=QUALITY, progress=advance)
            quality = saliency_score(
                measures, f"objects of {target} {split}", count, list_digest(truth.image_ids)
            )
            done += 1
        known = published_thresholds(cam.key, saliency=sal is not None, rule=rule)
        pairs.append(Pair(sal, curve, known, quality))
    ids = list_digest(truth.image_ids)
    own = []
    for maps in labels:
        score = score_labels(
            maps, truth, num_classes=dataset.num_classes, undecided=True, progress=advance
        )
        own.append(OwnLabels(maps, own_label_score(score, split, ids)))
        done += 1
    return Comparison(cam, pairs, own, dataset, split, count, ids)


def make_report(
    compared: Comparison,
    segmentation: Sequence[str] = (),
    *,
    registry: Registry | str | None = None,
    images: int = 8,
) -> Report:
    """The report of a comparison; ``segmentation`` are keys of trained networks in ``registry``.

    A network belongs to the row of the saliency map that its labels were made from, or of the
    labels themselves; one that was trained on the ground truth, or on no labels of pixels, gets a
    row of its own. ``images`` of the split make the gallery. Raises UsageError for unknown keys,
    HubError for a network that belongs to no row.
    """
    maps = [compared.cam, *(pair.sal for pair in compared.pairs if pair.sal is not None)]
    maps += [own.maps for own in compared.labels]
    names = [*(one.key for one in maps if one.key is not None), *segmentation]
    # Maps in folders of one's own have no key, and then no registry is needed.
    place = open_registry(registry) if names else None
    target = compared.target
    networks = find_networks(place, segmentation, target) if place else {}
    chosen = choose_images(target, target.image_ids(compared.split), images) if images else []
    return Report(
        title=f"Saliency maps compared on {target.name}",
        target=target.name,
        classes=list(target.classes),
        settings=_settings(compared, list(networks.values())),
        made_by=f"wsssbed-hub {version('wsssbed-hub')}",
        rows=_rows(compared, networks),
        gallery=make_gallery(target, _columns(compared), chosen) if chosen else None,
        provenance=_trees(place, names, target.name) if place else [],
    )


def _rows(compared: Comparison, networks: Mapping[str, Network]) -> list[ResultRow]:
    """One row for each saliency map, for labels made elsewhere, and for networks of neither."""
    left = dict(networks)
    digest = cache(_digest)
    rows = []
    for pair in compared.pairs:
        its = [
            name
            for name, one in left.items()
            if one.learnt_from(digest(compared.cam), None if pair.sal is None else digest(pair.sal))
        ]
        rows.append(pair.row(compared, left.pop(its[0]).score if its else None))
    activations = rows[0].activations
    for own in compared.labels:
        its = [name for name, one in left.items() if one.learnt(digest(own.maps))]
        row = ResultRow(name=own.name, role="labels", activations=activations, own=own.score)
        rows.append(_with(row, left.pop(its[0]) if its else None))
    for name, network in left.items():
        if network.on_truth:
            row = ResultRow(name="ground truth", role="ground truth", activations=activations)
        elif network.label is None:
            row = ResultRow(name=network.name, role="network", activations=activations)
        else:
            raise HubError(
                f"{name} was trained on labels of none of these saliency maps, nor on any of "
                "--labels, or is the second of one. Name the saliency map with --sal, or the "
                "labels with --labels, and one network for each."
            )
        rows.append(_with(row, network))
    return rows


def _digest(maps: Maps) -> str:
    return maps.content or maps.digest()


def _with(row: ResultRow, network: Network | None) -> ResultRow:
    return row.model_copy(update={"segmentation": network.score if network else None})


def _settings(compared: Comparison, networks: Sequence[Network]) -> dict[str, str]:
    """The settings of a comparison, in words."""
    first, split = compared.pairs[0], f"{compared.target.name} {compared.split}"
    saliency = first.curve.sal_threshold
    seeds = sorted({seed for network in networks for seed in network.score.seeds})
    tau = "none" if first.published is None else f"{first.published.tau:g}"
    said = {
        "activation maps": compared.cam.key or compared.cam.name,
        "saliency maps": ", ".join(pair.name for pair in compared.pairs),
        "labels measured on": f"{split}, {compared.images:,} images",
        "published tau": tau,
        "best tau": f"read off {split}",
        "salient": "not used" if saliency is None else f"saliency > {saliency:g}",
        "rule": first.curve.rule,
    }
    if compared.labels:
        said["own labels"] = ", ".join(own.name for own in compared.labels)
    return said | ({"seeds": ", ".join(map(str, seeds))} if seeds else {})


def _trees(place: Registry, names: Sequence[str], target: str) -> list[Node]:
    """The provenance of those artifacts whose manifests are in the registry."""

    def find(key: Key) -> Manifest | None:
        try:
            return place.find(key)
        except UsageError:
            return None

    keys = [(Key.parse(name), find(Key.parse(name))) for name in names]
    return [
        provenance_tree(manifest, find, target=target, version=key.version)
        for key, manifest in keys
        if manifest is not None
    ]


def _columns(compared: Comparison) -> list[tuple[str, Readable]]:
    columns: list[tuple[str, Readable]] = [
        (pair.name, pair.sal) for pair in compared.pairs if pair.sal is not None
    ]
    columns.append((compared.cam.key or compared.cam.name, compared.cam))
    for pair in compared.pairs:
        tau = pair.published.tau if pair.published else pair.curve.best_tau()
        columns.append((f"labels, {pair.name}, tau {tau:.3g}", _Labelled(compared.cam, pair, tau)))
    columns += [(own.name, own.maps) for own in compared.labels]
    columns.append(("ground truth", compared.target.ground_truth(compared.split)))
    return columns


class _Labelled:
    """The pseudo labels of a pair, made when they are looked at."""

    kind = "label"

    def __init__(self, cam: Maps, pair: Pair, tau: float) -> None:
        self._cam, self._pair, self._tau = cam, pair, tau
        self.image_ids = cam.image_ids

    def read(self, image_id: str) -> np.ndarray:
        """uint8[H, W], 0 background, c + 1 class c, 255 ignored."""
        activations, class_ids = self._cam.read(image_id)
        sal, curve = self._pair.sal, self._pair.curve
        return pseudo_label(
            activations,
            class_ids,
            None if sal is None else np.asarray(sal.read(image_id)),
            self._tau,
            sal_threshold=0.2 if curve.sal_threshold is None else curve.sal_threshold,
            rule=curve.rule,
            beta=curve.beta,
        )
