"""Weights artifacts: ``model.safetensors`` beside ``config.json``, read without torch or pickle.

The content digest of weights is the sha256 of the line ``wsssbed-hub weights 1\\n`` and then, for
each tensor in the order of the names, of the line ``<JSON [name, dtype, shape]>\\n`` and its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save

from wsssbed_hub.artifacts.shard_writer import Written, record
from wsssbed_hub.utils.errors import HubError
from wsssbed_hub.utils.files import CHUNK, disk_errors, write_whole

MODEL, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG = 1 << 20

_WEIGHTS = "wsssbed-hub weights 1\n"
_ENTRY = {"dtype", "shape", "data_offsets"}


class Tensor(NamedTuple):
    """A tensor and its place in its file, in bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file in the order of their names; no tensor is read.

    Raises HubError for a file that is cut short or contradicts itself, as the library finds (bytes
    that no tensor or more than one lays claim to, sizes that do not follow from dtype and shape,
    unknown dtypes, a header above 100 MB), and for what it passes over: a name that is given twice
    and fields that the format does not have.
    """
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length), object_pairs_hook=_without_repeats)
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise HubError(
            f"{path} is not a safetensors file, or is damaged or cut short: {error}."
        ) from None
    entries.pop("__metadata__", None)
    tensors = []
    for name, entry in entries.items():
        if entry.keys() != _ENTRY:
            raise HubError(f"{path}: the entry of {name[:200]!r} is not one of a safetensors file.")
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors.append(Tensor(name, entry["dtype"], tuple(entry["shape"]), begin, end))
    return sorted(tensors)


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
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with disk_errors(folder, sum(array.nbytes for array in arrays.values())):
        files.mkdir(parents=True, exist_ok=True)
        write_whole(files / MODEL, _safetensors(arrays))
        write_whole(files / CONFIG, json.dumps(config, indent=2, sort_keys=True).encode())
        content = weights_digest(files / MODEL)
        return record(folder, "weights", [files / CONFIG, files / MODEL], content, settings)


def _safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    try:
        return save(arrays)
    except (safetensors.SafetensorError, ValueError) as error:
        raise HubError(f"These tensors cannot be written as safetensors: {error}.") from None
