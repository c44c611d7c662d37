"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WHICH = "KEY[@VERSION], or hf:NAMESPACE/REPOSITORY[@REVISION] on the Hub."
WHERE = "KEY[@VERSION], hf:NAMESPACE/REPOSITORY[@REVISION], or a folder or zip of maps"
DATA_ROOT = Path("/data")

Registry = Annotated[
    str | None,
    typer.Option(
        help="Where artifacts are found: a folder, hf:NAMESPACE or a URL; several with commas.",
        show_default="those of `wsssbed-hub registry list`",
    ),
]
DataRoot = Annotated[
    Path, typer.Option(envvar="WSSSBED_DATA", help="Folder with the datasets, as distributed.")
]
Target = Annotated[
    str | None,
    typer.Option(help="Dataset whose images the maps are for.", show_default="the only one"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
