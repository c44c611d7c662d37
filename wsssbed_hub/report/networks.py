"""Segmentation networks as a registry knows them: what they were trained on, and their score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Chosen, Ingredient, Manifest, Result
from wsssbed_hub.report import SegmentationScore, segmentation_score
from wsssbed_hub.report.build import MIOU
from wsssbed_hub.utils.errors import HubError, UsageError

if TYPE_CHECKING:
    from wsssbed_hub.datasets import Target
    from wsssbed_hub.registry.base import Registry


class Network(NamedTuple):
    """A trained segmentation network: what it was trained on, and its score."""

    name: str
    """Its key with the version."""
    label: Ingredient | None
    """The labels it was trained on; None if there were none but those of whole images."""
    maps: dict[str, str]
    """What those labels were made from, role to content digest, as far as their manifest is known
    and says so."""
    on_truth: bool
    score: SegmentationScore

    def learnt_from(self, cam: str, sal: str | None) -> bool:
        """Whether its labels were made from the maps of these content digests."""
        return self.maps == {"cam": cam} | ({} if sal is None else {"sal": sal})

    def learnt(self, labels: str) -> bool:
        """Whether it was trained on the labels of this content digest."""
        return self.label is not None and self.label.digest == labels


def find_networks(place: Registry, names: Sequence[str], target: Target) -> dict[str, Network]:
    """The networks of the keys ``names``, in their order.

    A score is that with CRF if all of them have one, else that without, so that they compare.
    Raises UsageError for a key that is no network's or that nobody knows, HubError for a network
    whose manifest states no mIoU.
    """
    found = {name: _choose(place, name, target.name) for name in names}
    crf = all(any(result.crf for result in _mious(chosen)) for _, chosen in found.values())
    return {name: _network(place, *one, target, crf) for name, one in found.items()}


def _choose(place: Registry, text: str, target: str) -> tuple[Manifest, Chosen]:
    key = Key.parse(text)
    if key.kind != "weights":
        raise UsageError(f"{text} does not name a trained network. Their keys begin with weights/.")
    manifest = place.find(key)
    chosen = manifest.choose(target, key.version)
    if not _mious(chosen):
        raise HubError(f"{text}: its manifest states no mIoU.")
    return manifest, chosen


def _mious(chosen: Chosen) -> list[Result]:
    """The mean over the seeds first."""
    return [result for result in chosen.entry.results if result.metric == MIOU]


def _network(
    place: Registry, manifest: Manifest, chosen: Chosen, target: Target, crf: bool
) -> Network:
    mious = _mious(chosen)
    mean = next((result for result in mious if result.crf == crf), mious[0])
    trained = [item.supervision for item in manifest.trained_on]
    made = chosen.entry.provenance
    items = made.made_from if made else []
    label = next((item for item in items if item.role == "label"), None)
    return Network(
        name=str(manifest.parsed_key.at(chosen.version)),
        label=label,
        maps=_maps(place, label, target.name),
        on_truth=bool(trained) and all(supervision == "pixel masks" for supervision in trained),
        score=segmentation_score(mean, manifest.method.name, _per_class(chosen, target, mean.crf)),
    )


def _per_class(chosen: Chosen, target: Target, crf: bool) -> list[float | None]:
    """IoU of each class, background first, as the manifest's results state them."""
    stated = {result.metric: result.value for result in chosen.entry.results if result.crf == crf}
    values = [stated.get(f"IoU {name}") for name in ("background", *target.classes)]
    return values if any(value is not None for value in values) else []


def _maps(place: Registry, label: Ingredient | None, target: str) -> dict[str, str]:
    if label is None or label.key is None:
        return {}
    key = Key.parse(label.key)
    try:
        made = place.find(key).choose(target, key.version).entry.provenance
    except UsageError:  # not published
        return {}
    items = made.made_from if made else []
    return {item.role: item.digest for item in items if item.role in ("cam", "sal")}
