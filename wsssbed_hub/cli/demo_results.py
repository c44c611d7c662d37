"""What a finished demo found, read from its folder: the numbers of its tables, and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.cli.demo_plan import CAM, DEEPLAB, GROUND_TRUTH, SOD_DATASETS, TARGET, Curves, Demo
from wsssbed_hub.datasets import open_sod_dataset, open_target
from wsssbed_hub.evaluation.published import PUBLISHED
from wsssbed_hub.evaluation.score import Foreground, MeanMask, score_saliency
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.report import Report, choose_images, thumbnail_gallery
from wsssbed_hub.report.comparison import QUALITY
from wsssbed_hub.report.matrices import LabelScore, MatrixCell, NetworkCell
from wsssbed_hub.report.summary import Summary, SummaryRow, summarise

IMAGES = 6  # in the picture of all maps


def read_report(demo: Demo) -> Report:
    """The report that the last step printed."""
    return Report.model_validate_json((demo.folder / "report.json").read_text())


def summary_of(demo: Demo, command: str, minutes: float | None) -> Summary:
    """All numbers; ``command`` and ``minutes`` are what the demo was and took."""
    made = read_manifest(demo.artifacts / CAM).choose(TARGET).entry.provenance
    assert made is not None  # every stage writes it
    summary = summarise(
        read_report(demo),
        command,
        made.environment,
        minutes,
        trained=_minutes_of_training(demo),
        more=[_mean_of_the_masks(demo)],
    )
    tables = {"matrix": tuple(matrix(demo)), "networks": tuple(networks(demo))}
    return summary.model_copy(update=tables)


def matrix(demo: Demo) -> Iterator[MatrixCell]:
    """Each activation method with each of the saliency maps: the worth of the labels.

    The methods stand as in the benchmark's tables, others behind them.
    """
    order = list(PUBLISHED)

    def rank(curves: Curves) -> int:
        method = curves.method.stage.removeprefix("cam-")
        return order.index(method) if method in order else len(order)

    for curves in sorted(demo.curves(), key=rank):
        for name, curve in json.loads(curves.file.read_text()).items():
            yield _cell(curves, curves.sal or name.partition("@")[0], curve)


def _cell(curves: Curves, saliency: str, curve: dict[str, Any]) -> MatrixCell:
    def score(row: dict[str, Any]) -> LabelScore:
        return LabelScore(tau=row["tau"], miou=row["miou_ignored_missed"], coverage=row["coverage"])

    return MatrixCell(
        method=curves.method.stage.removeprefix("cam-"),
        saliency=saliency,
        at_label_time=curves.sal is None,
        published=score(curve["published"][0]) if curve["published"] else None,
        best=score(curve["best"]["miou_ignored_missed"]),
    )


def networks(demo: Demo) -> Iterator[NetworkCell]:
    """Each segmentation network on each set of labels: mIoU on val, over the seeds."""
    for labels, name in demo.label_sets().items():
        for network in (DEEPLAB, *demo.networks):
            found = json.loads((demo.run_folder(network, name) / "result.json").read_text())
            yield NetworkCell(
                network=network,
                labels="ground truth" if labels == GROUND_TRUTH else labels,
                miou=found["miou"]["mean"],
                standard_error=found["miou"]["standard_error"],
                seeds=len(found["seeds"]),
            )


def _minutes_of_training(demo: Demo) -> dict[str, float]:
    """The minutes that the trainings' folders tell, by key of the maps."""
    found = {}
    for key, (stage, data) in demo.trainings.items():
        run = json.loads((demo.artifacts / "runs" / f"{stage}-{data}" / "run.json").read_text())
        found[key] = run["seconds"] / 60
    return found


def _mean_of_the_masks(demo: Demo) -> SummaryRow:
    """The measures of the mean mask that the larger dataset has: models have to beat it."""
    truth = open_target(TARGET, demo.data).ground_truth("train")
    mean = MeanMask(open_sod_dataset(SOD_DATASETS[-1], demo.data), truth)
    measures = score_saliency(mean, Foreground(truth), measures=QUALITY)
    known = {name: measures[name] for name in ("mae", "max_f", "s_measure")}
    return SummaryRow(name="mean of the masks", **known)


def picture(demo: Demo) -> bytes:
    """A PNG file: some images with the maps of every model and the ground truth."""
    target = open_target(TARGET, demo.data)
    maps = {Path(key).name: open_artifact(demo.pulled(key), TARGET) for key in demo.trainings}
    columns = [*maps.items(), ("ground truth", target.ground_truth("train"))]
    chosen = choose_images(target, target.image_ids("train"), IMAGES)
    return thumbnail_gallery(target, columns, chosen, longest=128)
