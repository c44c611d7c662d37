"""Real processes: killed at random moments, and several that train together."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from closeness import FLOAT32, assert_close_in_norm
from safetensors.torch import load_file
from toys import started


def finished(folder: Path, plan: dict, processes: int = 1) -> None:
    process = started(folder, plan, processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def wait_for_steps(folder: Path, process: subprocess.Popen) -> None:
    log = folder / "log.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def losses(folder: Path) -> np.ndarray:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


@pytest.mark.slow
def test_killed_at_random_moments_the_result_is_the_same_to_the_bit(tmp_path: Path) -> None:
    plan = {"steps": (40, 40), "every": 0.05, "pause": 0.005}
    finished(tmp_path / "whole", plan)
    chance = random.Random(0)
    kills = 0
    while not (tmp_path / "killed" / "weights").exists():
        process = started(tmp_path / "killed", plan)
        began = tmp_path / "killed" / "log.jsonl"
        while process.poll() is None and not began.exists():
            time.sleep(0.01)
        try:
            process.wait(timeout=chance.uniform(0.1, 0.6) if kills < 8 else 300)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
    assert kills >= 3
    for name in ("weights", "log.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_a_message_and_its_exit_code(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = started(tmp_path / "run", {"steps": (100_000, 1), "pause": 0.01, "workers": 2})
    wait_for_steps(tmp_path / "run", process)
    os.killpg(process.pid, number)  # as terminals and schedulers do: also those that load images
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped: Stopped after step" in output
    assert "Traceback" not in output
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    # Dropout draws its own numbers in each process; trained batch norm sees the samples of both.
    plan = {"dropout": 0.0}
    finished(tmp_path / "one", plan)
    finished(tmp_path / "two", plan, processes=2)
    # float32 sums in another order, through batch norm and 13 steps; 4e-7 was measured.
    assert_close_in_norm(losses(tmp_path / "two"), losses(tmp_path / "one"), FLOAT32)
    one, two = (load_file(tmp_path / name / "weights") for name in ("one", "two"))
    for key in one:
        assert_close_in_norm(two[key], one[key], FLOAT32, key)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_and_both_go_on(tmp_path: Path) -> None:
    plan = {"steps": (20, 4), "pause": 0.05, "dropout": 0.1}
    finished(tmp_path / "whole", plan, processes=2)
    process = started(tmp_path / "run", plan, processes=2)
    wait_for_steps(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on
    output, _ = process.communicate(timeout=120)
    assert "Stopped after step" in output
    assert not (tmp_path / "run" / "weights").exists()
    finished(tmp_path / "run", plan, processes=2)
    assert (tmp_path / "run" / "weights").read_bytes() == (
        tmp_path / "whole" / "weights"
    ).read_bytes()


TOGETHER = """
import sys, numpy as np, torch
from pathlib import Path
from torch import nn
from stages.__main__ import leave
from stages.runtime.artifacts import open_scratch_maps, write_scratch_maps
from stages.runtime.memory import Memory
from stages.runtime import distributed as d
from stages.runtime.errors import guarded
from wsssbed_hub.utils.errors import UsageError

torch.set_num_threads(1)
d.start(torch.device("cpu"))
rank = d.rank()
assert d.size() == 2 and d.is_main() == (rank == 0)

# Three numbers here and one there: the mean of the four, and its gradient.
x = torch.tensor([1.0, 2.0, 3.0] if rank == 0 else [10.0], requires_grad=True)
mean = d.global_mean(x.sum(), len(x))
assert d.all_sum(mean).item() / 2 == 4.0  # small integers, exact in float32
mean.backward()
assert torch.equal(x.grad / 2, torch.full_like(x, 0.25))  # the trainer averages: a half each
assert d.global_mean(x.sum() * 0, 0).item() == 0

# Second derivatives: of what one process computes with all numbers, (1 + 2)^3 in each loss.
y = torch.tensor(1.0 + rank, requires_grad=True)
loss = d.differentiable_sum(y) ** 3
(slope,) = torch.autograd.grad(loss, y, create_graph=True)
assert slope.item() == 2 * 3 * 3**2  # both losses depend on each number
(curvature,) = torch.autograd.grad(slope, y)
assert curvature.item() == 2 * 2 * 6 * 3, curvature

memory = Memory(lambda key, old, new: new if old is None else old * 10 + new)
memory.begin_step(rank)
memory.put("both", np.array(rank + 1))
memory.put(f"only {rank}", np.array(7))
assert len(memory.state()["put"]) == 4  # of all processes: one of them writes the checkpoint
memory.end_epoch("digits")
assert memory.get("both") == 12 and memory.get("only 0") == memory.get("only 1") == 7
memory.put("both", np.array(3))
other = Memory(lambda key, old, new: old * 10 + new)
other.load_state(memory.state())
other.end_epoch("digits")
assert other.get("both") == 1233

produced = []

def produce(image_id):
    assert not net.training and not torch.is_grad_enabled()
    produced.append(image_id)
    return np.full((2, 3), int(image_id) % 256, np.uint8)

net, ids = nn.Linear(1, 1), [f"{number:03}" for number in range(200)]
write_scratch_maps(Path(sys.argv[1]), "sal", ids, net, produce)
assert net.training and 0 < len(produced) < 200
maps = open_scratch_maps(Path(sys.argv[1]), "sal")
assert list(maps.image_ids) == ids and maps.read("171").tolist() == [[171] * 3] * 2
write_scratch_maps(Path(sys.argv[1]), "sal", ids, net, produce)  # as after an interruption
assert sum(map(len, d.gathered(produced))) == 200

both, one, none = (nn.Parameter(torch.zeros(2)) for _ in range(3))
both.grad = torch.full((2,), 1.0 + rank)
if rank == 1:
    one.grad = torch.full((2,), 4.0)
d.average_gradients([both, one, none])
assert both.grad.tolist() == [1.5, 1.5] and one.grad.tolist() == [2.0, 2.0] and none.grad is None

network = nn.BatchNorm1d(1)
nn.init.constant_(network.weight, rank + 7.0)
d.share_state(network)
assert network.weight.item() == 7.0
assert d.on_main(lambda: f"from {d.rank()}") == "from 0"
assert d.gathered({"rank": rank}) == [{"rank": 0}, {"rank": 1}]

def fail():
    raise UsageError("said once")

leave(guarded(lambda: d.on_main(fail)))
"""


@pytest.mark.slow
def test_what_processes_do_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path / "maps")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **common, "RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=100)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert "error: said once" in said[0]
    assert "said once" not in said[1]
