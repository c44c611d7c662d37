"""Commands on the cache: cache list|prune|verify."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsssbed_hub.cli.options import AsJson
from wsssbed_hub.cli.output import note, print_table
from wsssbed_hub.utils.progress import progress_bar
from wsssbed_hub.utils.units import human

if TYPE_CHECKING:
    from wsssbed_hub.cache.scan import Contents

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What was fetched and is kept on this machine (WSSSBED_CACHE): list, prune, verify.",
)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List artifacts and leftovers of transfers in the cache, with size and last use."""
    from wsssbed_hub.cache.scan import scan

    contents = scan()
    _print(contents, as_json, cache=str(contents.root), total=contents.total)
    if not as_json:
        note(f"{human(contents.total)} in {contents.root}; files that several have count once.")


def _print(contents: Contents, as_json: bool, **more: object) -> None:
    rows = _rows(contents)
    if as_json:
        typer.echo(json.dumps(more | {"rows": rows}, indent=2, default=str))
    elif rows:
        shown = [
            row | {"size": human(row["size"]), "used": _age(row["used"]) if row["used"] else None}
            for row in rows
        ]
        print_table(shown, as_json=False, spare=("used",))


def _rows(contents: Contents) -> list[dict[str, Any]]:
    from wsssbed_hub.utils.text import count

    found: list[tuple[Any, ...]] = [
        ("artifact", str(one.key), one.target, contents.size_of(one), one.used)
        for one in contents.artifacts
    ]
    for left in contents.leftovers:
        size, used = contents.size(left.files), contents.changed(left.files)
        found.append((f"unfinished {left.what}", left.name, "", size, used))
    if unused := contents.unused:
        name, size = count(len(unused), "file"), contents.size(unused)
        found.append(("files of no artifact", name, "", size, contents.changed(unused)))
    for name, files in contents.others.items():
        found.append(("other", name, "", contents.size(files), None))
    columns = ("what", "name", "target", "size", "used")
    return [dict(zip(columns, row, strict=True)) for row in found]


def _age(used: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - used).total_seconds())
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return "now"


@app.command()
def prune(
    keys: Annotated[
        list[str] | None, typer.Argument(help="KEY[@VERSION] …: these artifacts.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="Artifacts that were not used for so many days."),
    ] = None,
    partials: Annotated[
        bool, typer.Option("--partials", help="Transfers that did not come to their end.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove from the cache what is named, and files that no artifact in it has any more.

    What a process uses stays, and so does what the cache did not put there. Folders that were
    exported with pull --to are not touched.
    """
    from wsssbed_hub.artifacts.keys import Key
    from wsssbed_hub.cache.prune import Selection, plan
    from wsssbed_hub.cache.prune import prune as remove
    from wsssbed_hub.cache.scan import scan
    from wsssbed_hub.utils.errors import UsageError

    selection = Selection(tuple(map(Key.parse, keys or ())), older_than, partials, everything)
    contents = scan()
    going, frees = plan(contents, selection)
    nothing = not any((going.artifacts, going.leftovers, going.unused, going.others))
    if nothing:
        named = keys or older_than is not None or partials or everything
        advice = "" if named else " Name artifacts, or say --older-than DAYS, --partials or --all."
        note(f"There is nothing to remove from {contents.root}.{advice}")
    _print(going, as_json, frees=frees)
    if not as_json and not nothing:
        note(f"Frees {human(frees)}; what artifacts or folders of yours share stays.")
    if dry_run or nothing:
        return
    if not yes and not sys.stdin.isatty():
        raise UsageError("There is nobody to ask. Say --yes, or --dry-run to see what would go.")
    if not yes and not typer.confirm("Remove it?", err=True):
        note("Nothing was removed.")
        return
    with progress_bar("prune", unit="things") as progress:
        pruned = remove(selection, progress=progress)
    for name, why in pruned.kept:
        note(f"kept: {name}: {why}")
    typer.echo(f"{human(pruned.freed)} freed in {contents.root}", err=as_json)


@app.command()
def verify(
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what is damaged; pull fetches it anew.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every file in the cache again and compare its sha256. The exit code is 1 for damage."""
    from wsssbed_hub.cache.verify import verify_cache
    from wsssbed_hub.utils.text import count

    with progress_bar("verify the cache") as progress:
        verified = verify_cache(remove=remove, progress=progress)
    rows = [damage._asdict() for damage in verified.damaged]
    if as_json:
        typer.echo(json.dumps({"files": verified.files, "damaged": rows}, indent=2, default=str))
    else:
        for damage in verified.damaged:
            typer.echo(f"damaged  {damage.artifact or 'no artifact'}: {damage.path}")
            typer.echo(f"  expected sha256 {damage.expected}, found {damage.found}")
            if damage.links:
                typer.echo(f"  {damage.links} files outside the cache share these bytes")
        bad = len(verified.damaged)
        typer.echo(f"{count(verified.files, 'file')}, {human(verified.size)}, {bad} damaged")
    for path in verified.removed:
        note(f"removed {path}")
    for name, why in verified.kept:
        note(f"kept: {name}: {why}")
    if verified.damaged:
        if not remove:
            note(
                "`wsssbed-hub cache verify --remove` removes what is damaged; pull fetches it anew."
            )
        raise typer.Exit(1)
