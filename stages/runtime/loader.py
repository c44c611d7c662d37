"""The samples of a phase, in an order that depends on the seed and on nothing else.

The samples of a source stand in one long row, epoch after epoch. Batch ``b`` takes the places
``b * batch_size`` and following, each pass of each process its slice of them. So the stream can be
entered at any batch, and the number of processes, passes and workers changes nothing. Where the end
of an epoch may change the samples, the trainer begins another stream.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from stages.ops.determinism import generator
from stages.runtime import distributed
from stages.runtime.errors import ignore_signals
from stages.runtime.method import Batch, Phase, Sample, Source, Sources
from wsssbed_hub.utils.errors import HubError, UsageError

_Position = tuple[int, int]  # batch, pass
_PATIENCE = 2.0  # seconds that a process has to finish its sample when the loader ends


def passes_of(phase: Phase, sources: Sources, processes: int) -> int:
    """Backward passes of one process in one optimiser step.

    Passes are shared among the processes rather than split where a pass has too few samples to
    split (a recipe of ten passes with one image each). Raises UsageError if neither comes out even,
    or if samples that belong together would be parted.
    """

    def fits(parts: int) -> bool:
        return all(s.batch_size % (parts * s.together) == 0 for s in sources.values())

    if fits(phase.accumulate * processes):
        return phase.accumulate
    if phase.accumulate % processes == 0 and fits(phase.accumulate):
        return phase.accumulate // processes
    sizes = " and ".join(str(source.batch_size) for source in sources.values())
    groups = [(n, s.together) for n, s in sources.items() if s.together > 1]
    because = "".join(
        f" Of {n} each {g} samples in a row have to stay together." for n, g in groups
    )
    least = math.lcm(*(s.together for s in sources.values())) * phase.accumulate * processes
    raise UsageError(
        f"{phase.name}: a batch of {sizes} cannot be shared evenly among {processes} processes "
        f"with {phase.accumulate} passes each.{because} Choose a --batch-size that is a multiple "
        f"of {least}" + (", or fewer processes." if groups and processes > 1 else ".")
    )


@dataclass(frozen=True)
class SampleRow:
    """One source's samples in a row."""

    name: tuple[int | str, ...]
    source: Source

    def __post_init__(self) -> None:
        if self.epoch_length == 0:
            raise UsageError(
                f"{self.name[-1]}: {len(self.source.samples)} samples do not fill a batch of "
                f"{self.source.batch_size}. Choose a smaller --batch-size."
            )
        if self.epoch_length % self.source.together:
            raise UsageError(
                f"{self.name[-1]}: {self.epoch_length} samples make no whole groups of "
                f"{self.source.together}, and those of an epoch have to."
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

    def rng(self, place: int) -> np.random.Generator:
        """The generator of all random numbers of the sample at a place in the row."""
        return generator(*self.name, "sample", place)

    def finished_epochs(self, batch: int) -> range:
        """The epochs whose last sample is in a batch, counted from 0."""
        start = batch * self.source.batch_size
        return range(
            start // self.epoch_length, (start + self.source.batch_size) // self.epoch_length
        )

    def last_batch(self, batch: int) -> int:
        """The batch, this one or a later one, that finishes the epoch in which this one begins."""
        epoch = batch * self.source.batch_size // self.epoch_length
        return -(-(epoch + 1) * self.epoch_length // self.source.batch_size) - 1


def rows_of(phase: Phase, sources: Sources, seed: int) -> dict[str, SampleRow]:
    """The rows of a phase's sources. Raises UsageError for a source that does not fill a batch."""
    return {name: SampleRow((seed, phase.name, name), source) for name, source in sources.items()}


@dataclass(frozen=True)
class _SampleError:
    """A HubError on its way out of a worker: raised there, it would come with a traceback."""

    error: HubError


class _Batches(Dataset[Any]):
    """The batches that one process sees, by (batch, pass)."""

    def __init__(
        self, rows: Mapping[str, SampleRow], passes: int, rank: int, processes: int
    ) -> None:
        self._rows = rows
        self._passes, self._rank, self._processes = passes, rank, processes
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __getitem__(self, place: _Position) -> dict[str, Batch] | _SampleError:
        try:
            found = {name: self._batch(name, row, *place) for name, row in self._rows.items()}
            _share(found)
        except HubError as error:
            return _SampleError(error)
        return found

    def _batch(self, name: str, row: SampleRow, batch: int, number: int) -> Batch:
        size = row.source.batch_size // (self._passes * self._processes)
        start = batch * row.source.batch_size + (number * self._processes + self._rank) * size
        samples, indices, epochs = [], [], []
        for place in range(start, start + size):
            epoch, within = divmod(place, row.epoch_length)
            index = int(self._order(name, row, epoch)[within])
            samples.append(row.source.samples.sample(index, row.rng(place)))
            indices.append(index)
            epochs.append(epoch)
        return _stack(name, samples) | {
            "index": torch.tensor(indices),
            "epoch": torch.tensor(epochs),
        }

    def _order(self, name: str, row: SampleRow, epoch: int) -> np.ndarray:
        known = self._orders.get(name)
        if known is None or known[0] != epoch:
            known = self._orders[name] = (epoch, row.order(epoch))
        return known[1]


class _Places(Sampler[_Position]):
    """(batch, pass), in order."""

    def __init__(self, first: int, end: int, passes: int) -> None:
        self._first, self._end, self._passes = first, end, passes

    def __len__(self) -> int:
        return (self._end - self._first) * self._passes

    def __iter__(self) -> Iterator[_Position]:
        for batch in range(self._first, self._end):
            for number in range(self._passes):
                yield batch, number


def batches(
    rows: Mapping[str, SampleRow],
    *,
    first: int,
    end: int,
    passes: int,
    workers: int,
    device: torch.device,
) -> Generator[dict[str, Batch]]:
    """This process's batches from number ``first`` to before ``end``, each in ``passes``, on
    ``device``. To be closed when it is left early.

    Raises the HubError that a sample raised.
    """
    loader: DataLoader[Any] = DataLoader(
        _Batches(rows, passes, distributed.rank(), distributed.size()),
        batch_size=None,
        sampler=_Places(first, end, passes),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        for batch in iterator:
            if isinstance(batch, _SampleError):
                raise batch.error
            yield {name: _moved(fields, device) for name, fields in batch.items()}
    finally:
        _end_workers(iterator)


def _end_workers(iterator: Any) -> None:
    """End the loader's processes, also those that are at work on a sample.

    Left to itself the loader ends when nothing refers to it, but the traceback of an exception
    does; and it ends its processes with signals that they ignore (``ignore_signals``).
    """
    workers = getattr(iterator, "_workers", ())
    if not workers or not iterator._worker_pids_set:  # it ended by itself: nothing is left
        return
    _remove_worker_pids(id(iterator))  # else torch raises an exception for each that is killed
    iterator._worker_pids_set = False
    killing = threading.Timer(_PATIENCE, lambda: [worker.kill() for worker in workers])
    killing.daemon = True
    killing.start()
    try:
        iterator._shutdown_workers()
    finally:
        killing.cancel()
        for worker in workers:
            worker.kill()


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
