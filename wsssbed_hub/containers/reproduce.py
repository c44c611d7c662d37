"""Making an artifact again from what its provenance says, to compare the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsssbed_hub.artifacts.digests import file_digest
from wsssbed_hub.artifacts.key_folder import open_entry, read_manifest
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Chosen, Ingredient, Provenance
from wsssbed_hub.artifacts.stage_command import (
    FILE_OPTIONS,
    MAPS_OPTIONS,
    ROOT_OPTIONS,
    Argument,
    parse,
)
from wsssbed_hub.artifacts.weights import MODEL
from wsssbed_hub.containers.command import without_tag
from wsssbed_hub.containers.engines import LocalImage, find_image, pull_image
from wsssbed_hub.evaluation.differences import ArtifactDifference, compare_maps, compare_weights
from wsssbed_hub.registry.base import Registry
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.utils.arithmetic import INSTRUCTIONS, SETTINGS, THREADS
from wsssbed_hub.utils.errors import HubError

_PREFIX = ["python", "-m", "stages"]
_ROLES = {"--sal": "sal", "--cam": "cam", "--labels": "label", "--maps": "sal"}
_ROLES |= {"--weights": "weights", "--init": "initial-weights"}
_RESUMPTION = ("--fresh", "--resume")


@dataclass(frozen=True)
class Published:
    """An artifact whose making is known."""

    key: Key
    folder: Path
    """Its key folder, whole and verified."""
    chosen: Chosen
    provenance: Provenance

    def circumstances(self, *, gpus: bool) -> str:
        """The machine of then, and what of it may change a result here."""
        then = self.provenance.environment
        exactly = {True: "deterministic", False: "not deterministic", None: "determinism unknown"}
        where = f"on {then.gpu} (CUDA {then.cuda})" if then.gpu else "on the CPU"
        cpu = f"{then.processor or 'an unknown processor'}, {then.instructions or 'unknown'}"
        cpu += f" instructions, {then.threads or 'an unknown number of'} threads"
        note = ""
        if bool(then.gpu) != gpus:
            note = f"; here there is {'a GPU' if gpus else 'none'}, so that pixels will differ"
        return (
            f"{self.key}@{self.chosen.version} over {self.chosen.target} was made {where} ({cpu}), "
            f"torch {then.torch}, {exactly[then.deterministic]}{note}."
        )

    @property
    def settings(self) -> dict[str, str]:
        """The variables that fix the arithmetic as it was, as far as they are known.

        A manifest is somebody else's: no other variable goes from there into a container.
        """
        then = self.provenance.environment
        found = {name: then.settings[name] for name in SETTINGS if name in then.settings}
        if then.instructions == "AVX2":
            found |= {name: SETTINGS[name] for name in INSTRUCTIONS}
        if then.threads is not None:
            found[THREADS] = str(then.threads)
        return found


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


def locate_image(published: Published, engine: str, repository: str | None) -> LocalImage:
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
    made_from = published.provenance.made_from
    roles = {role: [i for i in made_from if i.role == role] for role in _ROLES.values()}
    arguments: list[str] = []
    for part in parse(published.provenance.command[4:]):
        if part.option in (*_RESUMPTION, *ROOT_OPTIONS):
            continue
        if part.option in MAPS_OPTIONS and roles[_ROLES[part.option]]:
            used = roles[_ROLES[part.option]].pop(0)  # in the order of the command
            part = part._replace(value=_maps_input(used, part.option, inputs))
        elif part.option in FILE_OPTIONS:
            part = part._replace(value=_file_input(part, roles[_ROLES[part.option]], inputs))
        arguments += part.words
    return arguments


def _file_input(part: Argument, of_role: Sequence[Ingredient], inputs: Path | None) -> str:
    value = part.value or ""
    name = Path(value).name
    named = [ingredient for ingredient in of_role if ingredient.file == name]
    if not named or "/" not in value:
        return value  # a word of the stage's own, such as `timm`
    path = _file_in(inputs, name, str(part.option))
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


def compare_with_published(published: Published, out: Path) -> ArtifactDifference:
    """The artifact that was made below ``out`` against the published one.

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
        return ArtifactDifference(unit, *contents, ())
    place = f"{target}/{version}/{MODEL}"
    if weights:
        parts, missing = compare_weights(published.folder / place, folder / place)
        return ArtifactDifference(unit, *contents, parts, missing)
    maps = [
        open_entry(where, read_manifest(where), Chosen(version, target, one))
        for where, one in ((published.folder, entry), (folder, made))
    ]
    parts, missing = compare_maps(*maps)
    return ArtifactDifference(unit, *contents, parts, missing)
