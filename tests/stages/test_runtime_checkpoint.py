"""Files of weights: what is loaded, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.backbones.state import load_strictly
from stages.runtime.checkpoint import Checkpoint, load_weights, read_tensors, save_weights
from wsssbed_hub.utils.errors import HubError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}


class Bomb:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


class Published(nn.Linear):
    """Takes its authors' names too."""

    def load_published(self, state: dict[str, Tensor]) -> None:
        renamed = {key.replace("fc.", ""): value for key, value in state.items()}
        load_strictly(self, renamed, "The authors' checkpoint")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_are_read_wherever_they_keep_their_tensors(
    tmp_path: Path, wrapper: str | None, legacy: bool
) -> None:
    path = tmp_path / "weights.pth"
    data = {wrapper: STATE, "epoch": 3} if wrapper else STATE
    torch.save(data, path, _use_new_zipfile_serialization=not legacy)
    read = read_tensors(path)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[key], STATE[key]) for key in STATE)


def test_safetensors_are_known_by_their_content(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "odd.name")
    assert torch.equal(read_tensors(tmp_path / "odd.name")["weight"], STATE["weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_a_program_is_refused_and_does_not_run(
    tmp_path: Path, legacy: bool
) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "it ran"
    bomb = {"weight": torch.zeros(1), "x": Bomb(mark)}
    torch.save(bomb, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(HubError, match=r"more than tensors.*could run any program"):
        read_tensors(path)
    assert not mark.exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pkl", tmp_path / "it ran"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(HubError, match=r"weights\.pkl"):
        read_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"what?", b"PK\x03\x04 not a zip", b"\x08" + bytes(7) + b"{}"]
)
def test_other_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(HubError, match=r"weights\.pth"):
        read_tensors(path)


@pytest.mark.parametrize("data", [{}, [1, 2], {"epoch": 3}, {1: torch.zeros(2)}])
def test_files_without_named_tensors_are_refused(tmp_path: Path, data: object) -> None:
    torch.save(data, tmp_path / "w.pth")
    with pytest.raises(HubError, match="no named tensors"):
        read_tensors(tmp_path / "w.pth")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    for name, save in (("a.pth", torch.save), ("b.safetensors", save_file)):
        path = tmp_path / name
        save(STATE, path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(HubError, match=name):
            read_tensors(path)


def test_our_own_weights_and_the_authors_both_load(tmp_path: Path) -> None:
    network = Published(3, 2)
    save_weights(network, tmp_path / "ours")
    torch.save({f"fc.{key}": value for key, value in STATE.items()}, tmp_path / "theirs")
    other = Published(3, 2)
    load_weights(other, tmp_path / "ours")
    assert torch.equal(other.weight, network.weight)
    load_weights(other, tmp_path / "theirs")
    assert torch.equal(other.weight, STATE["weight"])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_weights(nn.Linear(4, 2), tmp_path / "wide")
    for network in (nn.Linear(3, 2), Published(3, 2)):
        with pytest.raises(HubError, match=r"does not fit.*weight \(2, 4\) instead of \(2, 3\)"):
            load_weights(network, tmp_path / "wide")


def test_weights_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    save_weights(network, tmp_path / "w")
    assert torch.equal(read_tensors(tmp_path / "w")["1.weight"], network[0].weight)


def test_a_damaged_checkpoint_says_how_to_begin_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    Checkpoint(0, 1, True, dict(STATE)).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(HubError, match=r"checkpoint\.pt is damaged.*--fresh"):
            Checkpoint.load(path)
