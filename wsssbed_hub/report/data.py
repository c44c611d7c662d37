"""The contents of a report, as plain data: everything else in this package renders it.

Ratios are fractions in [0, 1]; a number that is not known or not defined is None. Every text may
come from a manifest or a file name of somebody else, so characters that steer a terminal or turn
the direction of writing are dropped here, and each renderer escapes the rest.
"""

from __future__ import annotations

import base64
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from wsssbed_hub.artifacts.lineage import Node
from wsssbed_hub.artifacts.manifest import Digest, Model, Threshold
from wsssbed_hub.utils.text import Printable

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Maybe = Share | None


class Basis(Model):
    """The images and settings of a measurement. Only numbers with an equal basis are compared.

    ``details`` are further things that the number depends on (network, CRF, rule…), by name.
    """

    split: Printable
    images: Annotated[int, Field(ge=1)]
    image_list: Digest | None = None
    details: dict[Printable, Printable] = Field(default_factory=dict)


class SaliencyScore(Model):
    """Quality of a saliency map: mean absolute error, maximum F-measure, S-measure."""

    mae: Maybe = None
    max_f: Maybe = None
    s_measure: Maybe = None
    basis: Basis


class OwnLabelScore(Model):
    """Pseudo labels as they are against the ground truth: no tau that we know of made them.

    ``miou_ignored_missed`` counts ignored pixels as misses: this is the number that labels are
    compared by. ``miou`` is over the labelled pixels alone, ``coverage`` their share.
    ``per_class`` are the IoU behind ``miou_ignored_missed``, background first.
    """

    miou_ignored_missed: Maybe = None
    miou: Maybe = None
    coverage: Maybe = None
    per_class: list[Maybe] = Field(default_factory=list)
    basis: Basis


class LabelScore(OwnLabelScore):
    """The same of labels at one tau (see ``wsssbed_hub.evaluation.curves``)."""

    threshold: Threshold


class SegmentationScore(Model):
    """A segmentation network trained on the labels: mean over ``seeds``, standard error of it."""

    miou: Maybe = None
    standard_error: Maybe = None
    seeds: list[int] = Field(default_factory=list)
    threshold: Threshold | None = None
    per_class: list[Maybe] = Field(default_factory=list)
    basis: Basis


class Curve(Model):
    """Label quality at every distinct tau; the fields mean what those of LabelScore mean."""

    taus: list[Share]
    miou_ignored_missed: list[Maybe]
    miou: list[Maybe]
    coverage: list[Maybe]


class ResultRow(Model):
    """One line of the results: labels made from one saliency map, from none, made elsewhere (role
    ``labels``), or given by people; or a network that learnt without such labels.

    Rows with equal ``activations`` are compared with each other; for a method that is trained
    with saliency maps this is the method's name, not one key. ``fixed`` are the labels at a tau
    that no ground truth chose (published default or given), ``best`` those at the best tau,
    ``own`` labels that were made elsewhere.
    """

    name: Printable
    role: Literal["saliency", "no saliency", "labels", "network", "ground truth"] = "saliency"
    activations: Printable = ""
    saliency: SaliencyScore | None = None
    fixed: LabelScore | None = None
    best: LabelScore | None = None
    own: OwnLabelScore | None = None
    curve: Curve | None = None
    segmentation: SegmentationScore | None = None


class Picture(Model):
    """An encoded picture and what it shows."""

    what: Printable
    media: Literal["image/png", "image/jpeg"]
    data: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*=*$")]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    pixelated: bool = False

    @property
    def uri(self) -> str:
        return f"data:{self.media};base64,{self.data}"

    @classmethod
    def of(cls, what: str, encoded: bytes, shape: tuple[int, ...], **rest: bool) -> Picture:
        """The PNG or JPEG file ``encoded`` of an array of ``shape``."""
        png = encoded.startswith(b"\x89PNG")
        return cls(
            what=what,
            media="image/png" if png else "image/jpeg",
            data=base64.b64encode(encoded).decode(),
            height=shape[0],
            width=shape[1],
            **rest,
        )


class GalleryRow(Model):
    """One image of the target; ``cells`` are the pictures of each column, none where there are
    none, several where an image has several classes."""

    image_id: Printable
    classes: list[int] = Field(default_factory=list)
    cells: list[list[Picture]]


class Gallery(Model):
    """Images with what was made of them; ``shown`` are the label values in it, for the legend."""

    columns: list[Printable]
    rows: list[GalleryRow]
    shown: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=list)

    @property
    def widths(self) -> list[int]:
        """How many pictures stand side by side in each column: two if an image has several."""
        return [
            2 if any(len(row.cells[column]) > 1 for row in self.rows) else 1
            for column in range(len(self.columns))
        ]


class Report(Model):
    """One run, or several artifacts compared. ``classes`` are without background."""

    title: Printable
    target: Printable
    settings: dict[Printable, Printable] = Field(default_factory=dict)
    classes: list[Printable] = Field(default_factory=list)
    rows: list[ResultRow] = Field(default_factory=list)
    gallery: Gallery | None = None
    provenance: list[Node] = Field(default_factory=list)
    made_by: Printable = ""

    @cached_property
    def used(self) -> list[Node]:
        """Every artifact and file of the provenance trees, once, in order of appearance."""
        nodes = {(node.name, node.digest): node for tree in self.provenance for node in tree.walk()}
        return list(nodes.values())

    def dump(self, *, pictures: bool = False) -> str:
        """As JSON; the pictures of the gallery are megabytes and left out unless asked for."""
        without = None if pictures else {"gallery"}
        return self.model_dump_json(indent=2, exclude=without, exclude_none=True) + "\n"
