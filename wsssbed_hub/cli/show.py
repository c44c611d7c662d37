"""A manifest and what it was made from as trees on the terminal: what ``show`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from wsssbed_hub.artifacts.keys import Version
from wsssbed_hub.cli.output import window
from wsssbed_hub.utils.text import printable
from wsssbed_hub.utils.units import human

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.lineage import Node
    from wsssbed_hub.artifacts.manifest import Entry, Manifest, Result

_DIGITS = 19  # of a digest: "sha256:" and twelve hexadecimal digits tell two apart
_PLACES = {"torch": "torch ", "CUDA": "CUDA ", "GPU": "", "precision": ""}


def print_manifest(manifest: Manifest, trees: Iterable[Node]) -> None:
    """The whole ``manifest``, and then how those entries were made that ``trees`` are of."""
    console = window(highlight=False)
    console.print(_manifest_tree(manifest))
    for tree in trees:
        console.print()
        console.print(Text("Provenance", style="bold"))
        console.print(_provenance(tree))


def _manifest_tree(manifest: Manifest) -> Tree:
    """All versions, the latest first."""
    tree = Tree(Text.assemble((manifest.key, "bold"), f"  {printable(manifest.title)}"))
    method = manifest.method
    facts = [method.name, method.paper, method.code, method.licence and f"licence {method.licence}"]
    _add(tree, "method: " + ", ".join(fact for fact in facts if fact))
    for item in manifest.trained_on:
        images = f", {item.images:,} images" if item.images else ""
        over = f", for the maps over {item.target}" if item.target else ""
        dataset = item.dataset or "a dataset that is not stated"
        _add(tree, f"trained on: {dataset}{images} ({item.supervision}){over}")
    for other in manifest.trained_with:
        _add(tree, f"trained with: {other}")
    if manifest.licence:
        _add(tree, f"licence of the maps: {manifest.licence}")
    for version in sorted(manifest.versions, key=Version.parse, reverse=True):
        branch = tree.add(Text(f"version {version}", style="bold"))
        for target, entry in sorted(manifest.versions[version].items()):
            _add_entry(branch, target, entry)
    return tree


def _add(tree: Tree, text: str) -> Tree:
    return tree.add(Text(printable(text)))


def _add_entry(branch: Tree, target: str, entry: Entry) -> None:
    size = human(entry.size) if entry.files else "size not known before it is pulled"
    images = f"{entry.images:,} images, " if entry.images else ""
    node = _add(branch, f"{target}: {images}{size}")
    if entry.content:
        node.add(Text(f"content {_on_its_own(entry.content)}"))
    for file in entry.files:
        size = human(file.size)
        node.add(Text(f"{printable(file.path)}  {size}, {_on_its_own(file.sha256)}"))
    if entry.source is not None:
        where = entry.source.model_dump(exclude_none=True)
        _add(node, "source: " + " @ ".join(str(part) for part in where.values()))
    for result in entry.results:
        _add(node, _result(result))


def _on_its_own(digest: str) -> str:
    """A digest whose digits have a line of their own, and so room in 80 columns."""
    return digest.replace(":", "\n")


def _result(result: Result) -> str:
    """The number, and all that it depends on."""
    error = f" ± {result.standard_error:.4f}" if result.standard_error is not None else ""
    depends = [f"{result.split}, {result.images:,} images, list {result.image_list[:_DIGITS]}"]
    if result.threshold is not None:
        split = f" of {result.threshold.split}" if result.threshold.split else ""
        depends.append(f"tau {result.threshold.tau:g} ({result.threshold.origin}{split})")
    depends += [f"rule {result.rule}"] if result.rule else []
    depends.append("with CRF" if result.crf else "no CRF")
    depends += [f"from {result.initial_weights}"] if result.initial_weights else []
    depends += [f"seeds {', '.join(map(str, result.seeds))}"] if result.seeds else []
    depends += [result.note] if result.note else []
    return f"{result.metric} {result.value:.4f}{error} on {'; '.join(depends)}"


def _provenance(node: Node, above: Tree | None = None) -> Tree:
    """``node`` and what is below it, as a branch of ``above``."""
    over = f" over {node.target}" if node.target else ""
    lines = [Text.assemble((node.name, "bold"), f"{over}  ({node.role})")]
    lines += [Text(line) for line in _lines(node)]
    if node.remark is not None:
        lines.append(Text(node.remark, style="italic"))
    label = Text("\n").join(lines)
    tree = Tree(label) if above is None else above.add(label)
    for part in node.made_from:
        _provenance(part, tree)
    return tree


def _lines(node: Node) -> Iterable[str]:
    facts = node.facts
    if "title" in facts:
        yield facts["title"]
    if "trained on" in facts:
        yield f"trained on: {facts['trained on']}"
    if node.digest is not None:
        yield f"digest: {node.digest[:_DIGITS]}"
    if "stage" not in facts:
        return
    seed = f", seed {facts['seed']}" if "seed" in facts else ""
    yield f"made by {facts['stage']}{seed}, {facts['date']}"
    for name in ("image", "command", "selection"):
        if name in facts:
            yield f"{name}: {facts[name]}"
    machine = [f"{prefix}{facts[name]}" for name, prefix in _PLACES.items() if name in facts]
    deterministic = facts.get("deterministic")
    machine += [f"deterministic: {deterministic}"] if deterministic else []
    yield ", ".join([f"wsssbed-hub {facts['project']}", *machine])
