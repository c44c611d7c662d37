"""Files that were named as weights and are none: what each of them is, and what to do about it.

People name what they have downloaded, which is often not what they meant to: the page that asks
whether to go on, the pointer to a file in Git LFS, half a file, the model of another framework.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsssbed_hub.utils.errors import HubError

READS = "files of torch.save (.pth, .pt, .ckpt) and .safetensors"
AGAIN = "Download it again and compare its size with the one that is stated there."
_HEAD = 1 << 16  # bytes that are looked at
_MAX_HEADER = 100_000_000  # of safetensors, as the library has it
_SHOWN = 80  # characters of a foreign text
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch's old format begins with
_MXNET_MAGIC = (0x112).to_bytes(8, "little")  # of a list of arrays
_TENSORFLOW_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")  # ends the index of a checkpoint
_LFS = b"version https://git-lfs.github.com/spec/"
_OTHER_FRAMEWORK = (
    f"This program reads {READS}: load it with the framework that wrote it and save its arrays "
    "with torch.save, under the names of the published PyTorch code, or look for a converted file."
)
_UNPACK = "Unpack it and name the file of weights that is inside."


class Looked(NamedTuple):
    """What the checks look at."""

    path: Path
    size: int
    head: bytes
    tail: bytes


Found = tuple[str, str] | None
"""What the file is, as the end of a sentence that begins with its name, and what to do."""


def require_weights(path: Path) -> None:
    """Raises HubError that says what the file is, unless it looks like tensors of torch or
    safetensors. Nothing of it is unpickled."""
    if path.is_dir():
        raise HubError(f"{path} is a folder. Name the file of weights that is in it.")
    if not path.is_file():
        raise HubError(f"{path} is not there. Name a file of weights (.safetensors, .pth, .pt).")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    looked = Looked(path, size, head, tail)
    for check in _CHECKS:
        found = check(looked)
        if found is not None:
            what, advice = found
            raise HubError(f"{path} {what}. {advice}")


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins like one of safetensors: the length of a header, then the header."""
    return head[8:9] == b"{" and not head.startswith(b"PK")


def is_torch(head: bytes) -> bool:
    """Whether a file begins like one of torch.save: in its present form, or the one before 1.6."""
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and _TORCH_MAGIC in head[:32])


def _empty(it: Looked) -> Found:
    if not it.size:
        return "is empty", "The download did not begin, or the disk was full. Download it again."
    if not it.head.strip(b"\0"):
        return "begins with zeros alone", f"The download was never filled in. {AGAIN}"
    return None


def _web_page(it: Looked) -> Found:
    start = it.head[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not (start.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in start):
        return None
    title = re.search(rb"<title[^>]*>(.*?)</title>", it.head, re.DOTALL | re.IGNORECASE)
    named = f', titled "{_shown(title[1])}"' if title and title[1].strip() else ""
    return (
        f"is a web page{named}, not the file",
        "Servers send one that asks to log in, to confirm a large download, or says that there is "
        "no such file or that too many want it. Open the address in a browser and save the file.",
    )


def _lfs_pointer(it: Looked) -> Found:
    if not it.head.startswith(_LFS):
        return None
    size = re.search(rb"^size (\d{1,15})$", it.head, re.MULTILINE)
    of = f" to a file of {int(size[1]):,} bytes" if size else ""
    return (
        f"is a pointer of Git LFS{of}, not the file",
        "Run `git lfs pull` in the repository that it is from, or download the file itself there.",
    )


def _other_framework(it: Looked) -> Found:
    name = it.path.name
    if it.head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "is an HDF5 file, as Keras and TensorFlow write them (.h5)", _OTHER_FRAMEWORK
    if it.head.startswith(_MXNET_MAGIC):
        return "is a model of MXNet (.params)", _OTHER_FRAMEWORK
    if it.tail == _TENSORFLOW_MAGIC or re.search(r"\.data-\d{5}-of-\d{5}$", name):
        return "is part of a checkpoint of TensorFlow", _OTHER_FRAMEWORK
    if it.head.startswith(b"\x93NUMPY"):
        return "is an array of NumPy (.npy)", _OTHER_FRAMEWORK
    by_name = {".caffemodel": "Caffe", ".pb": "TensorFlow", ".onnx": "ONNX", ".params": "MXNet"}
    framework = by_name.get(it.path.suffix)
    if framework and not (is_torch(it.head) or is_safetensors(it.head)):
        return f"is, by its name, a model of {framework}", _OTHER_FRAMEWORK
    return None


def _archive(it: Looked) -> Found:
    kinds = {
        b"\x1f\x8b": "gzip",
        b"BZh": "bzip2",
        b"\xfd7zXZ\0": "xz",
        b"7z\xbc\xaf\x27\x1c": "7-Zip",
        b"Rar!": "RAR",
        b"\x28\xb5\x2f\xfd": "Zstandard",
    }
    for begin, kind in kinds.items():
        if it.head.startswith(begin):
            return f"is compressed with {kind}", _UNPACK
    if it.head[257:262] == b"ustar":
        return "is a tar archive", _UNPACK
    return None


def _zip(it: Looked) -> Found:
    if not it.head.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(it.path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return (
            f"is cut off: it begins as a file of torch.save (or another zip), and of its "
            f"{it.size:,} bytes the last are not the end of one",
            AGAIN,
        )
    inside = {Path(name).name for name in names}
    if {"data.pkl", "constants.pkl"} <= inside:
        return "is a program of TorchScript", "Load it with torch.jit.load, save its state_dict."
    if "data.pkl" in inside:
        return None
    if "model.weights.h5" in inside:
        return "is a model of Keras (.keras)", _OTHER_FRAMEWORK
    few = ", ".join(map(_shown, names[:3])) + (", ..." if len(names) > 3 else "")
    if names and all(name.endswith(".npy") for name in names):
        return f"is an archive of NumPy (.npz) with {few}", _OTHER_FRAMEWORK
    return f"is a zip that torch did not write, with {few or 'nothing'} in it", _UNPACK


def _safetensors(it: Looked) -> Found:
    if not is_safetensors(it.head):
        return None
    length = int.from_bytes(it.head[:8], "little")
    needed = 8 + length
    if needed <= it.size and length <= _MAX_HEADER:
        with open(it.path, "rb") as file:
            file.seek(8)
            header = file.read(length)
        needed += _last_byte(header)
    if needed <= it.size:
        return None
    return f"is cut off: it has {it.size:,} bytes of the {needed:,} that it begins with", AGAIN


def _last_byte(header: bytes) -> int:
    """Where the last tensor ends, after the header; 0 for one that cannot be read, of which the
    library says more."""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for k, entry in entries.items() if k != "__metadata__"]
        return max(map(int, ends), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 0


def _pickle(it: Looked) -> Found:
    if is_torch(it.head) or it.head[:1] != b"\x80" or it.head[1:2] not in b"\2\3\4\5":
        return None
    return (
        "is a pickle of Python that torch did not write",
        f"Reading it could run any program, so it is not read. This program reads {READS}.",
    )


def _text(it: Looked) -> Found:
    text = it.head[:4096].decode("utf-8", errors="replace")[:_SHOWN]
    if not all(char.isprintable() or char.isspace() for char in text) or "\ufffd" in text:
        return None
    kind = {"{": "a text (JSON)", "<": "a text (XML)"}.get(text.lstrip()[:1], "a text")
    return (
        f'is {kind} that begins with "{_shown(it.head)}"',
        "Perhaps it is what a server said instead of sending the file. Download the file again.",
    )


def _unknown(it: Looked) -> Found:
    if is_torch(it.head) or is_safetensors(it.head):
        return None
    return (
        f"is no file of weights that this program knows (it begins with {it.head[:8].hex(' ')})",
        f"It reads {READS}.",
    )


_CHECKS: Sequence[Callable[[Looked], Found]] = (
    _empty,
    _web_page,
    _lfs_pointer,
    _other_framework,
    _archive,
    _zip,
    _safetensors,
    _pickle,
    _text,
    _unknown,
)


def _shown(text: bytes | str) -> str:
    """The beginning of a foreign text, in one line that no terminal takes for commands."""
    if isinstance(text, bytes):
        text = text[:1024].decode("utf-8", errors="replace")
    line = " ".join(text.split())
    short = line[:_SHOWN] + ("..." if len(line) > _SHOWN else "")
    return "".join(char if char.isprintable() else "?" for char in short)
