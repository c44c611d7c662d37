"""Find artifacts and look at them: list, search, show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsssbed_hub.cli.options import WHICH, AsJson, Registry
from wsssbed_hub.cli.output import note, print_table
from wsssbed_hub.utils.units import human

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.keys import Key
    from wsssbed_hub.artifacts.lineage import Node
    from wsssbed_hub.artifacts.manifest import Manifest
    from wsssbed_hub.registry.search import Filters, Found

Kind = Annotated[str | None, typer.Option(help="Only this kind: sal, cam, label or weights.")]
TargetOnly = Annotated[str | None, typer.Option("--target", help="Only what is over this target.")]
Sod = Annotated[
    str | None,
    typer.Option(
        help="Only with this saliency: SOD model (vst), SOD dataset (duts) or both (vst-duts)."
    ),
]
MethodOnly = Annotated[str | None, typer.Option("--method", help="Only of this method, say eps.")]
Supervised = Annotated[
    str | None,
    typer.Option(
        "--supervision",
        help="Only trained with this: 'pixel masks', 'image labels', self-supervised, unsupervised "
        "or none.",
    ),
]
_SPARE = ("tau (authors')", "saliency", "version", "trained on", "size", "images", "supervision")


def list_(
    kind: Kind = None,
    target: TargetOnly = None,
    sod: Sod = None,
    method: MethodOnly = None,
    supervision: Supervised = None,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """List the artifacts that there are, at their latest versions."""
    from wsssbed_hub.registry.search import Filters

    wanted = Filters(kind, target, sod, method, supervision)
    place, found, kept = _look(registry, wanted)
    if not kept:
        asked = f" with {wanted}" if str(wanted) else ""
        note(f"No artifacts{asked} in {place}.{wanted.help(found)}")
    _print(kept, as_json)


def search(
    words: Annotated[
        list[str], typer.Argument(help="Each has to stand in key, title, method, paper, datasets…")
    ],
    kind: Kind = None,
    target: TargetOnly = None,
    sod: Sod = None,
    method: MethodOnly = None,
    supervision: Supervised = None,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Search for artifacts in words; the best are first."""
    from wsssbed_hub.registry.search import Filters, explain
    from wsssbed_hub.registry.search import search as rank

    wanted = Filters(kind, target, sod, method, supervision)
    place, found, kept = _look(registry, wanted)
    ranked = rank(kept, words)
    if not ranked:
        asked = f" with {wanted}" if str(wanted) else ""
        others = len(rank(found, words))
        if others:
            note(f"Nothing{asked} matches in {place}, but {others:,} artifacts without that do.")
        else:
            note(f"Nothing matches in {place}. {explain(found, words)}")
    _print(ranked, as_json)


def _look(registry: str | None, wanted: Filters) -> tuple[str, list[Found], list[Found]]:
    """The place, all that is there, and what of it is asked for."""
    from wsssbed_hub.registry.pull import open_registry
    from wsssbed_hub.registry.search import find_all

    place = open_registry(registry)
    found = find_all(place.manifests())
    return str(place), found, [one for one in found if wanted.keeps(one)]


def _print(found: Sequence[Found], as_json: bool) -> None:
    if as_json:
        print_table([_fields(one) for one in found], as_json=True)
    elif found:
        print_table([_cells(one) for one in found], as_json=False, spare=_SPARE)


def _fields(found: Found) -> dict[str, Any]:
    published = found.row.published
    return found.row._asdict() | {"published": published.as_dicts() if published else []}


def _cells(found: Found) -> dict[str, Any]:
    row = found.row
    return {
        "key": row.key,
        "version": row.version,
        "target": row.target,
        "method": row.method,
        "saliency": ", ".join(row.saliency),
        "trained on": ", ".join(name or "?" for name in row.trained_on),
        "supervision": ", ".join(row.supervision),
        "images": row.images,
        "size": None if row.size is None else human(row.size),
        "tau (authors')": None if row.published is None else row.published.brief,
    }


def show(
    key: Annotated[str, typer.Argument(help=WHICH)],
    target: TargetOnly = None,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Show versions, files and results of an artifact, and what it was made from, and how."""
    from wsssbed_hub.registry.pull import locate

    place, wanted = locate(key, registry)
    whole = place.find(wanted)
    manifest = _narrow(whole, wanted, target)
    trees = _trees(manifest, whole, registry)
    if as_json:
        stated = manifest.model_dump(mode="json", exclude_defaults=True)
        nested = [tree.model_dump(mode="json", exclude_defaults=True) for tree in trees]
        typer.echo(json.dumps(stated | {"trees": nested}, indent=2))
        return
    from wsssbed_hub.cli.show import print_manifest

    print_manifest(manifest, trees)


def _narrow(manifest: Manifest, wanted: Key, target: str | None) -> Manifest:
    """The part of ``manifest`` that is meant. Raises UsageError if that is nothing."""
    meant = [
        chosen
        for chosen in manifest.entries()
        if wanted.version in (None, chosen.version) and target in (None, chosen.target)
    ]
    if not meant:
        manifest.choose(target, wanted.version)  # says what there is
    return manifest.with_entries(meant)


def _trees(manifest: Manifest, whole: Manifest, registry: str | None) -> list[Node]:
    """How the latest version over each target was made."""
    from wsssbed_hub.artifacts.lineage import provenance_tree
    from wsssbed_hub.registry.pull import open_registry

    def find(key: Key) -> Manifest:
        if key.unversioned == whole.parsed_key:
            return whole
        return open_registry(registry).find(key)  # which is not needed for what lies on the Hub

    return [provenance_tree(manifest, find, target=name) for name in manifest.targets()]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("list")(list_)
    for command in (search, show):
        app.command()(command)
