"""A generator of random numbers that gives what a test wrote down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Scripted:
    """Gives ``draws`` in order, and notes in ``asked`` between which bounds each was wanted.

    A draw outside of its bounds is an error of the test.
    """

    def __init__(self, draws: Sequence[float]) -> None:
        self.draws = list(draws)
        self.asked: list[tuple[str, Any, Any]] = []

    def random(self) -> float:
        return self._next("random", 0.0, 1.0)

    def uniform(self, low: float, high: float) -> float:
        return self._next("uniform", low, high)

    def integers(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        return int(self._next("integers", low, high))

    def _next(self, kind: str, low: Any, high: Any) -> float:
        self.asked.append((kind, low, high))
        draw = self.draws.pop(0)
        assert low <= draw < high or low == draw == high, f"{draw} is not in [{low}, {high})"
        return draw
