"""Making an artifact again from what its provenance says, and comparing the two.

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

from wsssbed_hub.containers import without_tag
from wsssbed_hub.digests import file_digest
from wsssbed_hub.engines import Image, find_image, pull_image
from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.keyfolder import open_entry, read_manifest
from wsssbed_hub.keys import Key
from wsssbed_hub.manifest import Chosen, Ingredient, Provenance
from wsssbed_hub.mounts import FILE_OPTIONS, MAPS_OPTIONS, ROOT_OPTIONS
from wsssbed_hub.reader import Activations, Maps
from wsssbed_hub.registry import Registry, pull
from wsssbed_hub.weights import MODEL, Tensor, read_header

Verdict = Literal["equal", "within tolerance", "different"]

_PREFIX = ["python", "-m", "stages"]
_ROLES = {"--sal": "sal", "--cam": "cam", "--labels": "label", "--weights": "weights"}
_ROLES |= {"--init": "initial-weights"}
_NUMPY = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2"},
    **{"U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8"},
}
_RESUMPTION = ("--fresh", "--resume")


class Difference(NamedTuple):
    """What differs in one image, or in one tensor."""

    name: str
    numbers: int
    """Pixels (of all its maps), or numbers of the tensor."""
    differing: int
    """Those that differ by more than one level."""
    largest: float
    """Largest difference, in levels."""


@dataclass(frozen=True)
class Comparison:
    """How far what was made is from what was published."""

    unit: Literal["pixels", "numbers"]
    published: str
    """Content digests."""
    made: str
    parts: tuple[Difference, ...]
    """Empty if the digests are equal."""
    missing: tuple[str, ...] = ()
    """Images that only one of the two has."""

    @property
    def share(self) -> float:
        """Of all pixels, those that differ by more than one level."""
        numbers = sum(part.numbers for part in self.parts)
        return sum(part.differing for part in self.parts) / numbers if numbers else 0.0

    def verdict(self, tolerance: float) -> Verdict:
        """``tolerance`` is the largest ``share`` that is taken as the same result."""
        if self.published == self.made:
            return "equal"
        near = not self.missing and self.parts and self.share <= tolerance
        return "within tolerance" if near else "different"

    def worst(self, most: int) -> list[Difference]:
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


@dataclass(frozen=True)
class Published:
    """An artifact whose making is known."""

    key: Key
    folder: Path
    """Its key folder, whole and verified."""
    chosen: Chosen
    provenance: Provenance

    def circumstances(self, *, gpus: bool) -> str:
        """What of the machine may change a result."""
        then = self.provenance.environment
        exactly = {True: "deterministic", False: "not deterministic", None: "determinism unknown"}
        where = f"on {then.gpu} (CUDA {then.cuda})" if then.gpu else "on a CPU"
        note = ""
        if bool(then.gpu) != gpus:
            note = f"; here there is {'a GPU' if gpus else 'none'}, so that pixels will differ"
        return (
            f"{self.key}@{self.chosen.version} over {self.chosen.target} was made {where}, torch "
            f"{then.torch}, {exactly[then.deterministic]}{note}."
        )


def find_published(
    key: str, target: str | None, registry: Registry | str | Path | None
) -> Published:
    """Pull an artifact and see how it was made. Raises HubError if its manifest does not say."""
    wanted = Key.parse(key)
    folder = pull(wanted, target, registry=registry)
    chosen = read_manifest(folder).choose(target, wanted.version)
    provenance = chosen.entry.provenance
    if provenance is None:
        raise HubError(f"The manifest of {key} does not say how it was made.")
    if provenance.command[:4] != [*_PREFIX, provenance.stage]:
        raise HubError(
            f"{key} was not made by a stage but by `{' '.join(provenance.command[:4])} …`; that "
            "command makes it again."
        )
    return Published(wanted.unversioned, folder, chosen, provenance)


def locate_image(published: Published, engine: str, repository: str | None) -> Image:
    """The very image that made the artifact, pulled if it is not here. Raises HubError if it is
    not to be had, or if the artifact was not made in an image."""
    made = published.provenance
    if made.image is None or made.image_digest is None:
        raise HubError(
            f"{published.key} was made outside of a container, so that no image is known. By hand: "
            f"{' '.join(made.command)} with wsssbed-hub {made.project_version}"
            + (f" (commit {made.project_commit})" if made.project_commit else "")
        )
    name = without_tag(made.image)
    if repository is not None:
        name = f"{repository.rstrip('/')}/{made.stage}"
    pinned = f"{name}@{made.image_digest}"
    found = find_image(engine, pinned) or find_image(engine, made.image_digest)
    if found is None and pull_image(engine, pinned):
        found = find_image(engine, pinned)
    if found is None:
        raise HubError(
            f"The image {pinned} is neither here nor where {engine} pulls from. If it is in "
            "another registry, name that with --repository. An image that was never pushed exists "
            "only where it was built: build its commit again, and run the command by hand."
        )
    return found


def stage_arguments(published: Published, inputs: Path | None) -> list[str]:
    """The arguments of the command, with what it was made from as it is found here.

    Keys stay keys, with their versions; files are looked for by name in ``inputs``. Raises HubError
    for an input that is not there, or that is another file of the same name.
    """
    words = iter(published.provenance.command[4:])
    arguments: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in _RESUMPTION:
            continue
        if option not in (*ROOT_OPTIONS, *MAPS_OPTIONS, *FILE_OPTIONS):
            arguments.append(word)
            continue
        value = value if equals else next(words, "")
        if option not in ROOT_OPTIONS:
            arguments += [option, _input(option, value, published, inputs)]
    return arguments


def _input(option: str, value: str, published: Published, inputs: Path | None) -> str:
    name = Path(value).name
    of_role = [i for i in published.provenance.made_from if i.role == _ROLES[option]]
    if option in MAPS_OPTIONS:
        return _maps_input(of_role[0], option, inputs) if of_role else value
    named = [ingredient for ingredient in of_role if ingredient.file == name]
    if not named or "/" not in value:
        return value  # a word of the stage's own, such as `timm`
    path = _file_in(inputs, name, option)
    if file_digest(path) != named[0].digest:
        raise HubError(f"{path} is another {name} than the {named[0].digest} that was used.")
    return str(path)


def _maps_input(ingredient: Ingredient, option: str, inputs: Path | None) -> str:
    if ingredient.key is not None:
        return ingredient.key
    return str(_file_in(inputs, Path(ingredient.file or "").name, option))


def _file_in(inputs: Path | None, name: str, option: str) -> Path:
    path = (inputs or Path()) / name
    if inputs is None or not path.exists():
        raise HubError(
            f"The command was given {name} ({option}). Put it into a folder and name that with "
            "--inputs."
        )
    return path.resolve()


def compare(published: Published, out: Path) -> Comparison:
    """What was made below ``out`` against what was published.

    Raises HubError if nothing was made there.
    """
    folder = out / str(published.key)
    manifest = read_manifest(folder)
    version, target, entry = published.chosen
    made = manifest.versions.get(str(version), {}).get(target)
    if made is None:
        raise HubError(f"{folder} holds no {published.key}@{version} over {target}.")
    contents = str(entry.content), str(made.content)
    weights = published.key.kind == "weights"
    unit: Literal["pixels", "numbers"] = "numbers" if weights else "pixels"
    if contents[0] == contents[1]:
        return Comparison(unit, *contents, ())
    place = f"{target}/{version}/{MODEL}"
    if weights:
        parts, missing = compare_weights(published.folder / place, folder / place)
        return Comparison(unit, *contents, parts, missing)
    maps = [
        open_entry(where, read_manifest(where), Chosen(version, target, one))
        for where, one in ((published.folder, entry), (folder, made))
    ]
    parts, missing = compare_maps(*maps)
    return Comparison(unit, *contents, parts, missing)


def compare_maps(one: Maps, other: Maps) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
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
) -> Difference:
    pixels = [maps.activations if isinstance(maps, Activations) else maps for maps in (one, other)]
    classes = [maps.class_ids if isinstance(maps, Activations) else () for maps in (one, other)]
    number = pixels[0].size
    if pixels[0].shape != pixels[1].shape or list(classes[0]) != list(classes[1]):
        return Difference(image_id, number, number, 255)
    apart = np.abs(pixels[0].astype(np.int16) - pixels[1])
    return Difference(image_id, number, int((apart > level).sum()), float(apart.max()))


def compare_weights(one: Path, other: Path) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
    """The same for two safetensors files; one level is 1/255 of the tensor's largest magnitude."""
    here, there = ({tensor.name: tensor for tensor in read_header(path)} for path in (one, other))
    missing = tuple(sorted(set(here) ^ set(there)))
    found = tuple(
        _weights_difference(name, _numbers(one, here[name]), _numbers(other, there[name]))
        for name in sorted(set(here) & set(there))
    )
    return found, missing


def _numbers(path: Path, tensor: Tensor) -> np.ndarray:
    """float64, or the bytes of a type that numpy does not know."""
    with open(path, "rb") as file:
        file.seek(tensor.begin)
        data = file.read(tensor.end - tensor.begin)
    if tensor.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(float)
    found = np.frombuffer(data, _NUMPY.get(tensor.dtype, "u1"))
    return found.astype(float).reshape(tensor.shape if tensor.dtype in _NUMPY else -1)


def _weights_difference(name: str, one: np.ndarray, other: np.ndarray) -> Difference:
    if one.shape != other.shape:
        return Difference(name, max(one.size, 1), max(one.size, 1), 255)
    with np.errstate(invalid="ignore"):
        scale = np.abs(one[np.isfinite(one)]).max(initial=0) or 1.0
        apart = np.where(one == other, 0, np.abs(one - other) / scale * 255)
    apart[np.isnan(one) & np.isnan(other)] = 0
    apart[np.isnan(apart)] = 255
    return Difference(name, max(one.size, 1), int((apart > 1).sum()), float(apart.max(initial=0)))
