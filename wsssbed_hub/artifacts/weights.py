"""Weights artifacts: ``model.safetensors`` beside ``config.json``, read without torch or pickle.

The content digest of weights is the sha256 of the line ``wsssbed-hub weights 1\\n`` and then, for
each tensor in the order of the names, of the line ``<JSON [name, dtype, shape]>\\n`` and its bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from wsssbed_hub.artifacts.shard_writer import Written, record
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import CHUNK, expect_trouble, write_whole

MODEL, CONFIG = "model.safetensors", "config.json"
MAX_HEADER = 100_000_000  # bytes; the limit that the format itself sets
MAX_CONFIG = 1 << 20

_WEIGHTS = "wsssbed-hub weights 1\n"
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_DTYPES = {
    "b1": "BOOL", "u1": "U8", "i1": "I8", "u2": "U16", "i2": "I16", "f2": "F16",
    "u4": "U32", "i4": "I32", "f4": "F32", "u8": "U64", "i8": "I64", "f8": "F64",
}  # fmt: skip


class Tensor(NamedTuple):
    """Where a tensor lies in its file, in bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file in the order of their names; no tensor is read.

    Raises HubError for a file that is cut short or contradicts itself: bytes that no tensor or
    more than one lays claim to, sizes that do not follow from dtype and shape, unknown dtypes.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise HubError(f"{path} is not a safetensors file, or is cut short.")
        text = file.read(length)
    try:
        entries = json.loads(text, object_pairs_hook=_without_repeats)
        entries.pop("__metadata__", None)
        tensors = [_tensor(name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HubError(f"{path} has no header of a safetensors file: {error}.") from None
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != end:
            raise HubError(f"{path}: {tensor.name[:200]!r} does not begin where the last ends.")
        end = tensor.end
    if end != size:
        raise HubError(f"{path} has {size:,} bytes; its header speaks of {end:,}.")
    return sorted(tensors)


def _tensor(name: str, entry: dict[str, Any], start: int) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    numbers = (begin, end, *shape)
    if set(entry) != {"dtype", "shape", "data_offsets"} or any(
        type(n) is not int or n < 0 for n in numbers
    ):
        raise ValueError(f"the entry of {name[:200]!r}")
    if end - begin != _SIZES[entry["dtype"]] * math.prod(shape):
        raise ValueError(f"the size of {name[:200]!r}")
    return Tensor(name, entry["dtype"], shape, start + begin, start + end)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def weights_digest(path: Path) -> str:
    """Content digest, ``sha256:…``, of the tensors in a safetensors file.

    Raises HubError as ``read_header`` does.
    """
    digest = hashlib.sha256(_WEIGHTS.encode())
    with open(path, "rb") as file:
        for tensor in read_header(path):
            line = json.dumps([tensor.name, tensor.dtype, list(tensor.shape)])
            digest.update(f"{line}\n".encode())
            _add_bytes(digest, file, tensor, path)
    return "sha256:" + digest.hexdigest()


def _add_bytes(digest: Any, file: BinaryIO, tensor: Tensor, path: Path) -> None:
    file.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        data = file.read(min(left, CHUNK))
        if not data:
            raise HubError(f"{path} is cut short in the tensor {tensor.name[:200]!r}.")
        digest.update(data)
        left -= len(data)


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``config.json``. Raises HubError for anything else."""
    if path.stat().st_size > MAX_CONFIG:
        raise HubError(f"{path} has more than {MAX_CONFIG:,} bytes, too many for a configuration.")
    try:
        config = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise HubError(f"{path} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise HubError(f"{path} is not a JSON object.")
    return config


def write_weights(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
) -> Written:
    """Writes ``model.safetensors`` and ``config.json``, which wait in ``<folder>/.partial``.

    ``tensors`` are arrays of any shape, of booleans, integers or floats. The same tensors give the
    same bytes. Raises HubError for other dtypes and for a full disk.
    """
    files = folder / ".partial" / "files"
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    with expect_trouble(folder, sum(array.nbytes for array in arrays.values())):
        files.mkdir(parents=True, exist_ok=True)
        write_whole(files / MODEL, _safetensors(arrays))
        write_whole(files / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())
        content = weights_digest(files / MODEL)
        return record(folder, "weights", [files / CONFIG, files / MODEL], content, settings)


def _safetensors(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    # Wide elements first: readers map the file, and an element must lie at a multiple of its size.
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header = {}
    end = 0
    for name in names:
        array = arrays[name]
        dtype = _DTYPES.get(array.dtype.str[1:])
        if dtype is None:
            raise HubError(f"The tensor {name!r} is {array.dtype}, which safetensors cannot hold.")
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        array = arrays[name]
        yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
