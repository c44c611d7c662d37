"""The manifest: one YAML file that says all about one key, and the models that check it.

What is not known is absent, never invented. Unknown fields are errors. ``json_schema`` gives the
schema that editors use; it is committed as ``manifests/manifest.schema.json``.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wsssbed_hub.errors import HubError, UsageError
from wsssbed_hub.keys import Key, Version

MAX_BYTES = 16 << 20  # a manifest of 130 versions is far below this; a hostile one is not

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Rule = Literal["paper", "release"]
Supervision = Literal["pixel masks", "image labels", "self-supervised", "unsupervised", "none"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Model):
    """Who thought of it: the method that made the maps, as its paper names it."""

    name: Text
    paper: Text | None = None
    code: Text | None = None
    licence: Text | None = None


class TrainedOn(Model):
    """A dataset that the method was trained on, and what of it supervised the training."""

    dataset: Name
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
        plain = all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part, re.ASCII) for part in parts)
        if not parts or not plain or str(PurePosixPath(path)) != path:
            raise ValueError(f"{path!r} is not a plain relative path")
        return path


class HubSource(Model):
    """Files in a dataset repository of the Hugging Face Hub, at one commit."""

    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    commit: Commit


class UrlSource(Model):
    """One file somewhere on the web; without a sha256 the first pull pins one."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]


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
    """The machine and the versions that were at work."""

    python: str
    torch: str | None = None
    cuda: str | None = None
    gpu: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    deterministic: bool | None = None
    processes: Annotated[int, Field(ge=1)] = 1
    packages: dict[str, str] = {}


class Provenance(Model):
    """How a version was made: enough to make it again."""

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

    ``origin`` is ``given`` (by the caller), ``published`` (the method's default) or ``curve``
    (the best of a curve, read off the ground truth of ``split``).
    """

    tau: Annotated[float, Field(ge=0, le=1)]
    origin: Literal["given", "published", "curve"]
    split: Text | None = None

    @model_validator(mode="after")
    def _split_with_curve(self) -> Threshold:
        if (self.origin == "curve") != (self.split is not None):
            raise ValueError("a tau read off a curve names the split, any other tau does not")
        return self


class Result(Model):
    """A measured number and what it depends on. Ratios are fractions, not percent."""

    metric: Text
    value: float
    standard_error: Annotated[float, Field(ge=0)] | None = None
    seeds: list[int] = []
    images: Annotated[int, Field(ge=1)]
    image_list: Digest
    split: Text
    threshold: Threshold | None = None
    rule: Rule | None = None
    crf: bool = False
    initial_weights: Text | None = None
    note: Text | None = None


class Entry(Model):
    """One version of one key over one target.

    ``content`` is the digest of the decoded maps (see ``wsssbed_hub.digests``); ``image_list`` the
    digest of the ids. The bytes are beside the manifest unless ``source`` says otherwise.
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


class Manifest(Model):
    """Everything about one key, all versions and targets."""

    schema_version: Literal[1] = 1
    key: str
    kind: Literal["sal", "cam", "label", "weights"]
    title: Text
    method: Method
    trained_on: list[TrainedOn] = []
    licence: Text | None = None
    versions: dict[str, dict[str, Entry]]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        try:
            key = Key.parse(self.key)
            versions = [Version.parse(version) for version in self.versions]
        except UsageError as error:
            raise ValueError(str(error)) from None
        if key.version is not None:
            raise ValueError("a manifest's key has no version: it speaks of all of them")
        if key.kind != self.kind:
            raise ValueError(f"kind {self.kind!r} contradicts the key {self.key!r}")
        if not versions:
            raise ValueError("a manifest without versions")
        for version, targets in self.versions.items():
            for target, entry in targets.items():
                _check_entry(self.kind, version, target, entry)
        return self

    @property
    def parsed_key(self) -> Key:
        return Key.parse(self.key)

    def latest(self, target: str | None = None) -> Version:
        """The highest version, of those that cover ``target`` if one is named.

        Raises HubError if no version covers ``target``.
        """
        known = [
            Version.parse(version)
            for version, targets in self.versions.items()
            if target is None or target in targets
        ]
        if not known:
            raise HubError(f"{self.key} has no maps over {target!r}. It covers {self.targets()}.")
        return max(known)

    def targets(self) -> list[str]:
        return sorted({target for targets in self.versions.values() for target in targets})

    def entry(self, version: Version | str, target: str) -> Entry:
        """Raises HubError if there is no such version, or none over ``target``."""
        targets = self.versions.get(str(version))
        if targets is None:
            have = ", ".join(sorted(self.versions, key=Version.parse))
            raise HubError(f"{self.key} has no version {version}. It has {have}.")
        if target not in targets:
            raise HubError(
                f"{self.key}@{version} has no maps over {target!r}, only over "
                f"{', '.join(sorted(targets))}. Choose one with --target."
            )
        return targets[target]

    def dump(self) -> str:
        """The manifest as YAML, fields in the order of the model, nothing that is not set."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(
            {"schema_version": self.schema_version} | data, sort_keys=False, width=100
        )


def _check_entry(kind: str, version: str, target: str, entry: Entry) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", target, re.ASCII):
        raise ValueError(f"{target!r} is not a target")
    if (kind == "weights") != (entry.images is None):
        wrong = "has" if kind == "weights" else "lacks"
        raise ValueError(f"{version}/{target}: an entry of kind {kind} {wrong} a number of images")
    folder = f"{target}/{version}/"
    for file in entry.files:
        if not file.path.startswith(folder):
            raise ValueError(f"{file.path!r} does not lie below {folder}")


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice and dates stay text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)


def parse_manifest(text: bytes | str, name: str = "manifest.yaml") -> Manifest:
    """The manifest that ``text`` holds.

    Raises HubError that names the file and each wrong field.
    """
    if len(text) > MAX_BYTES:
        raise HubError(f"{name}: {len(text):,} bytes is too much for a manifest.")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise yaml.YAMLError("aliases are not allowed: a few lines can expand to gigabytes")
        data = yaml.load(text, Loader=_Loader)
        return Manifest.model_validate(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise HubError(f"{name} is not YAML that a manifest may hold: {error}") from None
    except ValidationError as error:
        wrong = "\n".join(
            f"  {'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}"
            for item in error.errors()
        )
        raise HubError(f"{name} is not a valid manifest:\n{wrong}") from None


def json_schema() -> dict[str, Any]:
    """JSON schema of the manifest, for editors and for other languages."""
    return Manifest.model_json_schema()
