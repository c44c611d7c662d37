"""Small artifacts for tests, made without the code under test wherever that is what is tested."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.manifest import Environment, Manifest, MethodCitation, Provenance
from wsssbed_hub.artifacts.maps import Activations, Maps
from wsssbed_hub.artifacts.shard_writer import Written, write_maps


class Outcome(NamedTuple):
    """End of a command: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Hub = Callable[..., Outcome]
"""Runs ``wsssbed-hub`` with the words that it is given (the fixture ``command``)."""

IDS = ["2007_000032", "2007_000039", "2007_000063"]


def noise(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    """uint8[H, W] that does not compress."""
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def maps_of(kind: str, ids: list[str] | None = None, **size: int) -> dict[str, Any]:
    """Maps by image id, of different sizes unless ``size`` says otherwise."""
    found: dict[str, Any] = {}
    for number, image_id in enumerate(ids or IDS):
        shape = {"height": 6 + number % 3, "width": 8} | size
        if kind == "cam":
            classes = np.array([number % 20, 20 + number % 3], dtype=np.int64)
            pixels = [noise(2 * number + k, **shape) for k in range(2)]
            found[image_id] = Activations(np.stack(pixels), classes)
        elif kind == "label":
            found[image_id] = noise(number, **shape) % 21
        else:
            found[image_id] = noise(number, **shape)
    return found


class InMemory(Maps):
    """Maps by image id: arrays, and for ``cam`` (activations, class ids)."""

    def __init__(self, kind: str, maps: Mapping[str, Any], name: str = "given") -> None:
        self.kind, self.name, self._maps = kind, name, maps
        self.image_ids = sorted(maps)

    def read(self, image_id: str) -> Any:
        return self._maps[image_id]


def provenance(**other: Any) -> Provenance:
    return Provenance(
        stage="sod-test",
        command=["python", "-m", "stages"],
        project_version="0.1.0",
        date=datetime(2026, 1, 2, tzinfo=UTC),
        environment=Environment(python="3.11"),
        **other,
    )


def written(folder: Path, kind: str, maps: Mapping[str, Any], settings: Any = None) -> Written:
    return write_maps(folder, kind, list(maps), maps.__getitem__, settings=settings or {})


def key_folder(
    folder: Path,
    kind: str = "sal",
    maps: Mapping[str, Any] | None = None,
    *,
    name: str = "test",
    target: str = "shapes",
    version: str = "1.0.0",
    settings: Any = None,
) -> Manifest:
    """A complete key folder."""
    return complete(
        folder,
        written(folder, kind, maps if maps is not None else maps_of(kind), settings),
        key=f"{kind}/{name}",
        target=target,
        version=version,
        title="Maps for a test",
        method=MethodCitation(name="Test"),
        provenance=provenance(),
    )


def png(pixels: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    """PNG bytes as Pillow writes them; mode P gets an arbitrary palette."""
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    elif mode is not None:
        picture = picture.convert(mode)
    file = io.BytesIO()
    picture.save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG put together by hand, so that it can be wrong in any way; checksums are right."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


def header(width: int, height: int, depth: int = 8, colour: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def flip(path: Path, place: int, bit: int = 3) -> None:
    """Flips one bit of the file in a new file at the same path, so links elsewhere keep theirs."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.unlink()
    path.write_bytes(data)


def same(one: Any, two: Any) -> bool:
    """Whether two results of ``Maps.read`` are the same maps."""
    if isinstance(one, Activations) != isinstance(two, Activations):
        return False
    if isinstance(one, Activations):
        return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(np.array_equal(one, two))


def leftovers(folder: Path) -> list[Path]:
    """Files that unfinished work would have left below ``folder``."""
    names = (".partial", ".tmp")
    return [path for path in folder.rglob("*") if path.name.endswith(names)]
