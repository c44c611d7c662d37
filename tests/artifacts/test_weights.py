from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as numpy
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
    found = numpy.load_file(model(tmp_path))
    assert found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)
        assert found[name].shape == expected.shape


def test_the_digest_depends_on_tensors_alone(tmp_path: Path) -> None:
    """Not on their order in the file, nor on its metadata."""
    first, last = {"a": np.zeros(2, np.uint8)}, {"b": np.ones(3, np.uint8)}
    one = weights_digest(model(tmp_path / "one", last | first))
    header = {"b": tensor(0, 3), "a": tensor(3, 5), "__metadata__": {"format": "pt"}}
    assert weights_digest(raw(tmp_path / "x", header, b"\1\1\1\0\0")) == one


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
    with pytest.raises(HubError, match="complex128"):
        model(tmp_path, {"x": np.zeros(2, np.complex128)})


GOOD = {"a": tensor(0, 4), "b": tensor(4, 8, "F32", [])}
WRONG = {
    "a header of 10 TB": ({}, b"", 10**13),
    "a header past the end": (GOOD, b"", 10_000),
    "not JSON": (b"{'a': 1}", b"", None),
    "a list": ([], b"", None),
    "deep JSON": (b"[" * 100_000, b"", None),
    "an unknown dtype": ({"a": tensor(0, 4, "F24")}, bytes(4), None),
    "a pickle": ({"a": {"pickle": "x"}}, b"", None),
    "another field": ({"a": tensor(0, 4) | {"x": 1}}, bytes(4), None),
    "a negative size": ({"a": tensor(0, 4, "U8", [-2, -2])}, bytes(4), None),
    "a fraction": ({"a": tensor(0, 4, "U8", [4.0])}, bytes(4), None),
    "true for a size": ({"a": tensor(0, 1, "U8", [True])}, bytes(1), None),
    "a wrong size": ({"a": tensor(0, 4, "F32", [2])}, bytes(4), None),
    "a huge size": ({"a": tensor(0, 4, "F32", [2**62, 4])}, bytes(4), None),
    "too few bytes": (GOOD, bytes(7), None),
    "too many bytes": (GOOD, bytes(9), None),
    "overlap": ({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6), None),
    "a gap": ({"a": tensor(0, 4), "b": tensor(5, 6)}, bytes(6), None),
    "from before": ({"a": tensor(-4, 0)}, b"", None),
    "nothing": (b"", b"", None),
}


@pytest.mark.parametrize(("header", "body", "length"), WRONG.values(), ids=WRONG)
def test_hostile_files_are_refused(
    tmp_path: Path, header: Any, body: bytes, length: int | None
) -> None:
    path = raw(tmp_path / "model.safetensors", header, body, length)
    with pytest.raises(HubError, match=r"model\.safetensors.*not .*a safetensors file"):
        weights_digest(path)


@pytest.mark.parametrize("second", ['"a"', '"\\u0061"'])
def test_a_name_that_is_given_twice_is_refused(tmp_path: Path, second: str) -> None:
    """The library takes the last and passes over the first."""
    entry = json.dumps(tensor(0, 4))
    path = raw(tmp_path / "x", f'{{"a": {entry}, {second}: {entry}}}'.encode(), bytes(4))
    assert list(numpy.load_file(path)) == ["a"]
    with pytest.raises(HubError, match="given twice"):
        read_header(path)


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
