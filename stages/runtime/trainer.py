"""The one training loop: any network, any number of phases, sources, optimisers and processes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stages.ops.determinism import reseed, tf32
from stages.runtime import distributed
from stages.runtime.batch_norm import synchronise_batchnorm
from stages.runtime.checkpoint import Checkpoint
from stages.runtime.errors import Interruption, explained, signals_noted, signals_raise
from stages.runtime.loader import SampleRow, batches, passes_of, rows_of
from stages.runtime.memory import Memory
from stages.runtime.method import Batch, Phase, Sources
from stages.runtime.progress import Course, MetricsLog, progress
from wsssbed_hub.utils.errors import HubError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """How to train, as opposed to what."""

    seed: int
    device: torch.device
    precision: str = "float32"
    """Of products: float32, tf32, or bf16 or fp16 in forward passes; weights stay float32."""
    workers: int = 0
    """Processes that prepare batches, for each training process; 0: the process itself."""
    checkpoint_every: float = 600.0
    """Seconds."""


@dataclass
class _Work:
    """A phase at work."""

    number: int
    phase: Phase
    rows: dict[str, SampleRow]
    passes: int
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler
    step: int = 0
    epoch_due: bool = False
    """Whether the last step finished an epoch whose end has still to be dealt with."""
    shared: list[dict[str, Batch]] = field(default_factory=list)
    """The passes of a batch that several steps see."""

    @property
    def first_row(self) -> SampleRow:
        """The one that counts the epochs."""
        return next(iter(self.rows.values()))

    @property
    def optimizer(self) -> Optimizer:
        """The one whose step is next."""
        turns = self.phase.turns or range(len(self.optimizers))
        return self.optimizers[turns[self.step % len(turns)]]

    @property
    def ends_epochs(self) -> bool:
        """Whether anything happens at the end of an epoch."""
        return self.phase.epoch_end is not None or bool(self.phase.memories)

    def finished_epochs(self) -> range:
        """The epochs that the last step finished."""
        batch, rest = divmod(self.step, self.phase.steps_of_a_batch)
        return range(0) if rest or not batch else self.first_row.finished_epochs(batch - 1)

    def pause(self) -> int:
        """The step before which the stream of samples ends: what follows may see others."""
        if not self.ends_epochs:
            return self.phase.steps
        each = self.phase.steps_of_a_batch
        return min(self.phase.steps, (self.first_row.last_batch(self.step // each) + 1) * each)


class Trainer:
    """Trains ``network`` (on its device already) with checkpoints in ``folder``.

    A training that was stopped, in whatever way, goes on from its last checkpoint and ends with
    the same weights, to the bit, as one that was not. Metrics go to ``folder/log.jsonl``.
    """

    def __init__(self, network: nn.Module, folder: Path, config: TrainConfig) -> None:
        self._network = network
        self._config = config
        self._path = folder / "checkpoint.pt"
        self._log = MetricsLog(folder / "log.jsonl")
        self._memories: dict[str, Memory] = {}
        self._saved_at = self._began_at = 0.0
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Time spent in training, over all resumptions."""
        return self._seconds_before + time.monotonic() - self._began_at

    def run(self, phases: Iterable[Phase]) -> None:
        """Run every phase, or what is left of them.

        Raises HubError (a loss that is not finite, no memory, a full disk, what samples raise) and
        Interruption (a signal; the checkpoint is then written).
        """
        every = list(phases)
        self._memories = _memories_of(every)
        checkpoint = Checkpoint.load(self._path)
        self._began_at = self._saved_at = time.monotonic()
        if checkpoint is not None:
            self._seconds_before = checkpoint.seconds
            for name, state in checkpoint.memories.items():
                self._memories[name].load_state(state)
        course = Course([phase.steps for phase in every])
        log = self._log.opened(checkpoint.log_bytes if checkpoint else 0)
        with log, tf32(self._config.precision == "tf32"):
            for number, phase in enumerate(every):
                if checkpoint is None or number >= checkpoint.phase:
                    here = checkpoint if checkpoint and number == checkpoint.phase else None
                    self._run_phase(number, phase, here, course)
        if checkpoint is not None and checkpoint.phase >= len(every):
            self._network.load_state_dict(checkpoint.network)

    def _run_phase(
        self, number: int, phase: Phase, checkpoint: Checkpoint | None, course: Course
    ) -> None:
        if checkpoint is not None:
            self._network.load_state_dict(checkpoint.network)
            checkpoint.network = {}  # as large as the network
        if phase.prepare is not None and not (checkpoint and checkpoint.prepared):
            reseed(self._config.seed, phase.name, "prepare")
            with explained(f"{phase.name}, before its first step"):
                phase.prepare()
        distributed.share_state(self._network)
        synchronise_batchnorm(self._network)
        work = self._begin(number, phase, checkpoint)
        if work.step < phase.steps or work.epoch_due:
            self._train(work, course)
        self._save(Checkpoint(number + 1, 0, False, self._network.state_dict()))

    def _begin(self, number: int, phase: Phase, checkpoint: Checkpoint | None) -> _Work:
        sources: Sources = phase.sources() if callable(phase.sources) else phase.sources
        reseed(self._config.seed, phase.name, "optimizer")
        optimizers = phase.optimizer()
        if isinstance(optimizers, Optimizer):
            optimizers = [optimizers]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        work = _Work(
            number,
            phase,
            rows_of(phase, sources, self._config.seed),
            passes_of(phase, sources, distributed.size()),
            list(optimizers),
            torch.amp.GradScaler(
                self._config.device.type, enabled=self._config.precision == "fp16"
            ),
        )
        if checkpoint is not None and checkpoint.prepared:
            for optimizer, state in zip(work.optimizers, checkpoint.optimizers, strict=True):
                optimizer.load_state_dict(state)
            work.scaler.load_state_dict(checkpoint.scaler)
            work.step, work.epoch_due = checkpoint.step, checkpoint.epoch_due
        elif phase.prepare is not None:
            self._save_work(work)
        return work

    def _train(self, work: _Work, course: Course) -> None:
        phase, each = work.phase, work.phase.steps_of_a_batch
        title = course.begin(work.number, phase.name, work.step)
        self._network.train()
        with (
            signals_noted() as signalled,
            progress(title, phase.steps, "step", work.step) as show,
        ):
            while work.step < phase.steps or work.epoch_due:
                if work.epoch_due:
                    self._end_epoch(work, signalled)
                    continue
                end = work.pause()
                stream = batches(
                    work.rows,
                    first=work.step // each,
                    end=math.ceil(end / each),
                    passes=work.passes,
                    workers=self._config.workers,
                    device=self._config.device,
                )
                with closing(stream):
                    while work.step < end:
                        terms = self._step_and_save(work, stream, signalled)
                        show(work.step, f"{_epoch(work)}{_details(terms)}{course.left(work.step)}")

    def _step_and_save(
        self, work: _Work, stream: Iterator[dict[str, Batch]], signalled: Callable[[], int]
    ) -> dict[str, float]:
        phase = work.phase
        with explained(f"{phase.name}, step {work.step + 1:,}"):
            outcome = self._step(work, stream, signalled)
        work.step += 1
        work.epoch_due = work.ends_epochs and bool(work.finished_epochs())
        # What happens at the end of an epoch may be stopped anywhere: it then begins again here.
        if outcome.stop or work.epoch_due or (outcome.save and work.step < phase.steps):
            self._save_work(work)
        if outcome.stop:
            raise Interruption(
                signalled() or SIGTERM,
                f"Stopped after step {work.step:,} of {phase.steps:,} ({phase.name}). "
                "Run the same command again to go on.",
            )
        return outcome.terms

    def _end_epoch(self, work: _Work, signalled: Callable[[], int]) -> None:
        """Memories take what was put, and the method does what it does at the end of an epoch."""
        phase = work.phase
        with signals_raise(), explained(f"{phase.name}, after step {work.step:,}"):
            if signalled():
                raise Interruption(signalled(), "Stopped. Run the same command again to go on.")
            for name, memory in phase.memories.items():
                memory.end_epoch(name)
            for epoch in work.finished_epochs() if phase.epoch_end else ():
                reseed(self._config.seed, phase.name, "epoch end", epoch)
                phase.epoch_end(epoch)  # type: ignore[misc]
        self._network.train()
        work.epoch_due = False

    def _step(
        self, work: _Work, stream: Iterator[dict[str, Batch]], signalled: Callable[[], int]
    ) -> _StepOutcome:
        phase, scaler, step, optimizer = work.phase, work.scaler, work.step, work.optimizer
        rate = phase.schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        self._forget_gradients(work)
        for memory in phase.memories.values():
            memory.begin_step(step)
        passes = self._passes(work, stream)
        reseed(self._config.seed, phase.name, "step", step, distributed.rank())
        terms: dict[str, Tensor] = {}
        for batch in passes:
            with self._autocast():
                losses = phase.loss(batch, step)
                total = sum(losses.values(), torch.zeros((), device=self._config.device))
            scaler.scale(total / work.passes).backward()
            for name, value in losses.items():
                terms[name] = terms.get(name, 0) + value.detach().float() / work.passes
        outcome = self._agree(phase, step, terms, signalled)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        distributed.average_gradients(parameters)
        scaler.unscale_(optimizer)
        if phase.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, phase.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        self._log.step(phase.name, step, optimizer.param_groups[0]["lr"], outcome.terms)
        return outcome

    def _passes(
        self, work: _Work, stream: Iterator[dict[str, Batch]]
    ) -> Iterator[dict[str, Batch]]:
        """The passes of the next step: new ones, or those of a batch that several steps see."""
        if work.phase.steps_of_a_batch == 1:
            return itertools.islice(stream, work.passes)
        if not work.shared or work.step % work.phase.steps_of_a_batch == 0:
            work.shared = list(itertools.islice(stream, work.passes))
        return iter(work.shared)

    def _agree(
        self, phase: Phase, step: int, terms: dict[str, Tensor], signalled: Callable[[], int]
    ) -> _StepOutcome:
        """The outcome that all processes agree on. Raises HubError for a loss not finite."""
        due = time.monotonic() - self._saved_at > self._config.checkpoint_every
        flags = torch.tensor(
            [float(signalled() > 0), float(due and distributed.is_main())],
            device=self._config.device,
        )
        numbers = distributed.all_sum(torch.cat([torch.stack(list(terms.values())), flags]))
        *means, stop, save = numbers.tolist()
        values = {name: mean / distributed.size() for name, mean in zip(terms, means, strict=True)}
        wrong = [f"{name} is {value}" for name, value in values.items() if value - value != 0]
        if wrong:
            raise HubError(
                f"{phase.name}, step {step + 1:,}: the loss is not finite ({', '.join(wrong)}). "
                "The training diverged. Begin again with --fresh and a smaller rate (--set), or "
                "with --precision float32 if it is another."
            )
        return _StepOutcome(values, stop > 0, save > 0)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _AUTOCAST.get(self._config.precision)
        return torch.autocast(self._config.device.type, dtype) if dtype else nullcontext()

    def _forget_gradients(self, work: _Work) -> None:
        self._network.zero_grad(set_to_none=True)
        for optimizer in work.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _save_work(self, work: _Work) -> None:
        self._save(
            Checkpoint(
                work.number,
                work.step,
                True,
                self._network.state_dict(),
                [optimizer.state_dict() for optimizer in work.optimizers],
                work.scaler.state_dict(),
                work.epoch_due,
            )
        )

    def _save(self, checkpoint: Checkpoint) -> None:
        checkpoint.memories = {name: memory.state() for name, memory in self._memories.items()}
        checkpoint.log_bytes = self._log.flush()
        checkpoint.seconds = self.seconds
        distributed.on_main(lambda: checkpoint.save(self._path))
        self._saved_at = time.monotonic()


@dataclass(frozen=True)
class _StepOutcome:
    """After a step, the same in every process."""

    terms: dict[str, float]
    """Mean of each loss term over passes and processes."""
    stop: bool
    save: bool


def _memories_of(phases: Iterable[Phase]) -> dict[str, Memory]:
    """All memories by name. Raises ValueError for two of one name, and for phases of one name."""
    found: dict[str, Memory] = {}
    names: set[str] = set()
    for phase in phases:
        if phase.name in names:
            raise ValueError(f"two phases are called {phase.name!r}")
        names.add(phase.name)
        for name, memory in phase.memories.items():
            if found.setdefault(name, memory) is not memory:
                raise ValueError(f"two memories are called {name!r}")
    return found


def _epoch(work: _Work) -> str:
    """``epoch 7 of 25, ``; nothing where there is only one."""
    row, each = work.first_row, work.phase.steps_of_a_batch

    def epochs(steps: int) -> int:
        return math.ceil(math.ceil(steps / each) * row.source.batch_size / row.epoch_length)

    total = epochs(work.phase.steps)
    return f"epoch {epochs(work.step):,} of {total:,}, " if total > 1 else ""


def _details(terms: dict[str, float]) -> str:
    total = f"loss {sum(terms.values()):.4g}"
    if len(terms) == 1:
        return total
    return f"{total} ({', '.join(f'{name} {value:.4g}' for name, value in terms.items())})"
