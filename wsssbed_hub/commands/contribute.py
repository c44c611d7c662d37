"""Bring maps in, contribute them, check manifests: import, contribute, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsssbed_hub.commands.common import DATA_ROOT, AsJson, DataRoot, note, print_table, progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsssbed_hub.inspection import Problem
    from wsssbed_hub.manifest import Chosen, Manifest


def import_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|ZIP",
            help="PNGs in the layout of the release: {image_id}.png, or {image_id}_{class}.png.",
        ),
    ],
    key: Annotated[str, typer.Argument(help="KEY or KEY@VERSION that the maps are to have.")],
    target: Annotated[str, typer.Option(help="Dataset whose images the maps are for.")],
    method: Annotated[str, typer.Option(help="The method, as its paper names it.")],
    paper: Annotated[str | None, typer.Option(help="Its paper: a URL or a citation.")] = None,
    code: Annotated[str | None, typer.Option(help="Its code: a URL.")] = None,
    method_licence: Annotated[str | None, typer.Option(help="Licence of its code.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the maps.")] = None,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(help="DATASET:SUPERVISION, such as 'duts:pixel masks'. May be repeated."),
    ] = None,
    trained_with: Annotated[
        list[str] | None,
        typer.Option(help="Key of maps that the training used. May be repeated."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title.", show_default="made up")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Key folder to write.", show_default="./<kind>-<name>")
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Say what is wrong and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a folder or zip of PNGs into an artifact, after a close look at what is wrong with it.

    Missing images, wrong sizes, classes and values are named. With errors nothing is written.
    """
    from wsssbed_hub.importing import Card, Import, parse_trained_on, refuse
    from wsssbed_hub.manifest import Method

    card = Card(
        Method(name=method, paper=paper, code=code, licence=method_licence),
        parse_trained_on(trained_on or []),
        tuple(trained_with or []),
        licence,
        title,
    )
    incoming = Import(path, key, target, data_root)
    with progress_bar(f"look at {path.name}", unit="images") as progress:
        problems = incoming.problems(progress)
    _print_problems(problems, as_json=as_json)
    checks = incoming.goal.checks
    if "ids" not in checks:
        what = "the number of images was compared" if checks else "nothing could be compared"
        note(f"The lists of {target} are not below {data_root}: {what}.")
    refuse(problems, path)
    if report_only:
        return
    folder = to or Path(incoming.key.repository)
    with progress_bar(f"import {path.name}", unit="images") as progress:
        manifest = incoming.write(folder, card, progress=progress)
    if not as_json:
        typer.echo(f"{manifest.key} is in {folder}. Publish it: wsssbed-hub push {folder}")


def _print_problems(problems: Sequence[Problem], *, as_json: bool) -> None:
    if as_json:
        rows: list[dict[str, Any]] = [
            {"severity": one.severity, "what": one.what, "images": list(one.images)}
            for one in problems
        ]
        print_table(rows, as_json=True)
        return
    for one in problems:
        typer.echo(f"{one.severity}: {one}")
    if not problems:
        typer.echo("nothing is wrong with it")


def contribute(
    folder: Annotated[Path, typer.Argument(help="Key folder, as `import` or a stage writes it.")],
    to: Annotated[str, typer.Option(metavar="hf:NAMESPACE", help="Where the files are published.")],
    index: Annotated[
        Path, typer.Option(help="Folder of manifests in your clone of the project.")
    ] = Path("manifests"),
) -> None:
    """Publish an artifact on the Hub and write its manifest for a pull request to the index."""
    from wsssbed_hub.contributing import contribute as publish
    from wsssbed_hub.errors import UsageError
    from wsssbed_hub.hub import HubRegistry
    from wsssbed_hub.registry import open_registry

    registry = open_registry(to, create=True)
    if not isinstance(registry, HubRegistry):
        raise UsageError(f"{to}: others have to reach it. Write hf:NAMESPACE, such as hf:alice.")
    with progress_bar(f"publish {folder}") as progress:
        path = publish(folder, registry, index, progress=progress)
    key = f"{path.parent.name}/{path.stem}"
    typer.echo(f"{key} is in {registry}, and its manifest in {path}. Next:")
    for line in (
        f"git switch -c {path.parent.name}-{path.stem}",
        f"git add {path}",
        f"git commit -m 'Add {key}'",
        "git push -u origin HEAD, then open the pull request (gh pr create)",
    ):
        typer.echo(f"  {line}")


def check(
    manifests: Annotated[
        list[Path], typer.Argument(help="Manifests, or folders of them such as manifests/.")
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Folder, or git commit or branch, with the manifests before the change.",
        ),
    ] = None,
    sources: Annotated[
        bool, typer.Option("--sources", help="Ask whether all files are where they should be.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch everything and prove every claim on it.")
    ] = False,
    data_root: DataRoot = DATA_ROOT,
    as_json: AsJson = False,
) -> None:
    """Check manifests: schema, keys, what they have to state, that no published version changed.

    What is wrong is printed; the exit code is 1 if anything is an error.
    """
    from wsssbed_hub import checking
    from wsssbed_hub.errors import HubError
    from wsssbed_hub.inspection import Problem

    paths = checking.manifest_paths(manifests)
    rows: list[dict[str, Any]] = []

    def report(path: Path, problems: Sequence[Problem]) -> None:
        rows.extend(
            {"manifest": str(path), "severity": one.severity, "what": str(one)} for one in problems
        )

    with progress_bar("check", unit="manifests") as progress:
        for done, path in enumerate(paths, 1):
            try:
                manifest = checking.read(path)
                report(path, checking.check_manifest(path, manifest))
                if against is not None:
                    old = checking.read_base(against, manifest.parsed_key, path)
                    report(path, checking.check_against(old, manifest) if old else [])
                for chosen in manifest.entries():
                    report(path, _prove(path, manifest, chosen, sources, fetch, data_root))
            except HubError as error:
                if error.exit_code == 2:
                    raise
                report(path, [Problem("error", str(error))])
            progress(done, len(paths))
    for folder in manifests if against is not None else []:
        if folder.is_dir():
            report(folder, _removed(folder, against or "", paths))
    _print_check(rows, len(paths), as_json=as_json)


def _prove(
    path: Path, manifest: Manifest, chosen: Chosen, sources: bool, fetch: bool, data_root: Path
) -> list[Problem]:
    from wsssbed_hub import checking

    found = [checking.check_source(manifest, chosen)] if sources else []
    problems = [problem for problem in found if problem is not None]
    if fetch and not problems:
        problems += checking.check_data(path, manifest, chosen, data_root)
    return problems


def _removed(folder: Path, base: str, paths: Sequence[Path]) -> list[Problem]:
    from wsssbed_hub import checking
    from wsssbed_hub.inspection import Problem

    there = {f"{path.parent.name}/{path.stem}" for path in paths}
    gone = [key for key in checking.base_keys(base, folder) if str(key) not in there]
    return [Problem("error", f"{key} is published and its manifest was removed") for key in gone]


def _print_check(rows: list[dict[str, Any]], checked: int, *, as_json: bool) -> None:
    errors = sum(row["severity"] == "error" for row in rows)
    if as_json:
        print_table(rows, as_json=True)
    else:
        for row in rows:
            typer.echo(f"{row['severity']}: {row['manifest']}: {row['what']}")
        manifests = "1 manifest" if checked == 1 else f"{checked} manifests"
        typer.echo(f"{manifests} checked, {errors or 'no'} error{'' if errors == 1 else 's'}")
    if errors:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("import")(import_)
    for command in (contribute, check):
        app.command()(command)
