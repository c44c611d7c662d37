"""What lies in the cache: cache list|prune|verify."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsssbed_hub.cli.options import AsJson
from wsssbed_hub.cli.output import note, print_table
from wsssbed_hub.utils.progress import progress_bar
from wsssbed_hub.utils.units import human

if TYPE_CHECKING:
    from pathlib import Path

    from wsssbed_hub.cache.prune import Plan, Selection
    from wsssbed_hub.cache.scan import Contents

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What was fetched and is kept on this machine (WSSSBED_CACHE): list, prune, verify.",
)
_SHOWN = 20  # foreign files that are named one by one


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List artifacts and unfinished transfers in the cache, with size and last use."""
    from wsssbed_hub.cache.scan import look

    contents = look()
    rows = _rows(contents)
    if as_json:
        whole = {
            "cache": str(contents.root),
            "total": contents.total,
            "rows": rows,
            "foreign": [str(path) for path in contents.foreign],
        }
        typer.echo(json.dumps(whole, indent=2, default=str))
        return
    if rows:
        print_table([_shown(row) for row in rows], as_json=False, spare=("last used",))
    note(f"{human(contents.total)} in {contents.root}; files that several have count once.")
    _name(contents.foreign)


def _rows(contents: Contents) -> list[dict[str, Any]]:
    from wsssbed_hub.utils.text import count

    rows: list[dict[str, Any]] = [
        {
            "what": "artifact",
            "name": str(one.key),
            "target": one.target,
            "size": one.size,
            "used": one.used,
        }
        for one in contents.artifacts
    ]
    for left in contents.unfinished:
        what = f"unfinished {left.what}"
        rows.append(
            {"what": what, "name": left.name, "target": "", "size": left.size, "used": left.used}
        )
    others = [("files of no artifact", contents.unused()), ("downloads", contents.downloads)]
    for what, paths in others:
        if paths:
            size = sum(path.lstat().st_size for path in paths)
            used = max(datetime.fromtimestamp(path.lstat().st_mtime, UTC) for path in paths)
            name = count(len(paths), "file")
            rows.append({"what": what, "name": name, "target": "", "size": size, "used": used})
    for area, size in contents.derived.items():
        rows.append({"what": "other", "name": area, "target": "", "size": size, "used": None})
    return rows


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    used = row["used"]
    return {
        "what": row["what"],
        "name": row["name"],
        "target": row["target"],
        "size": human(row["size"]),
        "last used": None if used is None else f"{used.astimezone():%Y-%m-%d %H:%M}",
        "age": None if used is None else _age(used),
    }


def _age(used: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - used).total_seconds())
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return "now"


def _name(foreign: Iterable[Path]) -> None:
    """Says what is not the cache's."""
    paths = [str(path) for path in foreign]
    for path in paths[:_SHOWN]:
        note(f"not the cache's, left alone: {path!r}")
    if len(paths) > _SHOWN:
        note(f"and {len(paths) - _SHOWN:,} more")


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
    from wsssbed_hub.cache.scan import look
    from wsssbed_hub.utils.errors import UsageError

    selection = Selection(tuple(map(Key.parse, keys or ())), older_than, partials, everything)
    contents = look()
    wanted = plan(contents, selection)
    if not wanted:
        note(f"There is nothing to remove from {contents.root}.{_advice(selection)}")
    if wanted or as_json:
        _say(wanted, as_json=as_json)
    if dry_run or not wanted:
        _name(contents.foreign)
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


def _advice(selection: Selection) -> str:
    named = selection.keys or selection.older_than is not None or selection.partials
    if named or selection.everything:
        return ""
    return " Name artifacts, or say --older-than DAYS, --partials or --all."


def _say(wanted: Plan, *, as_json: bool) -> None:
    rows = _goes(wanted)
    if as_json:
        typer.echo(json.dumps({"frees": wanted.frees, "rows": rows}, indent=2, default=str))
        return
    shown = [
        {
            "goes": row["goes"],
            "name": row["name"],
            "size": "" if row["size"] is None else human(row["size"]),
            "unused for": "" if row["used"] is None else _age(row["used"]),
        }
        for row in rows
    ]
    print_table(shown, as_json=False, spare=("unused for",))
    note(f"Frees {human(wanted.frees)}; what artifacts or folders of yours share stays.")


def _goes(wanted: Plan) -> list[dict[str, Any]]:
    """A row for each thing; sizes in bytes, None where that is not known."""
    found: list[tuple[Any, ...]] = [
        *(("artifact", one.name, one.size, one.used) for one in wanted.artifacts),
        *((one.what, one.name, one.size, one.used) for one in wanted.unfinished),
    ]
    for what, paths in (("files", wanted.blobs), ("downloads", wanted.downloads)):
        if paths:
            size = sum(path.lstat().st_size for path in paths)
            found.append((what, str(len(paths)), size, None))
    found += [("other", name, None, None) for name in wanted.derived]
    return [dict(zip(("goes", "name", "size", "used"), row, strict=True)) for row in found]


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
