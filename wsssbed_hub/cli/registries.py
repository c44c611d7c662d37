"""The user's own list of registries: list, add, remove."""

from __future__ import annotations

from typing import Annotated

import typer

from wsssbed_hub.cli.options import AsJson
from wsssbed_hub.cli.output import print_table

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The registries that are searched, in order: those of WSSSBED_REGISTRY if it is set, else "
    "your own folder and those that you add. The index of wsssbed-hub comes last.",
)
_Where = Annotated[
    str, typer.Argument(help="A folder, hf:NAMESPACE on the Hub, or a URL (s3://, https://).")
]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the registries in the order in which they are searched."""
    from wsssbed_hub.registry.index import IndexRegistry
    from wsssbed_hub.registry.pull import registries_in_use
    from wsssbed_hub.registry.url.place import without_secrets

    found = [*registries_in_use(), (str(IndexRegistry()), "wsssbed-hub")]
    rows = [{"registry": without_secrets(where), "from": origin} for where, origin in found]
    print_table(rows, as_json=as_json)


@app.command()
def add(where: _Where) -> None:
    """Add a registry, at the end of the list: your own folder is searched first."""
    from wsssbed_hub.registry import multi as registries
    from wsssbed_hub.registry.pull import check_address
    from wsssbed_hub.utils.settings import registry_list

    where = check_address(where)
    registries.add(where)
    typer.echo(f"{where} is in {registry_list()}")


@app.command()
def remove(where: _Where) -> None:
    """Take a registry off the list. What it holds stays."""
    from wsssbed_hub.registry import multi as registries
    from wsssbed_hub.utils.settings import registry_list

    registries.remove(where)
    typer.echo(f"{where} is no longer in {registry_list()}")
