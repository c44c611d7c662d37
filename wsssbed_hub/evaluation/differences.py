"""How far two artifacts are from one another.

Equal means the same content digest. Otherwise pixels are compared: an image counts with the pixels
that differ by more than one level of 255 (in labels, where levels mean nothing, by anything), in
weights a number counts that differs by more than 1/255 of the largest magnitude of its tensor.
Another GPU, or one without deterministic algorithms, changes a few of them; another recipe, seed or
dataset changes most.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from wsssbed_hub.artifacts.maps import Activations, Maps
from wsssbed_hub.artifacts.weights import Tensor, read_header
from wsssbed_hub.utils.errors import UsageError

Agreement = Literal["equal", "within tolerance", "different"]

_NUMPY = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2"},
    **{"U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8"},
}


class PartDifference(NamedTuple):
    """Difference of one image, or of one tensor."""

    name: str
    numbers: int
    """Pixels (of all its maps), or numbers of the tensor."""
    differing: int
    """Those that differ by more than one level."""
    largest: float
    """Largest difference, in levels."""


@dataclass(frozen=True)
class ArtifactDifference:
    """How far what was made is from what was published."""

    unit: Literal["pixels", "numbers"]
    published: str
    """Content digests."""
    made: str
    parts: tuple[PartDifference, ...]
    """Empty if the digests are equal."""
    missing: tuple[str, ...] = ()
    """Images that only one of the two has."""

    @property
    def share(self) -> float:
        """Of all pixels, those that differ by more than one level."""
        numbers = sum(part.numbers for part in self.parts)
        return sum(part.differing for part in self.parts) / numbers if numbers else 0.0

    def verdict(self, tolerance: float) -> Agreement:
        """``tolerance`` is the largest ``share`` that is taken as the same result."""
        if self.published == self.made:
            return "equal"
        near = not self.missing and self.parts and self.share <= tolerance
        return "within tolerance" if near else "different"

    def worst(self, most: int) -> list[PartDifference]:
        """The parts that differ most, and by more than nothing."""
        order = sorted(self.parts, key=lambda p: (-p.differing / p.numbers, -p.largest, p.name))
        return [part for part in order if part.largest > 0][:most]

    def sentence(self, tolerance: float) -> str:
        verdict = self.verdict(tolerance)
        if verdict == "equal":
            return f"equal: {self.made}"
        text = (
            f"{verdict}: {self.share:.4%} of the {self.unit} differ by more than one level "
            f"(tolerance {tolerance:.4%}), {sum(part.largest > 0 for part in self.parts):,} of "
            f"{len(self.parts):,} {'images' if self.unit == 'pixels' else 'tensors'} are affected, "
            f"by {max((part.largest for part in self.parts), default=0):.1f} levels at most"
        )
        if self.missing:
            text += f"; only one of the two has {', '.join(self.missing[:5])}"
            text += f" and {len(self.missing) - 5:,} more" if len(self.missing) > 5 else ""
        return f"{text}\npublished {self.published}\nmade      {self.made}"

    def rows(self, most: int) -> list[dict[str, Any]]:
        """The worst parts, for a table."""
        return [
            {
                "image" if self.unit == "pixels" else "tensor": part.name,
                self.unit: part.numbers,
                "differing": part.differing,
                "share": f"{part.differing / part.numbers:.4%}",
                "largest": round(part.largest, 1),
            }
            for part in self.worst(most)
        ]

    def as_json(self, tolerance: float, most: int) -> dict[str, Any]:
        return {
            "verdict": self.verdict(tolerance),
            "share": self.share,
            "tolerance": tolerance,
            "unit": self.unit,
            "published": self.published,
            "made": self.made,
            "missing": list(self.missing),
            "worst": [part._asdict() for part in self.worst(most)],
        }


def compare_maps(one: Maps, other: Maps) -> tuple[tuple[PartDifference, ...], tuple[str, ...]]:
    """Differences image by image, and the images that only one of the two has.

    Maps of another size, or of other classes, differ in every pixel. Raises UsageError if the two
    are of different kinds.
    """
    if one.kind != other.kind:
        raise UsageError(f"{one.name} and {other.name} are maps of different kinds.")
    level = 0 if one.kind == "label" else 1
    both = sorted(set(one.image_ids) & set(other.image_ids))
    missing = tuple(sorted(set(one.image_ids) ^ set(other.image_ids)))
    found = tuple(_difference(i, one.read(i), other.read(i), level) for i in both)
    return found, missing


def _difference(
    image_id: str, one: np.ndarray | Activations, other: np.ndarray | Activations, level: int
) -> PartDifference:
    pixels = [maps.activations if isinstance(maps, Activations) else maps for maps in (one, other)]
    classes = [maps.class_ids if isinstance(maps, Activations) else () for maps in (one, other)]
    number = pixels[0].size
    if pixels[0].shape != pixels[1].shape or list(classes[0]) != list(classes[1]):
        return PartDifference(image_id, number, number, 255)
    apart = np.abs(pixels[0].astype(np.int16) - pixels[1])
    return PartDifference(image_id, number, int((apart > level).sum()), float(apart.max()))


def compare_weights(one: Path, other: Path) -> tuple[tuple[PartDifference, ...], tuple[str, ...]]:
    """The same for two safetensors files; one level is 1/255 of the tensor's largest magnitude."""
    here, there = ({tensor.name: tensor for tensor in read_header(path)} for path in (one, other))
    missing = tuple(sorted(set(here) ^ set(there)))
    found = tuple(
        _weights_difference(name, numbers_of(one, here[name]), numbers_of(other, there[name]))
        for name in sorted(set(here) & set(there))
    )
    return found, missing


def numbers_of(path: Path, tensor: Tensor) -> np.ndarray:
    """float64, or the bytes of a type that numpy does not know."""
    with open(path, "rb") as file:
        file.seek(tensor.begin)
        data = file.read(tensor.end - tensor.begin)
    if tensor.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(float)
    found = np.frombuffer(data, _NUMPY.get(tensor.dtype, "u1"))
    return found.astype(float).reshape(tensor.shape if tensor.dtype in _NUMPY else -1)


def _weights_difference(name: str, one: np.ndarray, other: np.ndarray) -> PartDifference:
    if one.shape != other.shape:
        return PartDifference(name, max(one.size, 1), max(one.size, 1), 255)
    with np.errstate(invalid="ignore"):
        scale = np.abs(one[np.isfinite(one)]).max(initial=0) or 1.0
        apart = np.where(one == other, 0, np.abs(one - other) / scale * 255)
    apart[np.isnan(one) & np.isnan(other)] = 0
    apart[np.isnan(apart)] = 255
    return PartDifference(
        name, max(one.size, 1), int((apart > 1).sum()), float(apart.max(initial=0))
    )
