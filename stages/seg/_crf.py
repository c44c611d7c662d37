"""The CRF that refines what a segmentation network says, and the means of both over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.ops.densecrf import PRESETS, densecrf
from stages.runtime.measuring import VAL, Seed, mean_and_error
from wsssbed_hub.utils.errors import UsageError, did_you_mean

NO_CRF = "none"
CRFS = [name for name in PRESETS if name != "dss"]  # which has two labels and its own unary
_BGR = {"deeplab"}  # presets whose published program hands the CRF the image in that order


@dataclass(frozen=True)
class Crf:
    """A fully connected CRF that refines what a network says, at the size of the image."""

    preset: str
    """A name in ``stages.ops.densecrf.PRESETS``."""

    @classmethod
    def of(cls, name: str) -> Crf | None:
        """The CRF that an option names, None for ``none``. Raises UsageError for other names."""
        if name == NO_CRF:
            return None
        if name not in CRFS:
            raise UsageError(
                f"--crf {name}: there are no such settings of a CRF.{did_you_mean(name, CRFS)} "
                f"Choose one of {', '.join(CRFS)}, or {NO_CRF}."
            )
        return cls(name)

    def labels(self, logits: Tensor, rgb: np.ndarray) -> np.ndarray:
        """uint8[H, W] from logits float[C + 1, H, W] and the image uint8[H, W, 3]."""
        image = rgb[..., ::-1] if self.preset in _BGR else rgb
        return decide(densecrf(logits.softmax(0), image, PRESETS[self.preset]))

    def as_dict(self) -> dict[str, Any]:
        """Name and settings, as JSON."""
        order = "BGR" if self.preset in _BGR else "RGB"
        return {"preset": self.preset, "image": order, **asdict(PRESETS[self.preset])}


def decide(scores: Tensor) -> np.ndarray:
    """uint8[H, W], the highest of float[C + 1, H, W]."""
    return scores.argmax(0).to(torch.uint8).cpu().numpy()


def scores_over_seeds(
    scores: Mapping[Seed, dict[str, Any]], classes: Sequence[str], crf: Crf | None = None
) -> dict[str, Any]:
    """Mean and standard error over the seeds, and each seed's own scores, as JSON.

    With ``crf`` the field ``crf`` holds its settings and the means of what it refined.
    """
    found = {"split": VAL, **_means(scores, classes)}
    if crf is not None:
        found["crf"] = crf.as_dict() | _means(with_crf(scores), classes)
    seeds = {str(seed): score for seed, score in scores.items() if seed is not None}
    return found | {"seeds": seeds}


def with_crf(scores: Mapping[Seed, dict[str, Any]]) -> dict[Seed, dict[str, Any]]:
    """The scores of what the CRF refined."""
    return {seed: score["crf"] for seed, score in scores.items()}


def _means(scores: Mapping[Seed, dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    columns = zip(*(score["class_iou"] for score in scores.values()), strict=True)
    return {
        "miou": mean_and_error([score["miou"] for score in scores.values()]),
        "class_iou": {
            name: mean_and_error(values)
            for name, values in zip(("background", *classes), columns, strict=True)
        },
    }
