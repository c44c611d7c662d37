"""Optimiser steps a second: the stages' trainer, and a loop as published programs have it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.pictures import Pictures
from stages.ops.determinism import compute_exactly, generator, reseed, tf32
from stages.runtime.loader import batches, rows_of
from stages.runtime.method import Batch, Method, Phase
from stages.runtime.trainer import TrainConfig, Trainer
from stages.seg import deeplabv2
from stages.sod import poolnet


@dataclass(frozen=True)
class Subject:
    """A method and the data that it is trained on."""

    name: str
    make: Callable[[], Method]
    data: Pictures
    warm: int
    """Steps that are not counted."""

    def begin(self, channels_last: bool, device: torch.device) -> tuple[nn.Module, Phase]:
        reseed(0, "build")
        method: Any = self.make()
        network = method.build()
        network.to(device)
        if channels_last:
            network.to(memory_format=torch.channels_last)
        return network, next(iter(method.phases(network, self.data)))


class _Enough(Exception):
    pass


class Clock:
    """Counts steps after the first few until the time is over, then stops the training."""

    def __init__(self, seconds: float, warm: int, device: torch.device) -> None:
        self.seconds, self.warm, self.device = seconds, warm, device
        self.steps = -1
        self.began = 0.0
        self.rate = 0.0

    def tick(self) -> None:
        """At the beginning of every step."""
        self.steps += 1
        if self.steps < self.warm:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.steps == self.warm:
            self.began = now
        elif now - self.began >= self.seconds:
            self.rate = (self.steps - self.warm) / (now - self.began)
            raise _Enough


def of_trainer(
    subject: Subject,
    device: torch.device,
    seconds: float,
    *,
    workers: int,
    precision: str = "float32",
    deterministic: bool = True,
    channels_last: bool = False,
) -> float:
    """Steps a second of the stages' trainer, its data and its log included.

    Not ``deterministic``: torch's own operations, algorithms of any kind, cuDNN's fastest.
    """
    clock = Clock(seconds, subject.warm, device)
    with _torchs_way(not deterministic):
        network, phase = subject.begin(channels_last, device)
        passes = 0

        def loss(given: dict[str, Batch], step: int) -> dict[str, Tensor]:
            nonlocal passes
            if passes % phase.accumulate == 0:
                clock.tick()
            passes += 1
            return phase.loss(given, step)

        config = TrainConfig(0, device, precision, workers, 1e9)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(network, Path(folder), config)
            try:
                trainer.run([replace(phase, steps=10**6, schedule=lambda step: 1.0, loss=loss)])
            except _Enough:
                return clock.rate
    raise AssertionError("the training ended before its time")


def of_published_loop(
    subject: Subject, device: torch.device, seconds: float, *, workers: int
) -> float:
    """Steps a second of a plain loop: shuffled loader, zero_grad, forward, backward, step.

    Torch's operations and defaults: TF32 in convolutions, cuDNN's fastest algorithms, atomics.
    """
    clock = Clock(seconds, subject.warm, device)
    with _torchs_way(True), tf32(False):
        torch.backends.cudnn.allow_tf32 = True
        network, phase = subject.begin(False, device)
        assert not callable(phase.sources)
        ((name, source),) = phase.sources.items()
        optimizer: Any = phase.optimizer()
        loader = DataLoader(
            _Samples(source.samples),
            batch_size=source.batch_size // phase.accumulate,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        network.train()
        passes = 0
        try:
            while True:
                for batch in loader:
                    if passes % phase.accumulate == 0:
                        clock.tick()
                        optimizer.zero_grad()
                    moved = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
                    loss = sum(phase.loss({name: moved}, 0).values())
                    assert isinstance(loss, Tensor)
                    (loss / phase.accumulate).backward()
                    passes += 1
                    if passes % phase.accumulate == 0:
                        optimizer.step()
        except _Enough:
            return clock.rate


def of_data(subject: Subject, seconds: float, workers: int) -> float:
    """Batches a second that the loader gives when nothing else happens."""
    cpu = torch.device("cpu")
    _, phase = subject.begin(False, cpu)
    assert not callable(phase.sources)
    clock = Clock(seconds, subject.warm, cpu)
    stream = batches(
        rows_of(phase, phase.sources, 0),
        first=0,
        end=10**6,
        passes=phase.accumulate,
        workers=workers,
        device=cpu,
    )
    with closing(stream):
        try:
            for number, _ in enumerate(stream):
                if number % phase.accumulate == 0:
                    clock.tick()
        except _Enough:
            return clock.rate
    raise AssertionError("the data ended before its time")


class _Samples(Dataset[Any]):
    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples.sample(index, generator("bench", index))


@contextmanager
def _torchs_way(wanted: bool) -> Iterator[None]:
    """Torch's own operations in place of ``stages.ops.resizing``, and nothing deterministic."""
    compute_exactly(strict=True)
    if not wanted:
        yield
        return
    kept = []
    for module, name, theirs in (
        (poolnet, "resize", _interpolate),
        (poolnet, "adaptive_avg_pool2d", F.adaptive_avg_pool2d),
        (deeplabv2, "resize", _interpolate),
        (deeplabv2, "cross_entropy", _cross_entropy),
    ):
        kept.append((module, name, getattr(module, name)))
        setattr(module, name, theirs)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        for module, name, ours in kept:
            setattr(module, name, ours)
        compute_exactly(strict=True)


def _interpolate(x: Tensor, size: Any = None, **how: Any) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", **how)


def _cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
