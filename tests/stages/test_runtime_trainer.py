"""The trainer: the same weights whatever stops it, however the batch is cut."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from torch import nn
from toys import Noise, Plan, train

from stages.ops.determinism import tf32
from stages.runtime.checkpoint import Checkpoint
from stages.runtime.errors import Interruption
from stages.runtime.method import Phase, Source
from stages.runtime.trainer import TrainConfig, Trainer
from wsssbed_hub.utils.errors import HubError

CPU = TrainConfig(0, torch.device("cpu"))


def left_in(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "weights").read_bytes(), (folder / "log.jsonl").read_bytes()


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> np.ndarray:
    return np.array([entry["loss"] for entry in log_of(folder)])


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    train(tmp_path / "a", Plan())
    train(tmp_path / "b", Plan())
    train(tmp_path / "c", Plan(seed=6))
    assert left_in(tmp_path / "a") == left_in(tmp_path / "b")
    assert left_in(tmp_path / "a")[0] != left_in(tmp_path / "c")[0]


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_allowed_while_it_trains_and_not_before_or_after(
    tmp_path: Path, precision: str
) -> None:
    def state() -> set[bool]:
        return {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}

    seen: set[bool] = set()
    plan = Plan(precision=precision, at_step=lambda phase, step: seen.update(state()))
    with tf32(False):
        train(tmp_path / "a", plan)
        assert seen == {precision == "tf32"}
        assert state() == {False}


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_training_stopped_at_every_step_ends_with_the_same_bytes(
    tmp_path: Path, precision: str
) -> None:
    whole, stopped = Plan(precision=precision), Plan(precision=precision)
    train(tmp_path / "whole", whole)
    seen: set[tuple[str, int]] = set()

    def stop_once(phase: str, step: int) -> None:
        if (phase, step) not in seen:
            seen.add((phase, step))
            os.kill(os.getpid(), signal.SIGTERM)

    stopped.at_step = stop_once
    for _ in range(sum(whole.steps)):
        with pytest.raises(Interruption) as stop:
            train(tmp_path / "stopped", stopped)
        assert stop.value.exit_code == 143
    train(tmp_path / "stopped", stopped)
    assert left_in(tmp_path / "stopped") == left_in(tmp_path / "whole")
    # 22 samples in batches of 8: the epochs end in steps 2, 5; of 8 (drop_last): in every step.
    assert whole.events == ["epoch 0", "epoch 1", "prepare", *(f"epoch {n}" for n in range(6))]
    assert stopped.events == whole.events


def test_the_message_of_a_stop_says_where_and_how_to_go_on(tmp_path: Path) -> None:
    plan = Plan(accumulate=1, at_step=lambda phase, step: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interruption, match=r"after step 1 of 7 \(first\)\. Run the same command"):
        train(tmp_path, plan)


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path: Path) -> None:
    reached = []

    def twice(phase: str, step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(step)

    with pytest.raises(Interruption, match="at once"):
        train(tmp_path, Plan(at_step=twice))
    assert reached == []


def test_an_interrupted_prepare_is_done_again(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    train(tmp_path / "whole", Plan())
    plan = Plan()

    class Once(list):
        def append(self, event: str) -> None:
            super().append(event)
            if event == "prepare" and self.count("prepare") == 1:
                raise Killed

    plan.events = Once()
    with pytest.raises(Killed):
        train(tmp_path / "again", plan)
    train(tmp_path / "again", plan)
    assert plan.events.count("prepare") == 2
    assert left_in(tmp_path / "again") == left_in(tmp_path / "whole")


def test_workers_change_nothing(tmp_path: Path) -> None:
    train(tmp_path / "none", Plan())
    train(tmp_path / "two", Plan(workers=2))
    assert left_in(tmp_path / "none") == left_in(tmp_path / "two")


@pytest.mark.numerical
def test_accumulated_passes_equal_one_large_batch(tmp_path: Path) -> None:
    alike = {"dropout": 0.0, "norm": False}  # both look at a pass, not at the step
    for passes in (1, 2, 4):
        train(tmp_path / str(passes), Plan(accumulate=passes, **alike))
    for passes in ("2", "4"):
        # Sums in another order: float32's rounding, grown over 13 steps of momentum.
        assert_close_in_norm(losses_of(tmp_path / passes), losses_of(tmp_path / "1"), FLOAT32)


class Turns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))


def one_phase(network: nn.Module, **changes: object) -> list[Phase]:
    phase = Phase(
        name="only",
        steps=4,
        sources={"noise": Source(Noise(), 2)},
        optimizer=lambda: torch.optim.SGD(network.parameters(), lr=1.0),
        schedule=lambda step: 1.0,
        loss=lambda batches, step: {"sum": sum(p.sum() for p in network.parameters())},
    )
    return [replace(phase, **changes)]  # type: ignore[arg-type]


def test_optimisers_take_turns_and_each_moves_its_own_parameters(tmp_path: Path) -> None:
    network = Turns()
    moves = []

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        moves.append((network.a[0].item(), network.b[0].item()))
        return {"sum": network.a.sum() + network.b.sum()}

    def both() -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([network.a], 1.0), torch.optim.SGD([network.b], 0.1)]

    Trainer(network, tmp_path, CPU).run(one_phase(network, loss=loss, optimizer=both))
    # A gradient of 1 a step, never carried over from the step of the other one.
    assert np.array(moves) == pytest.approx(np.array([(1, 1), (0, 1), (0, 0.9), (-1, 0.9)]))


def test_the_schedule_scales_every_groups_own_rate(tmp_path: Path) -> None:
    network = Turns()

    def groups() -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": [network.a], "lr": 1.0}, {"params": [network.b], "lr": 10.0}]
        )

    phases = one_phase(network, optimizer=groups, schedule=lambda step: (0.5, 0.25, 0.0, 1)[step])
    Trainer(network, tmp_path, CPU).run(phases)
    assert network.a.tolist() == pytest.approx([1 - 1.75] * 3)
    assert network.b.tolist() == pytest.approx([1 - 17.5] * 3)
    assert [entry["rate"] for entry in log_of(tmp_path)] == [0.5, 0.25, 0.0, 1.0]


def test_a_long_gradient_is_cut_to_the_norm(tmp_path: Path) -> None:
    network = Turns()
    Trainer(network, tmp_path, CPU).run(one_phase(network, steps=1, clip_norm=0.1))
    moved = torch.cat([1 - network.a, 1 - network.b]).norm().item()
    assert moved == pytest.approx(0.1, rel=1e-4)  # torch divides by (norm + 1e-6)


def test_terms_are_summed_divided_by_the_passes_and_logged_by_name(tmp_path: Path) -> None:
    network = Turns()

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        return {"a": network.a.sum(), "twice b": 2 * network.b.sum()}

    Trainer(network, tmp_path, CPU).run(one_phase(network, loss=loss, steps=1, accumulate=2))
    assert network.b.tolist() == [-1.0] * 3
    assert log_of(tmp_path)[0] == {
        "phase": "only",
        "step": 1,
        "rate": 1.0,
        "loss": 9.0,
        "terms": {"a": 3.0, "twice b": 6.0},
    }


def test_a_loss_that_is_not_finite_names_step_and_term(tmp_path: Path) -> None:
    network = Turns()

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        return {"good": network.a.sum(), "bad": network.b.sum() / (step < 2)}

    eager = replace(CPU, checkpoint_every=0.0)
    with pytest.raises(HubError, match=r"only, step 3: .* not finite \(bad is -?(inf|nan)\)"):
        Trainer(network, tmp_path, eager).run(one_phase(network, loss=loss))
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.pt")
    assert checkpoint is not None
    assert checkpoint.step == 2


def test_phases_of_one_name_would_share_their_chance_and_are_refused(tmp_path: Path) -> None:
    network = Turns()
    with pytest.raises(ValueError, match="'only'"):
        Trainer(network, tmp_path, CPU).run(one_phase(network) * 2)


def test_a_full_disk_leaves_the_last_checkpoint_and_the_training_goes_on(
    tmp_path: Path, small_disk: tuple
) -> None:
    folder, _ = small_disk
    train(tmp_path, Plan())

    def fill(phase: str, step: int) -> None:
        if (phase, step) == ("first", 3) and not (folder / "ballast").exists():
            rest = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            (folder / "ballast").write_bytes(bytes(max(0, rest - 4096)))

    with pytest.raises(HubError, match="disk is full"):
        train(folder / "run", Plan(every=0.0, at_step=fill))
    checkpoint = Checkpoint.load(folder / "run" / "checkpoint.pt")
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert [p.name for p in (folder / "run").iterdir() if p.name.endswith(".tmp")] == []
    (folder / "ballast").unlink()
    train(folder / "run", Plan())
    assert left_in(folder / "run") == left_in(tmp_path)


def test_no_memory_is_said_with_advice(tmp_path: Path) -> None:
    network = Turns()

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        return {"huge": torch.empty(1 << 60)}

    with pytest.raises(HubError, match=r"only, step 1: The memory is exhausted.*--batch-size"):
        Trainer(network, tmp_path, CPU).run(one_phase(network, loss=loss))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_sample_is_said_without_a_traceback(
    tmp_path: Path, workers: int
) -> None:
    class Broken(Noise):
        def sample(self, index: int, rng: np.random.Generator) -> dict:
            raise HubError(f"image{index} is damaged")

    network = Turns()
    phases = one_phase(network, sources={"noise": Source(Broken(), 2)})
    with pytest.raises(HubError, match=r"^image\d+ is damaged$"):
        Trainer(network, tmp_path, replace(CPU, workers=workers)).run(phases)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_end_of_an_epoch_changes_the_next_samples_have(
    tmp_path: Path, workers: int
) -> None:
    class Growing(Noise):
        level = 0

        def sample(self, index: int, rng: np.random.Generator) -> dict:
            return {"level": np.array(self.level)}

    samples, seen, network = Growing(4), [], Turns()

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        seen.append(batches["noise"]["level"].tolist())
        return {"any": network.a.sum()}

    def epoch_end(epoch: int) -> None:
        samples.level = epoch + 1

    phases = one_phase(
        network, steps=6, sources={"noise": Source(samples, 2)}, loss=loss, epoch_end=epoch_end
    )
    Trainer(network, tmp_path, replace(CPU, workers=workers)).run(phases)
    assert seen == [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]]


@pytest.mark.parametrize("one_batch", [True, False])
@pytest.mark.parametrize("stop", [None, 1, 2, 4])
def test_optimisers_take_the_turns_that_the_method_says(
    tmp_path: Path, one_batch: bool, stop: int | None
) -> None:
    """Two steps of the first to one of the second, on the same batch or each on its own."""
    network = Turns()
    seen, moves = [], []

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        if step == stop and len(seen) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(batches["noise"]["index"].tolist())
        moves.append(phases[0].turn(step))
        return {"sum": network.a.sum() + network.b.sum()}

    def both() -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([network.a], 1.0), torch.optim.SGD([network.b], 1.0)]

    phases = one_phase(
        network,
        steps=6,
        sources={"noise": Source(Noise(8), 2, shuffle=False)},
        loss=loss,
        optimizer=both,
        turns=(0, 0, 1),
        one_batch=one_batch,
    )
    if stop is not None:
        with pytest.raises(Interruption):
            Trainer(network, tmp_path, CPU).run(phases)
        assert len(seen) == stop + 1
    Trainer(network, tmp_path, CPU).run(phases)
    assert moves == [0, 0, 1, 0, 0, 1]
    assert (network.a[0].item(), network.b[0].item()) == (1 - 4, 1 - 2)
    each = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 1], [2, 3]]
    assert seen == ([[0, 1]] * 3 + [[2, 3]] * 3 if one_batch else each)


def test_one_batch_of_a_round_has_all_its_passes(tmp_path: Path) -> None:
    network, seen = Turns(), []

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        seen.append(batches["noise"]["index"].tolist())
        return {"sum": network.a.sum() + network.b.sum()}

    phases = one_phase(
        network,
        sources={"noise": Source(Noise(8), 4, shuffle=False)},
        loss=loss,
        turns=(0, 0),
        one_batch=True,
        accumulate=2,
    )
    Trainer(network, tmp_path, CPU).run(phases)
    assert seen == [[0, 1], [2, 3]] * 2 + [[4, 5], [6, 7]] * 2


def test_a_long_training_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    network = Turns()

    def loss(batches: dict, step: int) -> dict[str, torch.Tensor]:
        now[0] += 60.0
        return {"sum": network.a.sum() + network.b.sum()}

    rounds = [one_phase(network, name=f"round {n} of 2", steps=22, loss=loss)[0] for n in (1, 2)]
    Trainer(network, tmp_path, CPU).run(rounds)
    said = capsys.readouterr().err.splitlines()
    first = next(line for line in said if line.startswith("round 1 of 2 (phase 1 of 2): step 12"))
    # 22 samples in batches of 2: step 12 is the first of the second epoch. A step is a minute.
    assert "epoch 2 of 2, loss" in first
    assert "10 min 00 s left" in first
    assert "all phases: 32 min 00 s left" in first
    assert any(line.startswith("round 2 of 2 (phase 2 of 2): step 22 of 22") for line in said)
