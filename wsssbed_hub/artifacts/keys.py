"""Keys: the names that artifacts go by, such as ``sal/vst-duts`` or ``cam/eps-vst-duts@1.0.0``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from wsssbed_hub.utils.errors import UsageError

KINDS = ("sal", "cam", "label", "weights")
HUB = "hf:"  # how an address on the Hugging Face Hub begins

_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_VERSION = r"(?:0|[1-9]\d{0,5})\.(?:0|[1-9]\d{0,5})\.(?:0|[1-9]\d{0,5})"
_KEY = re.compile(rf"(?P<kind>[a-z]+)/(?P<name>{_NAME})(?:@(?P<version>{_VERSION}))?", re.ASCII)
_MOST = 80  # characters of a name; the Hub allows 96 for a repository's name


@dataclass(frozen=True, order=True)
class Version:
    """``major.minor.patch``, ordered as numbers."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """Raises UsageError unless ``text`` is three plain numbers joined by dots."""
        if not re.fullmatch(_VERSION, text, re.ASCII):
            raise UsageError(f"{text!r} is not a version. Write three numbers, such as 1.0.0.")
        return cls(*(int(part) for part in text.split(".")))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True)
class Key:
    """``kind/name``, with ``@version`` where one exact version is meant."""

    kind: str
    name: str
    version: Version | None = None

    @classmethod
    def parse(cls, text: str) -> Key:
        """The key that ``text`` spells.

        Raises UsageError for anything else, a path or a name in capitals for example.
        """
        match = _KEY.fullmatch(text)
        if match is None or len(match["name"]) > _MOST:
            raise UsageError(
                f"{text!r} is not a key. A key is kind/name with an optional @version, in lower "
                "case: sal/vst-duts, cam/drs, cam/eps-vst-duts@1.0.0."
            )
        if match["kind"] not in KINDS:
            raise UsageError(
                f"{text!r}: there is no kind {match['kind']!r}. Kinds are {', '.join(KINDS)}."
            )
        version = Version.parse(match["version"]) if match["version"] else None
        return cls(match["kind"], match["name"], version)

    @property
    def repository(self) -> str:
        """Name of the key's folder or Hub repository: ``sal-vst-duts``."""
        return f"{self.kind}-{self.name}"

    @property
    def unversioned(self) -> Key:
        return replace(self, version=None)

    def at(self, version: Version | str) -> Key:
        """This key at ``version``."""
        return replace(self, version=Version.parse(str(version)))

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" + (f"@{self.version}" if self.version else "")


def looks_like_key(text: str) -> bool:
    """Whether ``text`` can only be meant as a key: two plain names, the first of them a kind."""
    kind, slash, _ = text.partition("/")
    return bool(slash) and kind in KINDS and _KEY.fullmatch(text) is not None


def names_artifact(text: str) -> bool:
    """Whether ``text`` can only be meant as a key, or as a repository on the Hub."""
    return text.startswith(HUB) or looks_like_key(text)
