"""What was made from what, followed through the manifests."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from wsssbed_hub.errors import HubError
from wsssbed_hub.keys import Key, Version
from wsssbed_hub.manifest import (
    Chosen,
    Entry,
    HubSource,
    Ingredient,
    Manifest,
    Provenance,
    UrlSource,
)
from wsssbed_hub.report.data import Link, Node

DEEPEST = 12  # labels are made from activations made from weights made from…: four are usual
MOST = 200  # nodes of one tree

FindManifest = Callable[[Key], Manifest | None]
ROLES = {
    "sal": "saliency maps",
    "cam": "activation maps",
    "label": "pseudo labels",
    "weights": "weights",
}


def provenance_tree(
    manifest: Manifest,
    find: FindManifest,
    *,
    target: str | None = None,
    version: Version | None = None,
) -> Node:
    """The tree below the entry that ``manifest.choose(target, version)`` gives.

    ``find`` gives the manifest of a key, or None where it is not at hand: that branch ends there.
    Raises UsageError if ``manifest`` has no such version or target.
    """
    return _Builder(find).node(manifest, manifest.choose(target, version), 0)


class _Builder:
    def __init__(self, find: FindManifest) -> None:
        self._find = find
        self._left = MOST

    def node(self, manifest: Manifest, chosen: Chosen, depth: int) -> Node:
        version, target, entry = chosen
        self._left -= 1
        made = entry.provenance
        deeper = made is not None and depth < DEEPEST
        return Node(
            role=ROLES[manifest.kind],
            name=str(manifest.parsed_key.at(version)),
            target=target,
            digest=entry.content,
            facts=_facts(manifest, entry),
            links=_links(manifest, entry),
            made_from=[
                self._ingredient(item, target, depth + 1)
                for item in (made.made_from if made and deeper else [])
                if self._left > 0
            ],
        )

    def _ingredient(self, item: Ingredient, target: str, depth: int) -> Node:
        role = item.role.replace("-", " ")
        leaf = Node(role=role, name=item.key or item.file or "", digest=item.digest)
        if item.key is None:
            return leaf
        key = Key.parse(item.key)
        manifest = self._find(key)
        if manifest is None or key.version is None:
            return leaf
        try:
            chosen = manifest.choose(target, key.version)
        except HubError:
            return leaf
        if chosen.entry.content != item.digest:
            doubt = f"the manifest of {key} gives another digest: {chosen.entry.content}"
            return leaf.model_copy(update={"facts": {"doubt": doubt}})
        return self.node(manifest, chosen, depth)


def _facts(manifest: Manifest, entry: Entry) -> dict[str, str]:
    facts = {"title": manifest.title, "method": manifest.method.name}
    if manifest.trained_on:
        facts["trained on"] = ", ".join(
            f"{item.dataset or 'not stated'} ({item.supervision})" for item in manifest.trained_on
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
