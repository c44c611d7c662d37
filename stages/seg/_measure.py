"""What a trained segmentation network is worth on the target's val split, and what several are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.runtime import distributed
from stages.runtime.densecrf import PRESETS, densecrf
from stages.runtime.progress import progress
from stages.runtime.study import VAL, Seed, mean_and_error, of_all_processes, results
from stages.runtime.training import Trained
from wsssbed_hub.artifacts.manifest import Result
from wsssbed_hub.datasets import Target
from wsssbed_hub.evaluation.metrics import SegmentationScore
from wsssbed_hub.utils.errors import UsageError, did_you_mean

NO_CRF = "none"
_BGR = {"deeplab"}  # presets whose published program hands the CRF the image in that order


@dataclass(frozen=True)
class Crf:
    """A fully connected CRF that refines what a network says, at the size of the image."""

    preset: str
    """A name in ``stages.runtime.densecrf.PRESETS``."""

    @classmethod
    def of(cls, name: str) -> Crf | None:
        """The CRF that an option names, None for ``none``. Raises UsageError for other names."""
        if name == NO_CRF:
            return None
        if name not in PRESETS:
            raise UsageError(
                f"--crf {name}: there are no such settings of a CRF.{did_you_mean(name, PRESETS)} "
                f"Choose one of {', '.join(PRESETS)}, or {NO_CRF}."
            )
        return cls(name)

    def labels(self, logits: Tensor, rgb: np.ndarray) -> np.ndarray:
        """uint8[H, W] from logits float[C + 1, H, W] and the image uint8[H, W, 3]."""
        image = rgb[..., ::-1] if self.preset in _BGR else rgb
        return _decide(densecrf(logits.softmax(0), image, PRESETS[self.preset]))

    def as_dict(self) -> dict[str, Any]:
        """Name and settings, as JSON."""
        order = "BGR" if self.preset in _BGR else "RGB"
        return {"preset": self.preset, "image": order, **asdict(PRESETS[self.preset])}


def measure(
    trained: Trained,
    target: Target,
    image_ids: Sequence[str],
    device: torch.device,
    *,
    crf: Crf | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """The scores over ``image_ids`` (see ``SegmentationScore.as_dict``), by all processes.

    With ``crf`` there is a field ``crf`` that holds the same of the refined predictions. They are
    made on the CPU, by so many ``threads`` of each process, while the network goes on.
    """
    raw, refined = (SegmentationScore(target.num_classes) for _ in range(2))
    truth = target.ground_truth(VAL)
    share = image_ids[distributed.rank() :: distributed.size()]
    waiting: deque[tuple[str, np.ndarray, Future[np.ndarray]]] = deque()
    title = "measuring mIoU" + (f" without and with CRF {crf.preset}" if crf else "")

    def collect() -> None:
        image_id, expected, labels = waiting.popleft()
        refined.add(labels.result(), expected, image_id)
        show(refined.images, "")

    with progress(title, len(share), "image") as show, _single_threads(threads) as pool:
        for image_id in share:
            rgb, expected = target.read_image(image_id), np.asarray(truth.read(image_id))
            with torch.inference_mode():
                logits = trained.method.logits(trained.network, rgb)
                raw.add(_decide(logits), expected, image_id)
            if crf is None:
                show(raw.images, "")
                continue
            waiting.append((image_id, expected, pool.submit(crf.labels, logits.cpu(), rgb)))
            if len(waiting) > 2 * threads:  # more would only fill the memory
                collect()
        while waiting:
            collect()
    found = of_all_processes(raw, len(image_ids), device)
    if crf is not None:
        found["crf"] = of_all_processes(refined, len(image_ids), device)
    return found


def _decide(scores: Tensor) -> np.ndarray:
    return scores.argmax(0).to(torch.uint8).cpu().numpy()


@contextmanager
def _single_threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch takes one core: a CRF gains nothing from several."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # threads that start later take the number set last


def summary(
    scores: Mapping[Seed, dict[str, Any]], classes: Sequence[str], crf: Crf | None = None
) -> dict[str, Any]:
    """Mean and standard error over the seeds, and each seed's own scores, as JSON.

    With ``crf`` the field ``crf`` holds its settings and the means of what it refined.
    """
    found = {"split": VAL, **_means(scores, classes)}
    if crf is not None:
        found["crf"] = crf.as_dict() | _means(_with_crf(scores), classes)
    seeds = {str(seed): score for seed, score in scores.items() if seed is not None}
    return found | {"seeds": seeds}


def _with_crf(scores: Mapping[Seed, dict[str, Any]]) -> dict[Seed, dict[str, Any]]:
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


def stated(
    scores: Mapping[Seed, dict[str, Any]],
    seed: Seed,
    classes: Sequence[str],
    image_ids: Sequence[str],
    initial: str | None,
    crf: Crf | None = None,
) -> list[Result]:
    """What the manifest of one seed's weights states: mIoU and the IoU of each class.

    With ``crf`` the same again of what it refined. A class that val has not is left out.
    """
    common: dict[str, Any] = {"split": VAL, "initial": initial}
    measured = [(scores, common)]
    if crf is not None:
        note = f"CRF {crf.preset}"
        measured.append((_with_crf(scores), common | {"crf": True, "note": note}))
    found: list[Result] = []
    for of_seeds, how in measured:
        mious = {number: score["miou"] for number, score in of_seeds.items()}
        found += results("mIoU", mious, seed, image_ids, **how)
        for place, name in enumerate(("background", *classes)):
            values = {number: score["class_iou"][place] for number, score in of_seeds.items()}
            found += results(f"IoU {name}", values, seed, image_ids, own=False, **how)
    return found
