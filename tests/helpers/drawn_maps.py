"""Random maps in memory, and the labels that are made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsssbed_hub.artifacts.manifest import Threshold
from wsssbed_hub.artifacts.maps import Activations, Maps
from wsssbed_hub.evaluation.pseudo_label import pseudo_label

TAU = Threshold(tau=0.3, origin="given")
IDS = [f"img{number:03d}" for number in range(80)]  # more than one part of a Parquet file


class Drawn(Maps):
    """Random maps in memory that count how often they are read."""

    def __init__(self, kind: str, image_ids: list[str] = IDS, *, key: str | None = "auto") -> None:
        self.kind = kind
        self.key = f"{kind}/drawn@1.0.0" if key == "auto" else key
        self.name = self.key or f"/somewhere/{kind}"
        self.image_ids = image_ids
        self.reads = 0

    def read(self, image_id: str) -> Any:
        self.reads += 1
        rng = np.random.default_rng([ord(c) for c in self.kind + image_id])
        if self.kind == "sal":
            return rng.integers(0, 256, (6, 7), dtype=np.uint8)
        return Activations(rng.integers(0, 256, (2, 6, 7), dtype=np.uint8), np.array([3, 11]))


def expected(image_id: str, tau: float = TAU.tau) -> np.ndarray:
    saliency = Drawn("sal").read(image_id)
    return pseudo_label(*Drawn("cam").read(image_id), saliency, tau)
