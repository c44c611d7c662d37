"""Files of weights as other programs write them: what is read, and what is refused in which words.

Nothing of a pickle is run: the classes here leave a file behind when they are.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from stages.runtime.weight_files import read_tensors
from wsssbed_hub.utils.errors import HubError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}
OTHER = {name: value + 7 for name, value in STATE.items()}
MARK = "WSSSBED_TEST_MARK"


@pytest.fixture(params=[False, True], ids=["zip", "legacy"])
def legacy(request: pytest.FixtureRequest) -> bool:
    """Both forms of torch's files."""
    return request.param


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there when something was run."""
    monkeypatch.setenv(MARK, str(tmp_path / "it ran"))
    return tmp_path / "it ran"


def ran(*_: object) -> None:
    Path(os.environ[MARK]).touch()


class Runs:
    """Leaves the mark when it is unpickled in any way."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple:
        if self.how == "called":
            return ran, (1,)
        return Made, (), {"state": 1}, iter([1]), iter([("key", 2)])


class Made:
    """What the unpickling of ``Runs`` would make."""

    def __init__(self) -> None:
        ran()

    __setstate__ = append = extend = __setitem__ = ran


def write(path: Path, data: object, legacy: bool) -> Path:
    torch.save(data, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_read(path: Path, expected: dict[str, Tensor]) -> None:
    read = read_tensors(path)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "wrappers",
    ["", "state_dict", "model", "model_state", "model_state_dict", "net", "model state_dict"],
)
def test_torch_files_are_read_wherever_they_keep_their_tensors(
    tmp_path: Path, legacy: bool, wrappers: str
) -> None:
    data: dict[str, Any] = STATE
    for wrapper in reversed(wrappers.split()):
        data = {"epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, wrapper: data}
    assert_read(write(tmp_path / "weights.pth", data, legacy), STATE)


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "odd.name", metadata={"format": "pt"})
    assert_read(tmp_path / "odd.name", STATE)


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_taken_off(tmp_path: Path, legacy: bool, prefix: str) -> None:
    state = {prefix + name: value for name, value in STATE.items()}
    assert_read(write(tmp_path / "w.pth", {"state_dict": state}, legacy), STATE)


def test_a_part_of_the_network_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    state = {"module.weight": STATE["weight"], "head.weight": STATE["bias"]}
    assert_read(write(tmp_path / "w.pth", state, False), state)


def test_a_checkpoint_of_mmsegmentation_0(tmp_path: Path, legacy: bool) -> None:
    """MMCV's form: what it was trained with, the optimiser, and a second copy of every parameter,
    which holds the last step while the first holds the average."""
    state = {"decode_head.conv.weight": STATE["weight"], "backbone.bias": STATE["bias"]}
    copies = {
        "ema_decode_head_conv_weight": OTHER["weight"],
        "ema_backbone_bias": OTHER["bias"],
    }
    data = {
        "meta": {"CLASSES": ("a", "b"), "PALETTE": np.zeros((2, 3), np.uint8), "iter": 5},
        "state_dict": OrderedDict({f"module.{k}": v for k, v in (state | copies).items()}),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []},
    }
    assert_read(write(tmp_path / "iter_5.pth", data, legacy), state)


def test_a_checkpoint_of_mmsegmentation_1(
    tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MMEngine's form: its log holds objects of its own, and their functions. The average is in
    ``state_dict``. MMEngine is not installed where it is read."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history = np.array([1.0, 2.0])
            self.methods = {"min": HistoryBuffer.minimum}

        def minimum(self) -> None: ...

    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.minimum.__qualname__ = "HistoryBuffer.minimum"
    HistoryBuffer.__module__ = HistoryBuffer.minimum.__module__ = "mmengine.history_buffer"
    data = {
        "meta": {"dataset_meta": {"palette": np.zeros((2, 3))}, "seed": np.int64(3)},
        "ema_state_dict": {f"module.{name}": value for name, value in OTHER.items()},
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
        "state_dict": STATE,
        "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]},
    }
    with monkeypatch.context() as installed:
        module = ModuleType("mmengine.history_buffer")
        module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
        installed.setitem(sys.modules, "mmengine", ModuleType("mmengine"))
        installed.setitem(sys.modules, "mmengine.history_buffer", module)
        path = write(tmp_path / "iter_5.pth", data, legacy)
    assert_read(path, STATE)


@pytest.mark.parametrize("how", ["called", "built"])
def test_what_a_checkpoint_holds_beside_tensors_is_not_run(
    tmp_path: Path, mark: Path, legacy: bool, how: str
) -> None:
    path = write(tmp_path / "w.pth", {"state_dict": STATE, "meta": Runs(how)}, legacy)
    assert_read(path, STATE)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so it would have been seen


@pytest.mark.parametrize("command", [(os.system, "touch {}"), (eval, "open({!r}, 'w')")])
def test_a_pickle_that_names_a_program_is_refused_and_does_not_run(
    tmp_path: Path, mark: Path, legacy: bool, command: tuple
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return command[0], (command[1].format(str(mark)),)

    path = write(tmp_path / "weights.pth", {"weight": torch.zeros(1), "x": Bomb()}, legacy)
    with pytest.raises(HubError, match=r"more than tensors.*(system|eval).*could run any program"):
        read_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize("data", [{}, [1, 2], {"epoch": 3}, {1: torch.zeros(2)}])
def test_files_without_named_tensors_are_refused(tmp_path: Path, data: object) -> None:
    with pytest.raises(HubError, match="no named tensors"):
        read_tensors(write(tmp_path / "w.pth", data, False))


def test_a_file_with_its_weights_in_an_unknown_place_says_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", {"epoch": 3, "generator": STATE}, False)
    with pytest.raises(HubError, match="entries 'epoch', 'generator'"):
        read_tensors(path)


def test_a_whole_network_is_refused(tmp_path: Path, legacy: bool) -> None:
    with pytest.raises(HubError, match=r"whole pickled object.*state_dict"):
        read_tensors(write(tmp_path / "w.pth", nn.Linear(2, 2), legacy))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_says_so(tmp_path: Path, kept: float) -> None:
    state = {"weight": torch.zeros(100, 100)}
    for name, legacy in (("a.pth", False), ("b.pth", True)):
        whole = write(tmp_path / name, state, legacy).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(HubError, match=rf"{name} is (cut off|damaged).*Download it again"):
            read_tensors(tmp_path / name)
    whole = save(state)
    (tmp_path / "c").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(HubError, match=f"of the {len(whole):,} that it begins with"):
        read_tensors(tmp_path / "c")


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return buffer.getvalue()


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 178793939\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive -\n Quota\x1b[2J</title></head></html>"
MXNET = (0x112).to_bytes(8, "little") + bytes(8) + b"\x02\0\0\0\0\0\0\0"
KINDS: dict[str, tuple[str, bytes, str]] = {
    "nothing": ("w.pth", b"", "is empty.*Download it again"),
    "zeros": ("w.pth", bytes(5000), "begins with zeros.*Download it again"),
    "page": ("w.pth", PAGE, r'is a web page, titled "Google Drive - Quota\?\[2J".*in a browser'),
    "page without a title": ("w.pth", b"<html><body>403", "is a web page, not the file"),
    "git-lfs": ("w.safetensors", LFS, r"Git LFS to a file of 178,793,939 bytes.*git lfs pull"),
    "mxnet": ("r38.params", MXNET, r"a model of MXNet \(\.params\).*torch\.save"),
    "mxnet, renamed": ("r38.pth", MXNET, r"a model of MXNet \(\.params\).*torch\.save"),
    "keras": ("w.h5", b"\x89HDF\r\n\x1a\n\0\0", r"HDF5 file, as Keras and TensorFlow.*torch\.save"),
    "keras, renamed": ("w.pth", b"\x89HDF\r\n\x1a\n\0\0", "HDF5 file, as Keras"),
    "keras 3": (
        "w.keras",
        zipped("config.json", "model.weights.h5"),
        r"of Keras \(\.keras\)",
    ),
    "tensorflow": (
        "model.ckpt.index",
        b"\0\x01\x02" + 0xDB4775248B80FB57.to_bytes(8, "little"),
        "part of a checkpoint of TensorFlow",
    ),
    "tensorflow's data": ("m.data-00000-of-00001", b"\x01\x02\x03", "checkpoint of TensorFlow"),
    "caffe": ("vgg.caffemodel", b"\n\x05VGG_1\x8b", "by its name, a model of Caffe"),
    "numpy": ("w.npy", b"\x93NUMPY\x01\0", r"array of NumPy \(\.npy\)"),
    "numpy's zip": ("w.npz", numpy_archive(), r"archive of NumPy \(\.npz\) with a\.npy"),
    "zip": ("w.pth", zipped("a/w.pth", "b", "c", "d"), r"torch did not write, with a/w\.pth, b, c"),
    "an empty zip": ("w.pth", zipped(), "no file of weights that this program knows"),
    "torchscript": (
        "w.pt",
        zipped("w/data.pkl", "w/constants.pkl"),
        "a program of TorchScript",
    ),
    "gzip": ("w.pth.gz", b"\x1f\x8b\x08\0", "compressed with gzip.*Unpack it"),
    "tar": ("w.tar", tarred(), "is a tar archive.*Unpack it"),
    "pickle": ("w.pkl", pickle.dumps({"a": 1}), "pickle of Python that torch did not write"),
    "json": ("w.pth", b'{"error": "Not found"}', r'text \(JSON\) that begins with "\{"error"'),
    "xml": ("w.pth", b"<Error><Code>AccessDenied", r"text \(XML\) that begins with .*AccessDenied"),
    "text": ("w.pth", b"404: Not Found", 'a text that begins with "404: Not Found"'),
    "noise": ("w.pth", b"\x01\xff\xfe\x99zz", r"no file of weights .*begins with 01 ff fe 99"),
    "half a zip": ("w.pth", b"PK\x03\x04 not a zip", "is cut off.*Download it again"),
    "a short header": (
        "w.pth",
        b"\x08" + bytes(7) + b"{}",
        "is cut off: .* 10 bytes of the 16",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_weights_is_called_what_it_is(tmp_path: Path, kind: str) -> None:
    name, content, says = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HubError, match=says) as caught:
        read_tensors(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert str(caught.value).isprintable()


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="is a folder"):
        read_tensors(tmp_path)
    with pytest.raises(HubError, match="is not there"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "header", [{"a": {"data_offsets": [0, "x"]}}, {"a": 3}, [1], {"a": {"dtype": "F32"}}]
)
def test_a_header_of_safetensors_that_makes_no_sense(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    if not text.startswith(b"{"):
        text = b"{" + text
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(HubError, match=r"w\.safetensors is damaged"):
        read_tensors(path)
