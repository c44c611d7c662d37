"""Bring maps in, contribute them, check manifests: import, contribute, check."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsssbed_hub.cli.options import DATA_ROOT, AsJson, DataRoot
from wsssbed_hub.cli.output import note, print_table
from wsssbed_hub.utils.options import refuse
from wsssbed_hub.utils.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsssbed_hub.evaluation.inspect import Problem
    from wsssbed_hub.review.check_report import Checked


def import_(
    context: typer.Context,
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
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT",
            help="State in the manifest how good saliency maps or labels are, by the ground truth "
            "of a split such as train.",
        ),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw thumbnails of some maps, what is suspicious first."
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Say what is wrong and write no artifact.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a folder or zip of PNGs into an artifact, after a close look at what is wrong with it.

    Missing images, wrong sizes, classes and values are named. With errors nothing is written.
    """
    from wsssbed_hub.artifacts.manifest import MethodCitation
    from wsssbed_hub.review.import_maps import Card, Import, parse_trained_on, raise_errors

    if report_only:
        refuse(context, ["measure"], "With --report-only no manifest is written")
    card = Card(
        MethodCitation(name=method, paper=paper, code=code, licence=method_licence),
        parse_trained_on(trained_on or []),
        tuple(trained_with or []),
        licence,
        title,
    )
    incoming = Import(path, key, target, data_root)
    with progress_bar(f"look at {path.name}", unit="images") as progress:
        problems = incoming.problems(progress)
    _print_problems(problems, as_json=as_json)
    if gallery is not None:
        incoming.draw(gallery, problems)
        note(f"thumbnails drawn in {gallery}")
    if incoming.expected.target is None:
        note(incoming.expected.shortfall(data_root))
    raise_errors(problems, path)
    if report_only:
        return
    folder = to or Path(incoming.key.repository)
    results = []
    if measure is not None:
        with progress_bar(f"measure {path.name}", unit="images") as progress:
            results = incoming.measure(measure, progress)
    with progress_bar(f"import {path.name}", unit="images") as progress:
        manifest = incoming.write(folder, card, results=results, progress=progress)
    if not as_json:
        for result in results:
            typer.echo(f"measured on {result.split}: {result.metric} {result.value}")
        typer.echo(
            f"{manifest.key} is in {folder}. For yourself: wsssbed-hub push {folder}. "
            f"For everybody: wsssbed-hub contribute {folder} --to hf:NAMESPACE"
        )


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
    pull_request: Annotated[
        bool,
        typer.Option(
            "--pr",
            help="Open a pull request on the Hub, in a namespace that is not yours; run it again "
            "once that is merged.",
        ),
    ] = False,
    index: Annotated[
        Path, typer.Option(help="Folder of manifests in your clone of the project.")
    ] = Path("manifests"),
    yes: Annotated[
        bool, typer.Option("--yes", help="Run the git and gh commands without asking.")
    ] = False,
) -> None:
    """Publish an artifact on the Hub, write its manifest, and open a pull request to the index.

    The git commands are printed, and run if you agree; `gh` opens the pull request if it is there.
    """
    from wsssbed_hub.registry.hub.registry import HubRegistry, Proposed
    from wsssbed_hub.registry.pull import open_registry
    from wsssbed_hub.review.contribute import contribute as publish
    from wsssbed_hub.utils.errors import UsageError

    registry = open_registry(to, create=True)
    if not isinstance(registry, HubRegistry):
        raise UsageError(f"{to}: others have to reach it. Write hf:NAMESPACE, such as hf:alice.")
    with progress_bar(f"publish {folder}") as progress:
        made = publish(folder, registry, index, pull_request=pull_request, progress=progress)
    if isinstance(made, Proposed):
        opened = "was opened before and is not merged" if made.waiting else "is open"
        typer.echo(f"The pull request {made.url} {opened}. Once {registry} has merged it, run:")
        again = ["wsssbed-hub", "contribute", str(folder), "--to", to, "--pr"]
        again += [] if index == Path("manifests") else ["--index", str(index)]
        typer.echo(f"  {shlex.join(again)}")
        return
    key = f"{made.parent.name}/{made.stem}"
    typer.echo(f"{key} is in {registry}, and its manifest in {made}. Next:")
    _open_pull_request(made, yes=yes)


def _open_pull_request(manifest: Path, *, yes: bool) -> None:
    """Says what is left to do, and does it where the user agrees."""
    from wsssbed_hub.review.git_steps import GitSteps
    from wsssbed_hub.utils.errors import HubError

    try:
        steps = GitSteps(manifest)
    except HubError as error:
        typer.echo(f"  {error}")
        return
    for line in filter(None, [*steps.commands, steps.left]):
        typer.echo(f"  {line}")
    if not steps.local and not steps.remote:
        return
    asked = sys.stdin.isatty() and sys.stdout.isatty()
    if yes or (asked and typer.confirm("Run these commands now?", default=False)):
        steps.run(typer.echo)
        if steps.left:
            typer.echo(f"Next: {steps.left}")
    elif not asked:
        note("Nobody was asked: --yes runs them.")


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
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Write it down as Markdown, with pictures beside it."),
    ] = None,
    data_root: DataRoot = DATA_ROOT,
    as_json: AsJson = False,
) -> None:
    """Check manifests: schema, keys, what they have to state, that no published version changed.

    What is wrong is printed, and what could not be checked; the exit code is 1 if anything is an
    error.
    """
    from wsssbed_hub.review import check_manifest as checking
    from wsssbed_hub.review.check_report import Checked, write

    paths = checking.manifest_paths(manifests)
    checked = [Checked(path) for path in paths]
    with progress_bar("check", unit="manifests") as progress:
        for done, one in enumerate(checked, 1):
            _check_one(one, against, sources, fetch, data_root)
            progress(done, len(paths))
    for folder in manifests if against is not None else []:
        if folder.is_dir():
            checked.append(Checked(folder, _removed(folder, against or "", paths)))
    if report is not None:
        note("written: " + ", ".join(map(str, write(report, checked))))
    _print_check(checked, as_json=as_json)


def _check_one(
    one: Checked, against: str | None, sources: bool, fetch: bool, data_root: Path
) -> None:
    """All that is asked for of one manifest. Mistakes in the request are raised."""
    from wsssbed_hub.evaluation.inspect import Problem
    from wsssbed_hub.review import check_manifest as checking
    from wsssbed_hub.utils.errors import HubError

    try:
        manifest = checking.read(one.path)
        one.problems += checking.check_manifest(one.path, manifest)
        if against is not None:
            old = checking.read_base(against, manifest.parsed_key, one.path)
            one.problems += checking.check_against(old, manifest) if old else []
        for chosen in manifest.entries():
            gone = checking.check_source(manifest, chosen) if sources else None
            if gone is not None:
                one.problems.append(gone)
            elif fetch:
                from wsssbed_hub.review.prove import prove

                with progress_bar(f"prove {manifest.key} over {chosen.target}") as progress:
                    proof = prove(one.path, manifest, chosen, data_root, progress)
                one.proofs.append(proof)
                one.problems += proof.errors()
    except HubError as error:
        if error.exit_code == 2:
            raise
        one.problems.append(Problem("error", str(error)))


def _removed(folder: Path, base: str, paths: Sequence[Path]) -> list[Problem]:
    from wsssbed_hub.evaluation.inspect import Problem
    from wsssbed_hub.review import check_manifest as checking

    there = {f"{path.parent.name}/{path.stem}" for path in paths}
    gone = [key for key in checking.base_keys(base, folder) if str(key) not in there]
    return [Problem("error", f"{key} is published and its manifest was removed") for key in gone]


def _print_check(checked: list[Checked], *, as_json: bool) -> None:
    from wsssbed_hub.review.check_report import sentence

    rows: list[dict[str, Any]] = [
        {"manifest": str(one.path), "severity": severity, "what": what}
        for one in checked
        for severity, what in (
            *((problem.severity, str(problem)) for problem in one.problems),
            *(("note", text) for text in one.unchecked),
        )
    ]
    if as_json:
        print_table(rows, as_json=True)
    else:
        for row in rows:
            typer.echo(f"{row['severity']}: {row['manifest']}: {row['what']}")
        typer.echo(sentence([one for one in checked if not one.path.is_dir() or one.problems]))
    if any(one.errors for one in checked):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("import")(import_)
    for command in (contribute, check):
        app.command()(command)
