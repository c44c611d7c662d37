"""Parquet shards: the published form of maps, read at random by row group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsssbed_hub.artifacts.maps import (
    Activations,
    EncodedMaps,
    check_image_id,
    release_names,
)
from wsssbed_hub.artifacts.png_codec import GREY, PALETTE, encode_png
from wsssbed_hub.utils.errors import HubError

COLUMN = {"sal": "saliency", "cam": "activations", "label": "label"}

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as `datasets` stores images
_MAX_ROWS = 1 << 24  # of one shard
_MAX_GROUP_BYTES = 1 << 30  # decoded from one row group
_BATCH = 16  # rows that are decoded before their size is looked at


def schema(kind: str) -> pa.Schema:
    """Columns of a shard, with the features that `datasets` and the Hub's viewer look for."""
    image = {"_type": "Image"}
    fields = [("image_id", pa.string())]
    features: dict[str, Any] = {"image_id": {"dtype": "string", "_type": "Value"}}
    if kind == "cam":
        fields += [("class_ids", pa.list_(pa.int32())), ("activations", pa.list_(_IMAGE))]
        features["class_ids"] = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
        features["activations"] = {"feature": image, "_type": "List"}
    else:
        fields.append((COLUMN[kind], _IMAGE))
        features[COLUMN[kind]] = image
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(fields, metadata=metadata)


def row(kind: str, image_id: str, maps: np.ndarray | Activations) -> dict[str, Any]:
    """One row of a shard: the maps (as ``Maps.read`` gives them) as PNGs."""
    class_ids: list[int] = []
    pixels = [maps]
    if isinstance(maps, Activations):
        class_ids = [int(c) for c in maps.class_ids]
        pixels = list(maps.activations)
    images = [
        {"bytes": encode_png(np.asarray(map_), palette=kind == "label"), "path": path}
        for map_, path in zip(pixels, release_names(image_id, class_ids), strict=True)
    ]
    if kind == "cam":
        return {"image_id": image_id, "class_ids": class_ids, "activations": images}
    return {"image_id": image_id, COLUMN[kind]: images[0]}


def writer(path: Path, kind: str, extra: dict[str, str] | None = None) -> pq.ParquetWriter:
    """A writer of shards: the same rows give the same bytes, and every page has a checksum."""
    columns = schema(kind)
    return pq.ParquetWriter(
        path,
        columns.with_metadata({**columns.metadata, **(extra or {})}),
        compression="none",  # the PNGs are compressed
        use_dictionary=False,
        write_statistics=["image_id"],
        write_page_checksum=True,
    )


@contextmanager
def damage_in(path: Path) -> Iterator[None]:
    """Says whatever Arrow finds wrong with the file at ``path`` as a HubError."""
    try:
        yield
    except FileNotFoundError:
        raise HubError(f"{path} is not there. Fetch it again.") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        what = " ".join(str(error).split())[:300]
        raise HubError(f"{path} is damaged or cut short: {what}. Fetch it again.") from None


class ParquetMaps(EncodedMaps):
    """Maps in Parquet shards, rows in ascending order of the image ids over all ``files``.

    A read loads one row group and keeps it, so reading in order is fast; page checksums are
    compared, and ``strict`` inflates every PNG twice (see ``check_png``). Opening raises HubError
    if the columns or the ids are not what they have to be. Nothing is held open: instances may be
    forked, pickled and used by threads.
    """

    def __init__(
        self,
        files: Sequence[Path],
        kind: str,
        *,
        name: str,
        key: str | None = None,
        content: str | None = None,
        strict: bool = False,
    ):
        colours = (GREY, PALETTE) if kind == "label" else (GREY,)
        super().__init__(kind, name, colours=colours, strict=strict)
        self.key, self.content = key, content
        self._files = list(files)
        self.stored_bytes = 0
        self._footers: list[pq.FileMetaData] = []
        self._rows: dict[str, tuple[int, int, int]] = {}  # image id: file, row group, row
        self._loaded: tuple[tuple[int, int], list[dict[str, Any]]] | None = None
        for number in range(len(self._files)):
            self._index(number)
        self.image_ids = list(self._rows)

    def _index(self, number: int) -> None:
        path = self._files[number]
        last = next(reversed(self._rows), "")
        with damage_in(path), pq.ParquetFile(path) as file:
            self.stored_bytes = (self.stored_bytes or 0) + path.stat().st_size
            self._footers.append(file.metadata)
            self._check_columns(path, file.schema_arrow)
            if file.metadata.num_rows > _MAX_ROWS:
                raise HubError(f"{path} claims {file.metadata.num_rows:,} rows, too many.")
            groups = range(file.num_row_groups)
        for group in groups:
            for place, found in enumerate(self._load(number, group, ["image_id"])):
                image_id = check_image_id(found["image_id"] or "")
                if image_id <= last:
                    raise HubError(f"{path}: image {image_id} comes after {last}, not in order.")
                self._rows[image_id] = (number, group, place)
                last = image_id

    def _check_columns(self, path: Path, found: pa.Schema) -> None:
        wanted = schema(self.kind)
        if not found.equals(wanted):
            raise HubError(
                f"{path} has the columns {_columns(found)}; maps of kind {self.kind} have "
                f"{_columns(wanted)}."
            )

    def _load(self, number: int, group: int, columns: list[str]) -> list[dict[str, Any]]:
        path, footer = self._files[number], self._footers[number]
        rows: list[dict[str, Any]] = []
        size = 0
        with (
            damage_in(path),
            pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file,
        ):
            batches = file.iter_batches(
                _BATCH, row_groups=[group], columns=columns, use_threads=False
            )
            for batch in batches:
                size += batch.nbytes
                if size > _MAX_GROUP_BYTES:
                    raise HubError(f"{path}: row group {group} is larger than 1 GiB.")
                rows += batch.to_pylist()
        return rows

    def pngs(self, image_id: str) -> tuple[list[bytes], list[int]]:
        if image_id not in self._rows:
            raise HubError(f"{self.name} has no maps of image {image_id}.")
        number, group, place = self._rows[image_id]
        loaded = self._loaded
        if loaded is None or loaded[0] != (number, group):
            loaded = ((number, group), self._load(number, group, schema(self.kind).names))
            self._loaded = loaded
        found = loaded[1][place] if place < len(loaded[1]) else {"image_id": None}
        if found["image_id"] != image_id:
            raise HubError(f"{self._files[number]} changed while it was read. Open it again.")
        images = found[COLUMN[self.kind]]
        images = images if self.kind == "cam" else [images]
        datas = [image["bytes"] for image in images or () if image is not None]
        class_ids = found.get("class_ids") or []
        if None in datas or None in class_ids or len(datas) != len(images or ()):
            raise HubError(f"{self._of(image_id)}: the shard holds no picture or no class for it.")
        return datas, class_ids

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}


def _columns(columns: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in columns)
