"""A small training that has one of everything, for the tests of the runtime.

``python toys.py FOLDER [JSON]`` trains it, alone or below torchrun, and leaves ``weights`` there.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.__main__ import leave
from stages.ops.determinism import reseed
from stages.runtime import distributed
from stages.runtime.artifacts import write_scratch_maps
from stages.runtime.checkpoint import save_weights
from stages.runtime.errors import guarded
from stages.runtime.memory import Memory
from stages.runtime.method import Phase, Source, poly
from stages.runtime.trainer import TrainConfig, Trainer


class Noise:
    """Random pictures of two classes; some of their chance is in the sample's own generator, and
    what is remembered of a picture changes it."""

    def __init__(self, number: int = 22, memory: Memory | None = None, fail: str = "") -> None:
        self.number = number
        self.memory = memory
        self.fail = fail

    def __len__(self) -> int:
        return self.number

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray | str]:
        if self.fail == "sample" and index == 3:
            raise KeyError("a bug in a sample")
        if self.fail == "worker" and index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fail == "loss":
            time.sleep(
                0 if index < self.number // 2 else 600
            )  # a process that loads is at work for long
        own = np.random.default_rng(index)
        image = own.normal(size=(3, 6, 6)) + (index % 2) + 0.1 * rng.normal(size=(3, 6, 6))
        if self.memory is not None and (remembered := self.memory.get(f"image{index}")) is not None:
            image += remembered
        return {
            "image": image.astype(np.float32),
            "label": np.array(index % 2),
            "id": f"image{index}",
        }


class Net(nn.Module):
    """Trained batch norm, dropout, and a buffer that epochs write to."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)  # batch norm takes a bias away again
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 2)
        self.epochs: Tensor
        self.register_buffer("epochs", torch.zeros(8))

    def forward(self, image: Tensor) -> Tensor:
        feature = F.relu(self.norm(self.conv(image))).mean((2, 3))
        return self.head(self.dropout(feature))


@dataclass
class Plan:
    """What the training is like; JSON on the command line."""

    steps: tuple[int, int] = (7, 6)
    batch: int = 8
    accumulate: int = 2
    dropout: float = 0.2
    seed: int = 5
    precision: str = "float32"
    workers: int = 0
    every: float = 1e9
    pause: float = 0.0
    norm: bool = True
    fail: str = ""
    events: list[str] = field(default_factory=list)
    at_step: Callable[[str, int], None] | None = None


def _fail_in_loss(fail: str, step: int) -> None:
    if fail == "one process" and step == 1 and distributed.rank() == 1:
        raise RuntimeError("a bug in one process")
    if fail == "loss":
        raise IndexError("a bug in the loss")


def phases(network: Net, plan: Plan) -> Iterator[Phase]:
    """SGD with momentum over a poly schedule; then two Adams in turn, from another source too."""

    memory = Memory(lambda key, old, new: new if old is None else 0.7 * old + 0.3 * new)

    def loss(batches: dict, step: int) -> dict[str, Tensor]:
        name = "pairs" if "pairs" in batches else "first"
        if plan.at_step:
            plan.at_step(name, step)
        time.sleep(plan.pause)
        _fail_in_loss(plan.fail, step)
        terms = {}
        if "noise" in batches:
            for key, image in zip(batches["noise"]["id"], batches["noise"]["image"], strict=True):
                memory.put(key, image.mean().cpu().numpy())
        for source, batch in batches.items():
            logits = network(batch["image"])
            terms[f"class-{source}"] = F.cross_entropy(logits.float(), batch["label"])
        terms["size"] = 0.01 * network.conv.weight.square().sum()
        return terms

    def prepare() -> None:
        plan.events.append("prepare")
        with torch.no_grad():
            network.head.weight += 0.1 * torch.randn(network.head.weight.shape)

    def epoch_end(epoch: int) -> None:
        plan.events.append(f"epoch {epoch}")
        if plan.fail == "epoch_end":
            raise ZeroDivisionError("a bug in epoch_end")
        if plan.fail == "slow epoch_end":
            time.sleep(600)
        network.eval()  # the trainer has to undo this
        network.epochs[epoch % 8] = network.head.weight.detach().sum() + epoch

    if not plan.norm:
        network.norm = nn.Identity()  # type: ignore[assignment]
    yield Phase(
        name="first",
        steps=plan.steps[0],
        sources={
            "noise": Source(
                Noise(memory=memory, fail=plan.fail), plan.batch, shuffle=plan.fail != "loss"
            )
        },
        memories={"means": memory},
        optimizer=lambda: torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        schedule=poly(plan.steps[0]),
        loss=loss,
        accumulate=plan.accumulate,
        epoch_end=epoch_end,
    )
    trunk = list(network.conv.parameters()) + list(network.norm.parameters())
    yield Phase(
        name="second",
        steps=plan.steps[1],
        sources=lambda: {
            "pairs": Source(Noise(15), plan.batch, shuffle=False, drop_last=True),
            "more": Source(Noise(9), plan.batch // 2),
        },
        optimizer=lambda: (
            torch.optim.Adam(trunk, lr=0.01),
            torch.optim.AdamW(network.head.parameters(), lr=0.02),
        ),
        schedule=lambda step: 0.5**step,
        loss=loss,
        accumulate=plan.accumulate,
        clip_norm=0.5,
        prepare=prepare,
        epoch_end=epoch_end,
    )


def train(folder: Path, plan: Plan) -> Net:
    """Train in ``folder`` as a stage does; the weights go to ``folder/weights``."""
    folder.mkdir(parents=True, exist_ok=True)
    reseed(plan.seed, "build")
    network = Net(plan.dropout)
    config = TrainConfig(plan.seed, torch.device("cpu"), plan.precision, plan.workers, plan.every)
    Trainer(network, folder, config).run(phases(network, plan))
    if plan.fail == "writer":
        write_scratch_maps(folder / "maps", "sal", ["a", "b"], network, _broken)
    distributed.on_main(lambda: save_weights(network, folder / "weights"))
    return network


def started(folder: Path, plan: dict, processes: int = 1) -> subprocess.Popen:
    """This file at work on a plan, in a session of its own."""
    command = [sys.executable, __file__, str(folder), json.dumps(plan)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command[1:1] = [*launcher, str(processes)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder.parent,
        start_new_session=True,
    )


def _broken(image_id: str) -> np.ndarray:
    raise TypeError("a bug in what makes maps")


def main() -> None:
    torch.set_num_threads(1)
    plan = Plan(**json.loads(sys.argv[2])) if len(sys.argv) > 2 else Plan()
    distributed.start(torch.device("cpu"))
    train(Path(sys.argv[1]), plan)


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    leave(guarded(main))
