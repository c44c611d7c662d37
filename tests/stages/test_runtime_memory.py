"""Memories of images: taken at the end of an epoch, carried by checkpoints, rolled back."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stages.runtime.checkpoint import Checkpoint
from stages.runtime.memory import Memory
from stages.runtime.method import Phase, Source
from stages.runtime.trainer import TrainConfig, Trainer

ONE = np.ones(2, np.float32)


def total(key: str, old: np.ndarray | None, new: np.ndarray) -> np.ndarray:
    return new if old is None else old + new


class Stopped(Exception):
    pass


class Remembered:
    """Sample i gives what is remembered of i."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def __len__(self) -> int:
        return 4

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        found = self.memory.get(str(index))
        return {"remembered": np.zeros(2, np.float32) if found is None else found}


def phases(network: nn.Linear, seen: list, memory: Memory, stop_at: int = -1) -> list[Phase]:
    """Two phases of 6 steps with batches of 2 of the 4 samples: an epoch is two steps."""

    def phase(name: str) -> Phase:
        def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
            batch = batches["all"]
            if (name, step) == ("second", stop_at):
                raise Stopped
            for index, value in zip(batch["index"].tolist(), batch["remembered"], strict=True):
                memory.put(str(index), ONE * (index + 1))
                seen.append((name, step, index, value.tolist()))
            return {"any": network(batch["remembered"]).sum()}

        return Phase(
            name=name,
            steps=6,
            sources={"all": Source(Remembered(memory), 2, shuffle=False)},
            optimizer=lambda: torch.optim.SGD(network.parameters(), 0.01),
            schedule=lambda step: 1.0,
            loss=loss,
            memories={"sums": memory},
        )

    return [phase("first"), phase("second")]


def run(folder: Path, workers: int = 0, stop_at: int = -1) -> tuple[list, Memory, nn.Linear]:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network, memory, seen = nn.Linear(2, 1), Memory(total), []
    config = TrainConfig(0, torch.device("cpu"), workers=workers, checkpoint_every=0.0)
    with contextlib.suppress(Stopped):
        Trainer(network, folder, config).run(phases(network, seen, memory, stop_at))
    return seen, memory, network


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_see_the_state_at_the_end_of_the_last_epoch(tmp_path: Path, workers: int) -> None:
    seen, memory, _ = run(tmp_path / "run", workers)
    for phase, step, index, value in seen:
        epochs = step // 2 + (3 if phase == "second" else 0)
        assert value == [epochs * (index + 1.0)] * 2
    assert list(memory) == ["0", "1", "2", "3"]
    assert memory.get("3") is not None
    assert memory.get("3").tolist() == [24.0, 24.0]  # type: ignore[union-attr]
    assert memory.get("4") is None


def test_a_resumed_training_remembers_what_its_checkpoint_did(tmp_path: Path) -> None:
    whole, memory, network = run(tmp_path / "whole")
    before, _, _ = run(tmp_path / "stopped", stop_at=3)
    checkpoint = Checkpoint.load(tmp_path / "stopped" / "checkpoint.pt")
    assert checkpoint is not None
    # In the middle of an epoch: what it put so far is there, and not yet taken.
    assert len(checkpoint.memories["sums"]["put"]) == 2
    after, again, resumed = run(tmp_path / "stopped")
    assert before + after == whole
    for key in memory:
        np.testing.assert_array_equal(memory.get(key), again.get(key))  # type: ignore[arg-type]
    assert torch.equal(network.weight, resumed.weight)


def test_values_are_copied_updated_in_the_order_of_the_steps_and_cleared() -> None:
    memory = Memory(lambda key, old, new: new if old is None else old * 10 + new)
    value = np.array([1])
    memory.put("a", value)
    value[0] = 9
    memory.begin_step(1)
    memory.put("a", np.array([2]))
    assert memory.get("a") is None
    memory.end_epoch("digits")
    assert memory.get("a").tolist() == [12]  # type: ignore[union-attr]
    memory.clear()
    assert list(memory) == []


def test_two_memories_of_one_name_are_refused(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    both = [phases(network, [], Memory())[0], phases(network, [], Memory())[1]]
    with pytest.raises(ValueError, match="'sums'"):
        Trainer(network, tmp_path, TrainConfig(0, torch.device("cpu"))).run(both)


def test_samples_may_be_sent_to_a_worker_that_is_not_forked() -> None:
    memory = Memory(lambda key, old, new: new + 1)
    memory.put("a", ONE)
    memory.end_epoch("any")
    memory.put("b", ONE)
    sent = pickle.loads(pickle.dumps(Remembered(memory)))
    assert sent.memory.get("a").tolist() == [2.0, 2.0]
    assert sent.memory.get("b") is None
