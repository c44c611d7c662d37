"""The results that a manifest states, computed again from the maps and the ground truth.

A number is what its manifest says if it agrees to the last digit that is stated. What cannot be
computed here is said so, with the reason: it is neither true nor false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.manifest import Chosen, Ingredient, Manifest, Result
from wsssbed_hub.datasets import NotThere, open_target
from wsssbed_hub.evaluation.curves import ThresholdCurve, threshold_curve
from wsssbed_hub.evaluation.method_rules import CURVE_RULES
from wsssbed_hub.evaluation.metrics import SegmentationMetrics, class_iou, mean_iou
from wsssbed_hub.evaluation.published import published
from wsssbed_hub.evaluation.saliency_metrics import MEASURES
from wsssbed_hub.evaluation.score import Foreground, score_labels, score_saliency
from wsssbed_hub.evaluation.thresholds import published_thresholds
from wsssbed_hub.utils.errors import HubError, UsageError

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule
    from wsssbed_hub.artifacts.maps import Maps
    from wsssbed_hub.datasets import Target
    from wsssbed_hub.registry.base import Registry

COARSEST = 0.005  # half a percent: a number with one digit is not meant to be that vague
FAST_MEASURES = tuple(name for name in MEASURES if name != "weighted_f")
_NOISE = 1e-9  # sums in another order, by another numpy

Outcome = Literal["proved", "failed", "not checked"]


@dataclass(frozen=True)
class Claim:
    """One thing that a manifest says, and what became of it."""

    what: str
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}" if self.detail else self.what


class NotCheckable(Exception):
    """A number cannot be computed here, because of what this says."""


class Wrong(Exception):
    """A number is not what a manifest says, or cannot be what it says it is."""


def half_digit(value: float) -> float:
    """Half a unit of the last digit of ``value`` as it is written, at most ``COARSEST``."""
    exponent = Decimal(repr(value)).as_tuple().exponent
    return min(COARSEST, max(_NOISE, 0.5 * 10.0 ** int(exponent)))


def agrees(stated: float, found: float) -> bool:
    """Whether ``found`` is ``stated`` to the last digit that is written of it."""
    return bool(abs(stated - found) <= half_digit(stated) * (1 + 1e-6))


def describe(result: Result) -> str:
    """A result in words: ``mIoU 0.612 on train at tau 0.3 (given) with sal/vst-duts@1.0.0``."""
    words = f"{result.metric} {result.value!r} on {result.split}"
    if result.threshold is not None:
        tau = result.threshold
        words += f" at tau {tau.tau:g} ({tau.origin}{f' on {tau.split}' if tau.split else ''})"
    if result.saliency is not None:
        words += f" with {result.saliency.key or result.saliency.file}"
    return words


class _Way(NamedTuple):
    """How activation maps become labels: all that a curve depends on."""

    split: str
    saliency: Ingredient | None
    sal_threshold: float
    rule: Rule


class Recomputation:
    """The results of one entry, whose ``maps`` are at hand (None: weights).

    The target's ground truth is looked for below ``data_root``, saliency maps that took part in
    ``registry``. What was computed once is kept.
    """

    def __init__(
        self,
        manifest: Manifest,
        chosen: Chosen,
        maps: Maps | None,
        data_root: Path,
        registry: Registry,
    ):
        self.manifest, self.chosen, self.maps = manifest, chosen, maps
        self.data_root, self.registry = data_root, registry
        self._curves: dict[_Way, ThresholdCurve] = {}
        self._scores: dict[str, SegmentationMetrics] = {}
        self._measures: dict[str, dict[str, float]] = {}

    def claims(self) -> Iterator[Claim]:
        """The fate of each result. Raises nothing: an error makes it failed, or not checked."""
        for result in self.chosen.entry.results:
            yield self._claim(describe(result), lambda r=result: self._check(r))  # type: ignore[misc]
            if result.threshold is not None:
                tau = result.threshold
                words = f"tau {tau.tau:g} ({tau.origin}{f' on {tau.split}' if tau.split else ''})"
                yield self._claim(words, lambda r=result: self._check_threshold(r))  # type: ignore[misc]

    @staticmethod
    def _claim(what: str, check: Callable[[], str]) -> Claim:
        try:
            return Claim(what, "proved", check())
        except NotCheckable as reason:
            return Claim(what, "not checked", f"not recomputed, because {reason}")
        except Wrong as error:
            return Claim(what, "failed", str(error))
        except HubError as error:
            return Claim(what, "failed", f"it cannot have been measured: {error}")

    def _check(self, result: Result) -> str:
        """The number as it is found. Raises NotCheckable or Wrong."""
        if self.maps is None:
            raise NotCheckable(
                "the mIoU of a network takes the network and torch; its stage measures it"
            )
        if len(result.seeds) > 1 or result.standard_error is not None:
            raise NotCheckable(
                f"it is the mean of {len(result.seeds) or 'several'} runs, and one is here"
            )
        self._check_list(result)
        found = self._value(result)
        if result.crf:
            raise NotCheckable(
                f"a CRF was applied first, which takes torch; without it {found:.6g} is found"
            )
        if not agrees(result.value, found):
            raise Wrong(f"{result.value!r} is stated, {found:.6g} was found")
        return f"{found:.6g} was found"

    def _check_list(self, result: Result) -> None:
        ids = self.truth(result.split).image_ids
        here = list_digest(ids)
        if here != result.image_list:
            raise NotCheckable(
                f"it was measured on other images (list {_short(result.image_list)}) than "
                f"{self.chosen.target} {result.split} has here ({len(ids):,}, {_short(here)})"
            )
        if len(ids) != result.images:
            raise Wrong(f"{result.images:,} images are stated, and that list has {len(ids):,}")

    def _value(self, result: Result) -> float:
        measures = {
            "label": lambda: self._of_labels(result),
            "cam": lambda: self._of_activations(result),
            "sal": lambda: self._of_saliency(result),
        }[self.manifest.kind]()
        name = _plain_name(result.metric)
        if name not in measures:
            raise NotCheckable(
                f"no measure of {self.manifest.kind} is called {result.metric!r} here, only "
                f"{', '.join(n for n in measures if not n.startswith('iou '))}"
                f"{', IoU <class>' if 'miou' in measures else ''}"
            )
        value = measures[name]
        if np.isnan(value):
            raise Wrong("there is no pixel that it could be measured on")
        return value

    @cached_property
    def target(self) -> Target:
        """Raises NotCheckable if it is not at hand."""
        try:
            return open_target(self.chosen.target, self.data_root)
        except NotThere:  # which says at length where to get it, for each result anew
            where = f"{self.chosen.target} is not at hand below {self.data_root}"
            raise NotCheckable(where) from None
        except HubError as error:
            raise NotCheckable(f"{self.chosen.target} is not at hand: {error}") from None

    def truth(self, split: str) -> Maps:
        """The ground truth of a split. Raises NotCheckable if it is not at hand."""
        target = self.target
        if split not in target.splits:
            have = ", ".join(target.splits)
            raise NotCheckable(f"{target.name} has no split {split!r} here, only {have}")
        try:
            truth = target.ground_truth(split)
            if len(truth.image_ids):
                truth.read(truth.image_ids[0])
            return truth
        except HubError as error:
            raise NotCheckable(f"the ground truth is not at hand: {error}") from None

    def labels(self, split: str) -> SegmentationMetrics:
        """The score of label maps; ignored pixels count as misses."""
        assert self.maps is not None
        if split not in self._scores:
            self._scores[split] = score_labels(
                self.maps,
                self.truth(split),
                num_classes=self.target.num_classes,
                undecided=True,
            )
        return self._scores[split]

    def _of_labels(self, result: Result) -> Mapping[str, float]:
        score = self.labels(result.split)
        return {
            "miou": score.mean_iou(),
            "labelled miou": float(mean_iou(score.confusion)),
            "coverage": score.coverage,
            "pixel accuracy": score.pixel_accuracy,
            "mean accuracy": score.mean_accuracy,
            "frequency weighted iou": score.frequency_weighted_iou,
            **self._classes(score.class_iou),
        }

    def _of_saliency(self, result: Result) -> Mapping[str, float]:
        return {name.replace("_", " "): v for name, v in self.saliency(result.split).items()}

    def saliency(self, split: str) -> dict[str, float]:
        """The measures of saliency maps against the objects of the ground truth."""
        assert self.maps is not None
        if split not in self._measures:
            stated = (_plain_name(result.metric) for result in self.chosen.entry.results)
            measures = MEASURES if "weighted f" in stated else FAST_MEASURES
            truth = Foreground(self.truth(split))
            self._measures[split] = score_saliency(self.maps, truth, measures=measures)
        return self._measures[split]

    def _of_activations(self, result: Result) -> Mapping[str, float]:
        if result.threshold is None:
            raise NotCheckable("it does not say at which tau")
        curve = self._curve(self._way(result, result.split))
        index = curve.index_of(result.threshold.tau)
        return {
            "miou": float(curve.miou_ignored_missed[index]),
            "labelled miou": float(curve.miou[index]),
            "coverage": float(curve.coverage[index]),
            **self._classes(class_iou(curve.confusion[index], curve.ignored[index])),
        }

    def _classes(self, values: np.ndarray) -> dict[str, float]:
        names = ("background", *self.target.classes)
        return {
            f"iou {_plain_name(name)}": float(value)
            for name, value in zip(names, values, strict=True)
        }

    def _way(self, result: Result, split: str) -> _Way:
        if result.rule is not None and result.rule not in CURVE_RULES:
            raise NotCheckable(f"labels by the rule {result.rule} have no curve")
        if result.saliency is None:
            return _Way(split, None, 0.2, result.rule or "paper")  # all rules are one then
        if result.rule is None or result.sal_threshold is None:
            raise NotCheckable("it does not say by which rule, or at which sal_threshold")
        return _Way(split, result.saliency, result.sal_threshold, result.rule)

    def _curve(self, way: _Way) -> ThresholdCurve:
        assert self.maps is not None
        if way not in self._curves:
            self._curves[way] = threshold_curve(
                self.maps,
                self.truth(way.split),
                None if way.saliency is None else self._partner(way.saliency),
                num_classes=self.target.num_classes,
                sal_threshold=way.sal_threshold,
                rule=way.rule,
            )
        return self._curves[way]

    def _partner(self, stated: Ingredient) -> Maps:
        if stated.key is None:
            raise NotCheckable(f"the saliency maps {stated.file!r} have no key and are not at hand")
        maps = self.partner(stated.key)
        if maps.content != stated.digest:
            raise NotCheckable(
                f"it was measured with other maps ({_short(stated.digest)}) than {stated.key} "
                f"has now ({_short(str(maps.content))})"
            )
        return maps

    def partner(self, key: str) -> Maps:
        """The saliency maps of ``key``. Raises NotCheckable if they are not to be had."""
        from wsssbed_hub.registry.open_artifact import open_artifact
        from wsssbed_hub.registry.pull import pull

        try:
            folder = pull(key, self.chosen.target, registry=self.registry, data_root=self.data_root)
            return open_artifact(folder, self.chosen.target, kind="sal")
        except HubError as error:
            raise NotCheckable(f"{key} is not to be had: {error}") from None

    def _check_threshold(self, result: Result) -> str:
        stated = result.threshold
        assert stated is not None
        if self.manifest.kind == "label":
            return self._check_recipe(result)
        if self.manifest.kind != "cam":
            raise NotCheckable(f"{self.manifest.kind} has no tau of its own")
        if stated.origin == "given":
            return "given, whatever it is"
        if stated.origin in ("published", "authors"):
            return self._check_published(result)
        curve = self._curve(self._way(result, stated.split or result.split))
        best = curve.best_tau()
        if not agrees(stated.tau, best) and curve.index_of(stated.tau) != curve.best_index():
            raise Wrong(f"{stated.tau:g} is stated, the best on {stated.split} is {best:.6g}")
        return f"the best on {stated.split} is {best:.6g}"

    def _check_published(self, result: Result) -> str:
        stated, rule = result.threshold, result.rule or "paper"
        assert stated is not None
        try:
            known = published(self.manifest.parsed_key)
        except UsageError as error:
            raise NotCheckable(str(error)) from None
        saliency = result.saliency is not None
        if stated not in published_thresholds(self.manifest.key, saliency=saliency, rule=rule):
            raise Wrong(f"of this method was published: {known}")
        return "as published"

    def _check_recipe(self, result: Result) -> str:
        """The tau of labels is that of the recipe they were made by."""
        made = self.chosen.entry.provenance
        recipe = made.recipe if made is not None else {}
        stated = result.threshold
        if stated is None or not isinstance(recipe.get("tau"), int | float):
            raise NotCheckable("the provenance does not say how the labels were made")
        was = (float(recipe["tau"]), recipe.get("tau_origin"), recipe.get("tau_split"))
        if was[1:] != (stated.origin, stated.split) or not agrees(stated.tau, was[0]):
            on = f" on {was[2]}" if was[2] else ""
            raise Wrong(f"the labels were made at tau {was[0]:g} ({was[1]}{on})")
        return "as in the provenance"


def _plain_name(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def _short(digest: str) -> str:
    return digest[:19]
