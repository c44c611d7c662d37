"""Every claim of a manifest's entry, proved on what its source holds: `check --fetch`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsssbed_hub.artifacts.key_folder import MANIFEST, open_entry, verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Chosen, Manifest, UrlSource
from wsssbed_hub.evaluation.inspect import About, Expectation, Problem, expectation_of, inspect_maps
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.multi import Registries
from wsssbed_hub.registry.pull import open_registry, pull
from wsssbed_hub.review.check_manifest import read
from wsssbed_hub.review.recompute import Claim, Recomputation
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.progress import Progress, share
from wsssbed_hub.utils.text import count

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.maps import Maps

_ABOUT: dict[About, str] = {
    "ids": "images are those of the target",
    "sizes": "maps have the size of their images",
    "classes": "classes are the image-level labels",
    "values": "maps can be read and hold what such maps hold",
}
_ORDER = ("failed", "not checked", "proved")


@dataclass
class Proof:
    """The fate of the claims of one entry; ``maps`` and what they are compared with, as far as
    these could be opened."""

    manifest: Manifest
    chosen: Chosen
    claims: list[Claim] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    maps: Maps | None = None
    expected: Expectation | None = None
    again: Recomputation | None = None

    @property
    def where(self) -> str:
        return f"{self.chosen.version}/{self.chosen.target}"

    def errors(self) -> Iterator[Problem]:
        """One problem for each claim that failed and all that the maps show."""
        yield from self.problems
        for claim in self.claims:
            if claim.outcome == "failed" and claim.what not in _ABOUT.values():
                yield Problem("error", f"{self.where}: {claim}")

    def unchecked(self) -> list[str]:
        """The claims that could not be checked, and why."""
        return [f"{self.where}: {c}" for c in self.claims if c.outcome == "not checked"]

    def sorted_claims(self) -> list[Claim]:
        """Failed ones first, proved ones last."""
        return sorted(self.claims, key=lambda claim: _ORDER.index(claim.outcome))


def prove(
    path: Path,
    manifest: Manifest,
    chosen: Chosen,
    data_root: Path,
    progress: Progress | None = None,
) -> Proof:
    """Fetches the files of an entry of the manifest at ``path`` and proves what is said of them.

    ``progress(bytes, of)`` as it goes: once as they are fetched, and again each time they are read.
    What is proved is every digest, number and list; for maps what the target has to say if it is
    below ``data_root`` (ids, sizes, classes), and what decoded maps tell; and the results, computed
    again. What is not at hand is a claim that was not checked.
    """
    proof = Proof(manifest, chosen)
    place = _place(path, manifest)
    try:
        folder = pull(
            manifest.parsed_key.at(chosen.version),
            chosen.target,
            registry=place,
            data_root=data_root,
            progress=progress,
        )
        verify_folder(folder, progress=progress)
        here = read(folder / MANIFEST)
        (entry,) = here.entries()
        proof.claims += _bytes(chosen)
        if manifest.kind != "weights":
            proof.maps = open_entry(folder, here, entry)
            proof.expected = expectation_of(chosen.target, data_root)
            steps = share(progress, 0, entry.entry.size, entry.entry.size)
            proof.problems = inspect_maps(proof.maps, proof.expected, steps)
            proof.claims += _structure(proof.expected, proof.problems, manifest.kind, data_root)
    except HubError as error:
        proof.claims.append(Claim("the files are what the manifest says", "failed", str(error)))
        return proof
    proof.again = Recomputation(manifest, chosen, proof.maps, data_root, place)
    proof.claims += proof.again.claims()
    return proof


def _bytes(chosen: Chosen) -> Iterator[Claim]:
    """Claims that ``pull`` and ``verify_folder`` have proved; what is not stated is not claimed."""
    entry, source = chosen.entry, chosen.entry.source
    if entry.files:
        files = count(len(entry.files), "file")
        yield Claim("sizes and sha256 of the files", "proved", f"{files}, {entry.size:,} bytes")
    if isinstance(source, UrlSource):
        if source.sha256 is None:
            reason = f"{source.release} was published without checksums; the lock file pins it now"
            yield Claim("sha256 of the zip", "not checked", reason)
        else:
            yield Claim("sha256 of the zip", "proved", source.sha256)
    if entry.images is not None:
        yield Claim("number of images", "proved", f"{entry.images:,}")
    for what, digest in (("list of images", entry.image_list), ("content", entry.content)):
        if digest is not None:
            yield Claim(what, "proved", digest)


def _structure(
    expected: Expectation, problems: list[Problem], kind: str, data_root: Path
) -> Iterator[Claim]:
    """Claims that a comparison with the target, and a look at the maps, decided."""
    wrong = {one.about: str(one) for one in reversed(problems) if one.severity == "error"}
    for about, what in _ABOUT.items():
        if about == "classes" and kind == "sal":
            continue
        if about in wrong:
            yield Claim(what, "failed", wrong[about])
        elif about != "values" and expected.target is None:
            number = (
                f"; {expected.count:,} images at least" if about == "ids" and expected.count else ""
            )
            reason = f"{expected.name} is not below {data_root}{number}"
            yield Claim(what, "not checked", f"not checked, because {reason}")
        else:
            yield Claim(what, "proved")


class _OneManifest(IndexRegistry):
    """The manifest that is checked, wherever it lies, and those beside it."""

    def __init__(self, root: Path, manifest: Manifest):
        super().__init__(root)
        self.manifest = manifest

    def find(self, key: Key) -> Manifest:
        if key.unversioned == self.manifest.parsed_key:
            return self.manifest
        return super().find(key)


def _place(path: Path, manifest: Manifest) -> Registries:
    """Where the maps are found, and those that they were measured with: first beside the manifest
    (a pull request may add both), then wherever the user's maps are."""
    return Registries([_OneManifest(path.parent.parent, manifest), open_registry()])
