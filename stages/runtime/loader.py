"""The samples of a phase, in an order that depends on the seed and on nothing else.

The samples of a source stand in one long row, epoch after epoch. Optimiser step ``s`` takes the
places ``s * batch_size`` and following, each pass of each process its slice of them. So the stream
can be entered at any step, and the number of processes, passes and workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from stages.runtime import distributed
from stages.runtime.determinism import generator
from stages.runtime.errors import ignore_signals
from stages.runtime.method import Batch, Phase, Sample, Source, Sources
from wsssbed_hub.utils.errors import HubError, UsageError

Place = tuple[int, int]  # optimiser step, pass


def passes_of(phase: Phase, sources: Sources, processes: int) -> int:
    """Backward passes of one process in one optimiser step.

    Passes are shared among the processes rather than split where a pass has too few samples to
    split (a recipe of ten passes with one image each). Raises UsageError if neither comes out even.
    """
    sizes = [source.batch_size for source in sources.values()]
    if all(size % (phase.accumulate * processes) == 0 for size in sizes):
        return phase.accumulate
    if phase.accumulate % processes == 0 and all(size % phase.accumulate == 0 for size in sizes):
        return phase.accumulate // processes
    raise UsageError(
        f"{phase.name}: a batch of {' and '.join(map(str, sizes))} cannot be shared evenly among "
        f"{processes} processes with {phase.accumulate} passes each. Choose a --batch-size that "
        f"is a multiple of {phase.accumulate * processes}."
    )


@dataclass(frozen=True)
class Row:
    """One source's samples in a row."""

    name: tuple[int | str, ...]
    source: Source

    def __post_init__(self) -> None:
        if self.epoch_length == 0:
            raise UsageError(
                f"{self.name[-1]}: {len(self.source.samples)} samples do not fill a batch of "
                f"{self.source.batch_size}. Choose a smaller --batch-size."
            )

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch."""
        number = len(self.source.samples)
        return number - number % self.source.batch_size if self.source.drop_last else number

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch's samples, int64."""
        number = len(self.source.samples)
        if not self.source.shuffle:
            return np.arange(number)
        return generator(*self.name, "order", epoch).permutation(number)

    def chance(self, place: int) -> np.random.Generator:
        """What the sample at a place in the row draws its random numbers from."""
        return generator(*self.name, "sample", place)

    def finished_epochs(self, step: int) -> range:
        """The epochs whose last sample is in the batch of a step."""
        start = step * self.source.batch_size
        return range(
            start // self.epoch_length, (start + self.source.batch_size) // self.epoch_length
        )


def rows_of(phase: Phase, sources: Sources, seed: int) -> dict[str, Row]:
    """The rows of a phase's sources. Raises UsageError for a source that does not fill a batch."""
    return {name: Row((seed, phase.name, name), source) for name, source in sources.items()}


@dataclass(frozen=True)
class _Trouble:
    """A HubError on its way out of a worker: raised there, it would come with a traceback."""

    error: HubError


class _Batches(Dataset[Any]):
    """The batches that one process sees, by (step, pass)."""

    def __init__(self, rows: Mapping[str, Row], passes: int, rank: int, processes: int) -> None:
        self._rows = rows
        self._passes, self._rank, self._processes = passes, rank, processes
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __getitem__(self, place: Place) -> dict[str, Batch] | _Trouble:
        try:
            found = {name: self._batch(name, row, *place) for name, row in self._rows.items()}
            _share(found)
        except HubError as error:
            return _Trouble(error)
        return found

    def _batch(self, name: str, row: Row, step: int, number: int) -> Batch:
        size = row.source.batch_size // (self._passes * self._processes)
        start = step * row.source.batch_size + (number * self._processes + self._rank) * size
        samples, indices, epochs = [], [], []
        for place in range(start, start + size):
            epoch, within = divmod(place, row.epoch_length)
            index = int(self._order(name, row, epoch)[within])
            samples.append(row.source.samples.sample(index, row.chance(place)))
            indices.append(index)
            epochs.append(epoch)
        return _stack(name, samples) | {
            "index": torch.tensor(indices),
            "epoch": torch.tensor(epochs),
        }

    def _order(self, name: str, row: Row, epoch: int) -> np.ndarray:
        known = self._orders.get(name)
        if known is None or known[0] != epoch:
            known = self._orders[name] = (epoch, row.order(epoch))
        return known[1]


class _Places(Sampler[Place]):
    """(step, pass) from a step on."""

    def __init__(self, first: int, steps: int, passes: int) -> None:
        self._first, self._steps, self._passes = first, steps, passes

    def __len__(self) -> int:
        return (self._steps - self._first) * self._passes

    def __iter__(self) -> Iterator[Place]:
        for step in range(self._first, self._steps):
            for number in range(self._passes):
                yield step, number


def batches(
    rows: Mapping[str, Row],
    *,
    first: int,
    steps: int,
    passes: int,
    workers: int,
    device: torch.device,
) -> Iterator[dict[str, Batch]]:
    """This process's batches from step ``first`` on, ``passes`` for each step, on ``device``.

    Raises the HubError that a sample raised.
    """
    loader: DataLoader[Any] = DataLoader(
        _Batches(rows, passes, distributed.rank(), distributed.size()),
        batch_size=None,
        sampler=_Places(first, steps, passes),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, _Trouble):
            raise batch.error
        yield {name: _moved(fields, device) for name, fields in batch.items()}


def _stack(name: str, samples: list[Sample]) -> Batch:
    batch: Batch = {}
    for field in samples[0]:
        values: list[Any] = [sample[field] for sample in samples]
        if isinstance(values[0], str):
            batch[field] = values
            continue
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise HubError(
                f"{name}: {field!r} has the shapes {sorted(shapes)} in one batch. Samples of "
                "different sizes need a pass each: set `accumulate` to the batch size."
            )
        arrays = isinstance(values[0], np.ndarray)
        batch[field] = torch.from_numpy(np.stack(values)) if arrays else torch.stack(values)
    return batch


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {
        field: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for field, value in batch.items()
    }


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(number: int) -> None:
    ignore_signals()


def _share(batches: Mapping[str, Mapping[str, Any]]) -> None:
    """Move the tensors to shared memory, if this is a process that loads images.

    Queues do that unasked, but in a thread of their own: where the shared memory is full, the
    process that waits for the batch would never hear of it. Raises HubError if it is.
    """
    if get_worker_info() is None:
        return
    tensors = [x for batch in batches.values() for x in batch.values() if isinstance(x, Tensor)]
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        size = sum(tensor.nbytes for tensor in tensors)
        raise HubError(
            f"The shared memory (/dev/shm) is too small: a batch of {size / 1e6:.1f} MB does not "
            "fit beside those that wait. In a container, start it with --shm-size 8g, or use fewer "
            "--workers (0 needs none)."
        ) from None
