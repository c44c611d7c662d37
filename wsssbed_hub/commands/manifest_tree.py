"""A manifest as a tree on the terminal: what ``show`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from wsssbed_hub.commands.common import human
from wsssbed_hub.keys import Version

if TYPE_CHECKING:
    from wsssbed_hub.manifest import Entry, Manifest, Provenance, Result

_DIGITS = 19  # of a digest: "sha256:" and twelve hexadecimal digits tell two apart


def manifest_tree(manifest: Manifest, only: Version | None = None) -> Tree:
    """All versions of ``manifest``, or ``only`` one, the latest first."""
    tree = Tree(Text.assemble((manifest.key, "bold"), f"  {manifest.title}"))
    method = manifest.method
    facts = [method.name, method.paper, method.code, method.licence and f"licence {method.licence}"]
    tree.add(Text("method: " + ", ".join(fact for fact in facts if fact)))
    for item in manifest.trained_on:
        images = f", {item.images:,} images" if item.images else ""
        over = f", for the maps over {item.target}" if item.target else ""
        dataset = item.dataset or "a dataset that is not stated"
        tree.add(Text(f"trained on: {dataset}{images} ({item.supervision}){over}"))
    for other in manifest.trained_with:
        tree.add(Text(f"trained with: {other}"))
    if manifest.licence:
        tree.add(Text(f"licence of the maps: {manifest.licence}"))
    for version in sorted(manifest.versions, key=Version.parse, reverse=True):
        if only is not None and version != str(only):
            continue
        branch = tree.add(Text(f"version {version}", style="bold"))
        for target, entry in sorted(manifest.versions[version].items()):
            _add_entry(branch, target, entry)
    return tree


def _add_entry(branch: Tree, target: str, entry: Entry) -> None:
    size = human(sum(file.size for file in entry.files)) if entry.files else "size not known"
    images = f"{entry.images:,} images, " if entry.images else ""
    node = branch.add(Text(f"{target}: {images}{size}"))
    if entry.content:
        node.add(Text(f"content {entry.content}"))
    files = node.add(f"{len(entry.files)} files") if len(entry.files) > 1 else node
    for file in entry.files:
        files.add(Text(f"{file.path}  {human(file.size)}  {file.sha256[:_DIGITS]}"))
    if entry.source is not None:
        where = entry.source.model_dump(exclude_none=True)
        node.add(escape("source: " + " @ ".join(str(part) for part in where.values())))
    for result in entry.results:
        node.add(Text(_result(result)))
    if entry.provenance is not None:
        _add_provenance(node, entry.provenance)


def _result(result: Result) -> str:
    error = f" ± {result.standard_error:.4f}" if result.standard_error is not None else ""
    seeds = f", seeds {', '.join(map(str, result.seeds))}" if result.seeds else ""
    tau = f", tau {result.threshold.tau:g} ({result.threshold.origin})" if result.threshold else ""
    crf = ", with CRF" if result.crf else ""
    return (
        f"{result.metric} {result.value:.4f}{error} on {result.split} "
        f"({result.images:,} images){seeds}{tau}{crf}"
    )


def _add_provenance(node: Tree, made: Provenance) -> None:
    image = f" in {made.image_digest or made.image}" if made.image or made.image_digest else ""
    branch = node.add(Text(f"made by {made.stage}{image}, {made.date:%Y-%m-%d}, seed {made.seed}"))
    branch.add(Text("command: " + " ".join(made.command)))
    commit = f" ({made.project_commit[:12]})" if made.project_commit else ""
    machine = made.environment
    branch.add(
        Text(
            f"wsssbed-hub {made.project_version}{commit}, Python {machine.python}, "
            f"torch {machine.torch or 'none'}, {machine.gpu or 'CPU'}, "
            f"{machine.precision or 'precision not stated'}, deterministic: "
            f"{'yes' if machine.deterministic else 'not demanded'}"
        )
    )
    if made.selection:
        branch.add(Text(f"selection: {made.selection}"))
    for item in made.made_from:
        branch.add(Text(f"from {item.role} {item.key or item.file}  {item.digest[:_DIGITS]}"))
