"""Memory of each image from epoch to epoch: accumulated maps, moving averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from stages.runtime import distributed
from stages.runtime.progress import progress

Update = Callable[[str, "np.ndarray | None", np.ndarray], np.ndarray]
_Put = tuple[int, int, int, str, np.ndarray]  # step, process, place, key, value


def _replace(key: str, old: np.ndarray | None, new: np.ndarray) -> np.ndarray:
    return new


class Memory:
    """Arrays by a key of the method's choice, such as the image's id.

    Losses ``put`` values; at the end of the epoch ``update(key, old, new)`` makes of each, and of
    what was there (None at first), what everybody then gets: losses in every process and samples in
    every worker see the state at the end of the last epoch, and nothing of the current one. Updates
    of one key come in the order of the steps; the keys are shared among the processes, so an update
    may take its time (a CRF). All of it is in the checkpoint.

    Every process holds all of it in its main memory, and workers share their process's.
    """

    def __init__(self, update: Update = _replace) -> None:
        self._update = update
        self._values: dict[str, np.ndarray] = {}
        self._put: list[_Put] = []
        self._step = 0

    def get(self, key: str) -> np.ndarray | None:
        """The value at the end of the last epoch; None if there is none. Not to be changed."""
        return self._values.get(key)

    def __iter__(self) -> Iterator[str]:
        """The keys that have a value, in ascending order."""
        return iter(sorted(self._values))

    def put(self, key: str, value: np.ndarray) -> None:
        """Remember ``value``, which is copied, at the end of this epoch. For losses."""
        entry = (self._step, distributed.rank(), len(self._put), key, np.array(value))
        self._put.append(entry)

    def __getstate__(self) -> dict[str, Any]:
        """The part that samples need in a worker not forked: the update may be any function."""
        return {"_update": _replace, "_values": self._values, "_put": [], "_step": 0}

    def clear(self) -> None:
        """Forget everything. For ``Phase.prepare``."""
        self._values, self._put = {}, []

    def begin_step(self, step: int) -> None:
        """Say which step puts from now on. For the trainer, as all that follows."""
        self._step = step

    def end_epoch(self, name: str) -> None:
        """Take what was put, in all processes."""
        entries: dict[str, list[np.ndarray]] = {}
        for *_, key, value in self._everything_put():
            entries.setdefault(key, []).append(value)
        mine = sorted(entries)[distributed.rank() :: distributed.size()]
        found = {}
        with progress(f"updating {name}", len(mine), "value") as show:
            for done, key in enumerate(mine, start=1):
                first, *later = entries[key]
                value = self._update(key, self._values.get(key), first)
                for new in later:
                    value = self._update(key, value, new)
                found[key] = np.asarray(value)
                show(done, "")
        for part in distributed.gathered(found):
            self._values.update(part)
        self._put = []

    def state(self) -> dict[str, Any]:
        """All that there is, in all processes, for a checkpoint."""
        return {
            "values": {key: torch.from_numpy(value) for key, value in self._values.items()},
            "put": [(*entry[:4], torch.from_numpy(entry[4])) for entry in self._everything_put()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what ``state`` gave."""
        self._values = {key: value.numpy() for key, value in state["values"].items()}
        entries = [(*entry[:4], entry[4].numpy()) for entry in state["put"]]
        self._put = entries if distributed.is_main() else []

    def _everything_put(self) -> list[_Put]:
        parts = distributed.gathered(self._put)
        return sorted((entry for part in parts for entry in part), key=lambda entry: entry[:3])
