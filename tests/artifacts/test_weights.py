from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsssbed_hub.artifacts.weights import read_config, read_header, weights_digest, write_weights
from wsssbed_hub.utils.errors import HubError

TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.count": np.array(7, dtype=np.int64),
    "a.flag": np.array([True, False, True]),
    "c.half": np.ones((3, 0, 2), dtype=np.float16),
    "z.turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
}


def model(folder: Path, tensors: Any = TENSORS) -> Path:
    written = write_weights(folder, tensors, {"classes": 20}, settings={})
    return written.folder / "model.safetensors"


def raw(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text + body)
    return path


def tensor(begin: int, end: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    found = numpy.load_file(model(tmp_path))
    assert found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)
        assert found[name].shape == expected.shape


def test_the_digest_of_the_library_s_files_is_the_same(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(array) for name, array in TENSORS.items()}
    arrays["a.count"] = TENSORS["a.count"]
    numpy.save_file(arrays, tmp_path / "other", metadata={"format": "pt"})
    assert weights_digest(tmp_path / "other") == weights_digest(model(tmp_path / "mine"))


def test_the_digest_is_the_one_that_is_described(tmp_path: Path) -> None:
    text = b'wsssbed-hub weights 1\n["a", "U8", [2]]\n\x01\x02["b", "F32", []]\n' + bytes(4)
    path = model(tmp_path, {"b": np.float32(0), "a": np.array([1, 2], dtype=np.uint8)})
    assert weights_digest(path) == "sha256:" + hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros(4, np.float32)},
        {"b": np.zeros((4, 1), np.float32)},
        {"b": np.zeros(4, np.int32)},
        {"b": np.array([0, 0, 0, 1], np.float32)},
    ],
)
def test_the_digest_tells_tensors_apart(tmp_path: Path, other: Any) -> None:
    one = weights_digest(model(tmp_path / "1", {"b": np.zeros(4, np.float32)}))
    assert weights_digest(model(tmp_path / "2", other)) != one


def test_every_tensor_lies_at_a_multiple_of_its_element(tmp_path: Path) -> None:
    for found in read_header(model(tmp_path)):
        assert found.begin % TENSORS[found.name].itemsize == 0


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="'x' is complex64"):
        model(tmp_path, {"x": np.zeros(2, np.complex64)})


GOOD = {"a": tensor(0, 4), "b": tensor(4, 8, "F32", [])}
WRONG = {
    "a header of 10 TB": ({}, b"", 10**13, "is cut short"),
    "a header past the end": (GOOD, b"", 10_000, "is cut short"),
    "not JSON": (b"{'a': 1}", b"", None, "no header"),
    "a list": ([], b"", None, "no header"),
    "deep JSON": (b"[" * 100_000, b"", None, "no header"),
    "a name twice": (b'{"a": 1, "a": 1}', b"", None, "given twice"),
    "an unknown dtype": ({"a": tensor(0, 4, "F24")}, bytes(4), None, "no header"),
    "a pickle": ({"a": {"pickle": "x"}}, b"", None, "no header"),
    "another field": ({"a": tensor(0, 4) | {"x": 1}}, bytes(4), None, "no header"),
    "a negative size": ({"a": tensor(0, 4, "U8", [-2, -2])}, bytes(4), None, "no header"),
    "a fraction": ({"a": tensor(0, 4, "U8", [4.0])}, bytes(4), None, "no header"),
    "true for a size": ({"a": tensor(0, 1, "U8", [True])}, bytes(1), None, "no header"),
    "a wrong size": ({"a": tensor(0, 4, "F32", [2])}, bytes(4), None, "the size of 'a'"),
    "a huge size": ({"a": tensor(0, 4, "F32", [2**62, 4])}, bytes(4), None, "the size of 'a'"),
    "too few bytes": (GOOD, bytes(7), None, "speaks of"),
    "too many bytes": (GOOD, bytes(9), None, "speaks of"),
    "overlap": ({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6), None, "does not begin where"),
    "a gap": ({"a": tensor(0, 4), "b": tensor(5, 6)}, bytes(6), None, "does not begin where"),
    "from before": ({"a": tensor(-4, 0)}, b"", None, "no header"),
}


@pytest.mark.parametrize(("header", "body", "length", "message"), WRONG.values(), ids=WRONG)
def test_hostile_files_are_refused(
    tmp_path: Path, header: Any, body: bytes, length: int | None, message: str
) -> None:
    path = raw(tmp_path / "model.safetensors", header, body, length)
    with pytest.raises(HubError, match=message):
        weights_digest(path)


def test_a_good_file_by_hand(tmp_path: Path) -> None:
    path = raw(tmp_path / "x", GOOD | {"__metadata__": {"format": "pt"}}, bytes(8))
    assert [found.name for found in read_header(path)] == ["a", "b"]


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_header_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = raw(tmp_path_factory.getbasetemp() / "damaged", GOOD, bytes(8))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tensors = read_header(path)
    except HubError:
        return
    assert all(0 <= found.begin <= found.end <= len(content) for found in tensors)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1, "a": 2}', "[" * 100_000, " " * (2 << 20)])
def test_a_configuration_is_one_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HubError, match=r"config\.json"):
        read_config(tmp_path / "config.json")
