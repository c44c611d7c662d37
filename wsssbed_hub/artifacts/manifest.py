"""The manifest: one YAML file that says all about one key, and the models that check it.

What is not known is absent, never invented. Unknown fields are errors. ``json_schema`` gives the
schema that editors use; it is committed as ``manifests/manifest.schema.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wsssbed_hub.artifacts.keys import Key, Version
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.safe_yaml import load_yaml

MAX_BYTES = 4 << 20  # an entry with full provenance is about 3 kB

WEIGHTS_FILES = {"model.safetensors", "config.json"}

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Rule = Literal["paper", "release", "oaa", "mcis", "drs", "edam"]
_PLAIN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
Supervision = Literal["pixel masks", "image labels", "self-supervised", "unsupervised", "none"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodCitation(Model):
    """The method that made the maps, as its paper names it, and where it was published."""

    name: Text
    paper: Text | None = None
    code: Text | None = None
    licence: Text | None = None


class TrainedOn(Model):
    """A dataset that the method was trained on, and what of it supervised the training.

    ``target`` restricts it to the entries over that target: an activation map over ``voc12`` comes
    from a network trained on ``voc12``.
    """

    dataset: Name | None = None
    target: Name | None = None
    images: Annotated[int, Field(ge=1)] | None = None
    supervision: Supervision


class File(Model):
    """One file of a version: POSIX path below the key's folder, size in bytes, sha256."""

    path: str
    size: Annotated[int, Field(ge=0)]
    sha256: Digest

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        plain = all(re.fullmatch(_PLAIN, part, re.ASCII) for part in parts)
        if not parts or not plain or str(PurePosixPath(path)) != path:
            raise ValueError(f"{path[:200]!r} is not a plain relative path")
        return path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


class HubSource(Model):
    """Files in a dataset repository of the Hugging Face Hub, at one commit."""

    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    commit: Commit


class UrlSource(Model):
    """A zip of PNGs in the release layout, somewhere on the web.

    ``release`` names the release that it is part of, if that was published without checksums: then
    the first pull pins them in the lock file (see ``wsssbed_hub.registry.release.lockfile``).
    """

    url: Annotated[str, Field(pattern=r"^https?://\S+$", max_length=2000)]
    release: Text | None = None
    size: Annotated[int, Field(ge=1)] | None = None
    sha256: Digest | None = None


class Ingredient(Model):
    """An artifact or a file that this one was made from."""

    role: Name
    key: str | None = None
    file: Text | None = None
    digest: Digest

    @model_validator(mode="after")
    def _named_once(self) -> Ingredient:
        if (self.key is None) == (self.file is None):
            raise ValueError("an ingredient has a key or a file name, one of the two")
        if self.key is not None:
            Key.parse(self.key)
        return self


class Environment(Model):
    """The machine and the versions that were at work.

    ``instructions`` are the widest that torch used on the CPU, ``threads`` those of one process,
    ``settings`` the variables of ``wsssbed_hub.utils.arithmetic`` that were set: on all of them
    the last bits of a sum depend.
    """

    python: str
    torch: str | None = None
    cuda: str | None = None
    gpu: str | None = None
    precision: Literal["float32", "tf32", "bf16", "fp16"] | None = None
    deterministic: bool | None = None
    processes: Annotated[int, Field(ge=1)] = 1
    processor: Text | None = None
    instructions: Text | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    settings: dict[str, str] = {}
    packages: dict[str, str] = {}


class Provenance(Model):
    """The making of a version: enough to make it again."""

    stage: Name
    command: list[str]
    project_version: str
    project_commit: Commit | None = None
    image: Text | None = None
    image_digest: Digest | None = None
    date: datetime
    seed: int | None = None
    recipe: dict[str, Any] = {}
    selection: Text | None = None
    environment: Environment
    made_from: list[Ingredient] = []


class Threshold(Model):
    """A tau, in [0, 1], and where it came from.

    ``origin`` is ``given`` (by the caller), ``published`` (the benchmark's for the method),
    ``authors`` (that of the method's own authors) or ``curve`` (the best of a curve, read off the
    ground truth of ``split``).
    """

    tau: Annotated[float, Field(ge=0, le=1)]
    origin: Literal["given", "published", "authors", "curve"]
    split: Text | None = None

    @model_validator(mode="after")
    def _split_with_curve(self) -> Threshold:
        if (self.origin == "curve") != (self.split is not None):
            raise ValueError("a tau read off a curve names the split, any other tau does not")
        return self


class Result(Model):
    """A measured number and what it depends on. Ratios are fractions, not percent.

    Of activation maps: ``saliency`` are the maps that took part in labelling, at ``sal_threshold``.
    """

    metric: Text
    value: Annotated[float, Field(allow_inf_nan=False)]
    standard_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    seeds: list[int] = []
    images: Annotated[int, Field(ge=1)]
    image_list: Digest
    split: Text
    threshold: Threshold | None = None
    saliency: Ingredient | None = None
    sal_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    rule: Rule | None = None
    crf: bool = False
    initial_weights: Text | None = None
    note: Text | None = None


class Entry(Model):
    """One version of one key over one target.

    ``content`` is the digest of the decoded maps (see ``wsssbed_hub.artifacts.digests``);
    ``image_list`` the digest of the ids. The bytes are beside the manifest unless ``source``
    says otherwise.
    """

    images: Annotated[int, Field(ge=1)] | None = None
    image_list: Digest | None = None
    content: Digest | None = None
    files: list[File] = []
    source: HubSource | UrlSource | None = None
    provenance: Provenance | None = None
    results: list[Result] = []

    @model_validator(mode="after")
    def _has_bytes(self) -> Entry:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is listed twice")
        if not self.files and not isinstance(self.source, UrlSource):
            raise ValueError("no files and no url: there is nothing to fetch")
        if self.files and self.content is None:
            raise ValueError("files without a content digest")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Manifest(Model):
    """Everything about one key, all versions and targets.

    ``trained_with`` are the keys of artifacts that the training saw, such as the saliency maps of
    EPS, where no more is known of them than that; a provenance says it with digests.
    """

    schema_version: Literal[1] = 1
    key: str
    kind: Literal["sal", "cam", "label", "weights"]
    title: Text
    method: MethodCitation
    trained_on: list[TrainedOn] = []
    trained_with: list[str] = []
    licence: Text | None = None
    versions: dict[str, dict[str, Entry]]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        try:
            key = Key.parse(self.key)
            versions = [Version.parse(version) for version in self.versions]
            for other in self.trained_with:
                Key.parse(other)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if key.version is not None:
            raise ValueError("a manifest's key has no version: it speaks of all of them")
        if key.kind != self.kind:
            raise ValueError(f"kind {self.kind!r} contradicts the key {self.key!r}")
        if not versions:
            raise ValueError("a manifest without versions")
        for version, targets in self.versions.items():
            if not targets:
                raise ValueError(f"version {version} covers no target")
            for target, entry in targets.items():
                _check_entry(self.kind, version, target, entry)
        return self

    @property
    def parsed_key(self) -> Key:
        return Key.parse(self.key)

    def targets(self) -> list[str]:
        return sorted({target for targets in self.versions.values() for target in targets})

    def latest(self, target: str | None = None) -> Version:
        """The highest version, of those that cover ``target`` if one is named.

        Raises UsageError if no version covers ``target``.
        """
        return self.choose(target).version if target else self._numbers()[-1]

    def entry(self, version: Version | str, target: str) -> Entry:
        """Raises UsageError if there is no such version, or none over ``target``."""
        return self.choose(target, Version.parse(str(version))).entry

    def choose(self, target: str | None = None, version: Version | None = None) -> Chosen:
        """The entry that is meant: the only target if none is named, the highest version of those
        that cover the target if none is named.

        Raises UsageError if there is no such entry, or if there are several targets to choose from.
        """
        if version is not None and str(version) not in self.versions:
            have = ", ".join(map(str, self._numbers()))
            raise UsageError(f"{self.key} has no version {version}. It has {have}.")
        numbers = self._numbers() if version is None else [version]
        covered = sorted({name for number in numbers for name in self.versions[str(number)]})
        whose = self.key if version is None else f"{self.key}@{version}"
        if target is None:
            if len(covered) > 1:
                raise UsageError(f"{whose} covers {', '.join(covered)}. Choose one with --target.")
            target = covered[0]
        elif target not in covered:
            raise UsageError(
                f"{whose} has nothing over {target!r}, only over {', '.join(covered)}. Choose one "
                "with --target."
            )
        number = max(number for number in numbers if target in self.versions[str(number)])
        return Chosen(number, target, self.versions[str(number)][target])

    def _numbers(self) -> list[Version]:
        return sorted(Version.parse(version) for version in self.versions)

    def entries(self) -> Iterator[Chosen]:
        """All entries, in the order of versions and then targets."""
        for number in self._numbers():
            for target, entry in sorted(self.versions[str(number)].items()):
                yield Chosen(number, target, entry)

    def with_entries(self, entries: Iterable[Chosen]) -> Manifest:
        """This manifest with ``entries`` for its own."""
        versions: dict[str, dict[str, Entry]] = {}
        for number, target, entry in sorted(entries, key=lambda chosen: chosen[:2]):
            versions.setdefault(str(number), {})[target] = entry
        return Manifest.model_validate(self.model_copy(update={"versions": versions}).model_dump())

    def dump(self) -> str:
        """The manifest as YAML, fields in the order of the model, nothing that is not set."""
        data = self.with_entries(self.entries()).model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(
            {"schema_version": self.schema_version} | data, sort_keys=False, width=100
        )


class Chosen(NamedTuple):
    """One entry and where it stands in its manifest."""

    version: Version
    target: str
    entry: Entry


def _check_entry(kind: str, version: str, target: str, entry: Entry) -> None:
    where = f"{version}/{target}"
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", target, re.ASCII):
        raise ValueError(f"{target!r} is not a target")
    for file in entry.files:
        if PurePosixPath(file.path).parent != PurePosixPath(target, version):
            raise ValueError(f"{file.path!r} does not lie in {target}/{version}/")
    known = (entry.images, entry.image_list)
    if kind == "weights":
        if known != (None, None):
            raise ValueError(f"{where}: weights are not over a list of images")
        if entry.files and {file.name for file in entry.files} != WEIGHTS_FILES:
            names = " and ".join(sorted(WEIGHTS_FILES))
            raise ValueError(f"{where}: weights are the files {names}")
    elif entry.files:
        if None in known:
            raise ValueError(f"{where}: maps without their number of images, or without image_list")
        if not all(file.name.endswith(".parquet") for file in entry.files):
            raise ValueError(f"{where}: maps are .parquet files")


def parse_manifest(text: bytes | str, name: str = "manifest.yaml") -> Manifest:
    """The manifest that ``text`` holds.

    Raises HubError that names the file and each wrong field.
    """
    if len(text) > MAX_BYTES:
        raise HubError(f"{name}: {len(text):,} bytes is too much for a manifest.")
    data = load_yaml(text, name)
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        wrong = "\n".join(
            f"  {'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)[:20]
        )
        raise HubError(f"{name} is not a valid manifest:\n{wrong}") from None


def json_schema() -> dict[str, Any]:
    """JSON schema of the manifest, for editors and for other languages."""
    return Manifest.model_json_schema()
