"""Reading and writing artifacts: the names that the rest of the project uses, and one way to open.

The parts are in ``artifacts``: ``maps`` (what every reader is), ``parquet`` and ``png_layout`` (the
forms), and ``shard_writer``.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from wsssbed_hub.artifacts.key_folder import MANIFEST, open_entry, read_manifest
from wsssbed_hub.artifacts.keys import names_artifact
from wsssbed_hub.artifacts.maps import Activations, Maps, check_image_id
from wsssbed_hub.artifacts.parquet import ParquetMaps
from wsssbed_hub.artifacts.png_layout import PngFolder, PngZip, write_pngs
from wsssbed_hub.artifacts.shard_writer import Written, write_maps, write_parts
from wsssbed_hub.utils.errors import HubError, UsageError

if TYPE_CHECKING:
    from wsssbed_hub.registry.base import Registry

__all__ = [
    "Activations",
    "Maps",
    "ParquetMaps",
    "PngFolder",
    "PngZip",
    "Written",
    "check_image_id",
    "open_artifact",
    "write_maps",
    "write_parts",
    "write_pngs",
]


def open_artifact(
    where: str | Path,
    target: str | None = None,
    *,
    kind: str | None = None,
    registry: Registry | str | Path | None = None,
) -> Maps:
    """Reader of the maps at a path, or of those that a key names.

    A path is a key folder (``target`` may be left out if it covers just one; its highest version is
    opened), or a folder or a zip of PNGs in the release layout. A text that is a key, such as
    ``sal/vst-duts``, is pulled from ``registry``, and one such as ``hf:wsssbed/sal-vst-duts`` from
    the Hub (see ``registry.pull``); write ``./sal/vst-duts`` for the folder. ``kind``
    says what PNGs are where their names and colours do not.

    Raises UsageError for what is none of these, for maps of another kind and for an unknown key;
    HubError for damaged or hostile files.
    """
    if isinstance(where, str) and names_artifact(where):
        from wsssbed_hub.registry.pull import pull  # the layer above, needed for these only

        where = pull(where, target, registry=registry)
    path = Path(where)
    if not path.exists():
        raise UsageError(f"{where} is neither a key nor a folder or zip that is there.")
    if path.is_dir() and not _is_key_folder(path):
        return PngFolder(path, kind)
    if path.is_dir():
        manifest = read_manifest(path)
        if kind not in (None, manifest.kind):
            raise UsageError(f"{manifest.key} has the kind {manifest.kind}, not {kind}.")
        return open_entry(path, manifest, manifest.choose(target))
    if not zipfile.is_zipfile(path):
        raise HubError(f"{path} is not a zip, or its end is missing.")
    return PngZip(path, kind)


def _is_key_folder(path: Path) -> bool:
    return os.path.lexists(path / MANIFEST) or (path / ".partial").is_dir()
