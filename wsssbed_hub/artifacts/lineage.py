"""Lineage: what an artifact was made from, followed through the manifests, and the tree of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import Field

from wsssbed_hub.artifacts.keys import Key, Version
from wsssbed_hub.artifacts.manifest import (
    Chosen,
    Digest,
    Entry,
    HubSource,
    Ingredient,
    Manifest,
    Model,
    Provenance,
    UrlSource,
)
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.text import Printable

DEEPEST = 12  # labels are made from activations made from weights made from…: four are usual
MOST = 200  # nodes of one tree

FindManifest = Callable[[Key], Manifest | None]
ROLES = {
    "sal": "saliency maps",
    "cam": "activation maps",
    "label": "pseudo labels",
    "weights": "weights",
}
MISSING = "not in any registry here"
CIRCLE = "made from itself, if its manifest is right"
UNSURE = "which version it was is not stated; this is the latest"
TOO_DEEP = f"what it was made from is left out: the tree is {DEEPEST} levels deep"
TOO_MANY = f"what else there is is left out: the tree has {MOST} artifacts"


class Link(Model):
    """A place to read more. Rendered as a link only if it is http(s)."""

    text: Printable
    url: Printable


class Node(Model):
    """An artifact or a file in the provenance tree: what it is and what it was made from.

    ``remark`` says why the branch ends here although there should be more, or what is in doubt.
    """

    role: Printable
    name: Printable
    target: Printable | None = None
    digest: Digest | None = None
    remark: Printable | None = None
    facts: dict[Printable, Printable] = Field(default_factory=dict)
    links: list[Link] = Field(default_factory=list)
    made_from: list[Node] = Field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """This node and everything below it."""
        yield self
        for node in self.made_from:
            yield from node.walk()


@dataclass
class Ancestor:
    """An artifact or a file that something was made from, and what it was made from itself."""

    part: Ingredient | Key | None
    """Its name in what was made of it; of a training's data, the key alone. None at the root."""
    key: Key | None
    """With the version, if the manifest is known; None for a file."""
    entry: tuple[Manifest, Chosen] | None = None
    remark: str | None = None
    """Reason why the branch ends here although there should be more, or a doubt."""
    made_from: list[Ancestor] = field(default_factory=list)

    def walk(self) -> Iterator[Ancestor]:
        """This one and everything that it was made from."""
        yield self
        for ancestor in self.made_from:
            yield from ancestor.walk()


def trace(manifest: Manifest, chosen: Chosen, find: FindManifest) -> Ancestor:
    """All that an entry was made from, at most ``DEEPEST`` levels and ``MOST`` things.

    ``find`` gives the manifest of a key; where it gives None or raises a HubError that branch ends,
    and says why.
    """
    return _Tracer(find).entry(None, manifest, chosen, ())


def provenance_tree(
    manifest: Manifest,
    find: FindManifest,
    *,
    target: str | None = None,
    version: Version | None = None,
) -> Node:
    """The tree that ``trace`` finds from the entry that ``manifest.choose(target, version)`` gives.

    Raises UsageError if ``manifest`` has no such version or target.
    """
    return _node(trace(manifest, manifest.choose(target, version), find))


class _Tracer:
    def __init__(self, find: FindManifest) -> None:
        self._find = find
        self._left = MOST - 1

    def entry(
        self,
        part: Ingredient | Key | None,
        manifest: Manifest,
        chosen: Chosen,
        below: tuple[Key, ...],
        remark: str | None = None,
    ) -> Ancestor:
        key = manifest.parsed_key.at(chosen.version)
        found = Ancestor(part, key, (manifest, chosen), remark)
        parts = _parts(manifest, chosen.entry)
        if key in below:
            found.remark = CIRCLE
        elif len(below) >= DEEPEST:
            found.remark = TOO_DEEP if parts else remark
        else:
            for one in parts:
                if self._left <= 0:
                    found.remark = TOO_MANY
                    break
                self._left -= 1
                found.made_from.append(self._part(one, chosen.target, (*below, key)))
        return found

    def _part(self, part: Ingredient | Key, target: str, below: tuple[Key, ...]) -> Ancestor:
        """An ingredient of a provenance, or a key of which nothing but the name is known."""
        name = part if isinstance(part, Key) else part.key
        if name is None:
            return Ancestor(part, None)
        key = name if isinstance(name, Key) else Key.parse(name)
        found = self._look_up(key, target)
        if isinstance(found, str):
            return Ancestor(part, key, remark=found)
        manifest, chosen = found
        if isinstance(part, Ingredient) and part.digest != chosen.entry.content:
            doubt = f"the manifest of {key} gives another digest: {chosen.entry.content}"
            return Ancestor(part, key, remark=doubt)
        return self.entry(part, manifest, chosen, below, None if key.version else UNSURE)

    def _look_up(self, key: Key, target: str) -> tuple[Manifest, Chosen] | str:
        """The manifest of ``key`` and its entry over ``target``, or why there is none."""
        try:
            manifest = self._find(key)
        except UsageError:
            manifest = None
        except HubError as error:
            return f"its manifest cannot be read: {error}"
        if manifest is None:
            return MISSING
        try:
            return manifest, manifest.choose(target, key.version)
        except UsageError:
            covered = [chosen for chosen in manifest.entries() if key.version in (None, chosen[0])]
        if not covered:
            return f"its manifest here has no version {key.version}"
        if manifest.kind == "weights" and len(covered) == 1:
            return manifest, covered[0]  # trained on one dataset, used over another
        return f"its manifest here has nothing over {target}"


def _node(found: Ancestor) -> Node:
    if found.entry is None:
        part = found.part
        if not isinstance(part, Ingredient):
            return Node(role="trained with", name=str(part), remark=found.remark)
        role, name = part.role.replace("-", " "), part.key or part.file or ""
        return Node(role=role, name=name, digest=part.digest, remark=found.remark)
    manifest, chosen = found.entry
    return Node(
        role=ROLES[manifest.kind],
        name=str(found.key),
        target=chosen.target,
        digest=chosen.entry.content,
        remark=found.remark,
        facts=_facts(manifest, chosen),
        links=_links(manifest, chosen.entry),
        made_from=[_node(ancestor) for ancestor in found.made_from],
    )


def _parts(manifest: Manifest, entry: Entry) -> list[Ingredient | Key]:
    """Parts that an entry was made from: the ingredients of its provenance, and the keys that the
    training saw, where the provenance does not name them."""
    made = entry.provenance.made_from if entry.provenance else []
    named = {Key.parse(item.key).unversioned for item in made if item.key is not None}
    seen = [Key.parse(text) for text in manifest.trained_with]
    return [*made, *(key for key in seen if key.unversioned not in named)]


def _facts(manifest: Manifest, chosen: Chosen) -> dict[str, str]:
    _, target, entry = chosen
    facts = {"title": manifest.title, "method": manifest.method.name}
    trained_on = [item for item in manifest.trained_on if item.target in (None, target)]
    if trained_on:
        facts["trained on"] = ", ".join(
            f"{item.dataset or 'not stated'} ({item.supervision})" for item in trained_on
        )
    if entry.images is not None:
        facts["images"] = f"{entry.images:,}"
    if entry.image_list is not None:
        facts["image list"] = entry.image_list
    if manifest.licence:
        facts["licence"] = manifest.licence
    return facts | (_how(entry.provenance) if entry.provenance else {})


def _how(made: Provenance) -> dict[str, str]:
    machine = made.environment
    known = {
        "stage": made.stage,
        "command": shlex.join(made.command),
        "seed": made.seed,
        "selection": made.selection,
        "date": made.date.isoformat(timespec="seconds"),
        "project": " ".join(filter(None, (made.project_version, made.project_commit))),
        "image": " ".join(filter(None, (made.image, made.image_digest))),
        "torch": machine.torch,
        "CUDA": machine.cuda,
        "GPU": machine.gpu,
        "precision": machine.precision,
        "deterministic": machine.deterministic,
    }
    words = {True: "yes", False: "no"}
    return {
        name: words[value] if isinstance(value, bool) else str(value)
        for name, value in known.items()
        if value is not None and value != ""
    }


def _links(manifest: Manifest, entry: Entry) -> list[Link]:
    links = [
        Link(text=text, url=url)
        for text, url in (("paper", manifest.method.paper), ("code", manifest.method.code))
        if url
    ]
    if isinstance(entry.source, UrlSource):
        links.append(Link(text="source", url=entry.source.url))
    elif isinstance(entry.source, HubSource):
        url = f"https://huggingface.co/datasets/{entry.source.repo}/tree/{entry.source.commit}"
        links.append(Link(text="source", url=url))
    return links
