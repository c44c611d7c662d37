"""What was published about making labels of each method's activation maps: tau, saliency, rule.

One table, read by ``label``, ``curve`` and ``list``. Two sources publish: the benchmark, WSSS-BED,
which labels all methods by one algorithm, and the methods' own authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.utils.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule

BENCHMARK, AUTHORS = "WSSS-BED", "authors"


@dataclass(frozen=True)
class PublishedThreshold:
    """A published way to make labels: tau, whether saliency maps take part, and the rule."""

    tau: float
    saliency: bool
    rule: Rule = "paper"

    def __str__(self) -> str:
        """``0.3 with saliency``, and the rule if it is the authors' own."""
        own = "" if self.rule == "paper" else f", rule {self.rule}"
        return f"{self.tau:g} {'with' if self.saliency else 'without'} saliency{own}"

    @property
    def brief(self) -> str:
        """``oaa 0.3``; ``0.2 without sal``."""
        own = "" if self.rule == "paper" else f"{self.rule} "
        return f"{own}{self.tau:g}" + ("" if self.saliency else " without sal")


@dataclass(frozen=True)
class PublishedLabels:
    """The ways to make labels of one method's maps: the benchmark's, and those of its authors."""

    benchmark: PublishedThreshold
    authors: tuple[PublishedThreshold, ...] = ()

    def __str__(self) -> str:
        """In words, with who published what."""
        own = " or ".join(map(str, self.authors))
        return f"{BENCHMARK} {self.benchmark}" + (f"; {AUTHORS} {own}" if own else "")

    @property
    def brief(self) -> str:
        """For a narrow column: ``0.5 (oaa 0.3)``, the authors' first where it is another."""
        first = next((one.brief for one in self.authors if one != self.benchmark), "")
        return self.benchmark.brief + (f" ({first})" if first else "")

    def as_dicts(self) -> list[dict[str, Any]]:
        """As JSON has it."""
        named = [(BENCHMARK, self.benchmark), *((AUTHORS, one) for one in self.authors)]
        return [{"by": by, **vars(one)} for by, one in named]


# The benchmark's: Table 6 of the paper, on VOC 2012; the release's scripts for COCO 2014 (of CAM,
# DRS, EPS and L2G) have the same. EPS and L2G already learnt from saliency maps (Section 3.2).
# The authors': fg_thr of gen_gt.py (OAA, MCIS), --alpha of pseudo_seg_label_gen.py (DRS), alpha of
# the paper with saliency (the README has 0.000001 for maps after a CRF) and the default --theta of
# infer_cls.py without (EDAM), --thr of infer.py (EPS), the constant background score of L2G's test
# scripts. CAM's authors made boxes, not labels.
PUBLISHED: Mapping[str, PublishedLabels] = MappingProxyType(
    {
        "cam": PublishedLabels(PublishedThreshold(0.1, True)),
        "oaa": PublishedLabels(
            PublishedThreshold(0.3, True), (PublishedThreshold(0.3, True, "oaa"),)
        ),
        "mcis": PublishedLabels(
            PublishedThreshold(0.5, True), (PublishedThreshold(0.3, True, "mcis"),)
        ),
        "drs": PublishedLabels(
            PublishedThreshold(0.5, True), (PublishedThreshold(0.2, True, "drs"),)
        ),
        "edam": PublishedLabels(
            PublishedThreshold(0.5, True),
            (PublishedThreshold(0.25, True, "edam"), PublishedThreshold(0.5, False, "edam")),
        ),
        "eps": PublishedLabels(PublishedThreshold(0.2, False), (PublishedThreshold(0.2, False),)),
        "l2g": PublishedLabels(PublishedThreshold(0.3, False), (PublishedThreshold(0.25, False),)),
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


def published(cam_key: str | Key) -> PublishedLabels:
    """What was published for the method that ``cam_key`` names.

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
