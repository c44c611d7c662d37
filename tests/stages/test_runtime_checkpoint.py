"""Checkpoints of a training, and weights: those of another network are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stages.backbones.state import load_strictly
from stages.runtime.checkpoint import Checkpoint, load_weights, save_weights
from stages.runtime.weight_files import read_tensors
from wsssbed_hub.utils.errors import HubError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}


class Published(nn.Linear):
    """Takes its authors' names too."""

    def load_published(self, state: dict[str, Tensor]) -> None:
        renamed = {key.replace("fc.", ""): value for key, value in state.items()}
        load_strictly(self, renamed, "The authors' checkpoint")


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
