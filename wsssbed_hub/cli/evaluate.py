"""Score what was made: eval segmentation, eval labels, eval saliency."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsssbed_hub.cli.measure import Split, TargetName, open_maps, percent
from wsssbed_hub.cli.options import DATA_ROOT, WHERE, AsJson, DataRoot, Registry
from wsssbed_hub.cli.output import note, print_table
from wsssbed_hub.utils.options import refuse
from wsssbed_hub.utils.progress import progress_bar

evaluate = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Score maps, labels or segmentations."
)


class Protocol(StrEnum):
    sod = "sod"
    ssnet = "ssnet"


@evaluate.command()
def segmentation(
    predictions: Annotated[str, typer.Argument(help=f"Label maps without 255: {WHERE}.")],
    target: TargetName = "voc12",
    split: Split = "val",
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Score the output of a segmentation network: mIoU, accuracies, IoU of every class."""
    _score(predictions, target, split, data_root, registry, as_json, undecided=False)


@evaluate.command()
def labels(
    maps: Annotated[str, typer.Argument(metavar="LABELS", help=f"Pseudo labels: {WHERE}.")],
    target: TargetName = "voc12",
    split: Split = "train",
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Score pseudo labels; ignored pixels (255) count as misses, and the coverage is stated."""
    _score(maps, target, split, data_root, registry, as_json, undecided=True)


def _score(
    where: str,
    target: str,
    split: str,
    data_root: Path,
    registry: str | None,
    as_json: bool,
    *,
    undecided: bool,
) -> None:
    from wsssbed_hub.datasets import open_target
    from wsssbed_hub.evaluation.score import score_labels

    dataset = open_target(target, data_root)
    with progress_bar("score", unit="images") as progress:
        score = score_labels(
            open_maps(where, target, registry, "label"),
            dataset.ground_truth(split),
            num_classes=dataset.num_classes,
            undecided=undecided,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(score.as_dict(), indent=2))
        return
    names = ("background", *dataset.classes)
    rows = [
        {"class": name, "IoU": percent(float(value))}
        for name, value in zip(names, score.class_iou, strict=True)
    ]
    rows.append({"class": "mean (mIoU)", "IoU": percent(score.mean_iou())})
    rows.append({"class": "pixel accuracy", "IoU": percent(score.pixel_accuracy)})
    if undecided:
        rows.append({"class": "coverage", "IoU": percent(score.coverage)})
    print_table(rows, as_json=False)
    note(f"{score.images:,} images of {target} {split}")


@evaluate.command()
def saliency(
    context: typer.Context,
    maps: Annotated[str, typer.Argument(metavar="MAPS", help=f"Saliency maps: {WHERE}.")],
    target: TargetName = "voc12",
    split: Split = "train",
    masks: Annotated[
        str | None,
        typer.Option(
            help="SOD benchmark whose masks are the truth, such as ecssd.",
            show_default="the objects in the target's ground truth",
        ),
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(help="sod: PySODMetrics, 256 thresholds; ssnet: that paper's 21 thresholds."),
    ] = Protocol.sod,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Score saliency maps: MAE, F-measure, and with the protocol sod also S, E and weighted F."""
    from wsssbed_hub.datasets import open_sod_dataset, open_target
    from wsssbed_hub.evaluation.score import Foreground, Masks, score_saliency

    truth: Foreground | Masks
    if masks is not None:
        refuse(context, ["target", "split"], f"The masks of {masks} are the truth")
        truth = Masks(open_sod_dataset(masks, data_root))
    else:
        truth = Foreground(open_target(target, data_root).ground_truth(split))
    with progress_bar("score", unit="images") as progress:
        measures = score_saliency(
            open_maps(maps, None if masks else target, registry, "sal"),
            truth,
            protocol=protocol.value,
            progress=progress,
        )
    rows = [{"measure": name, "value": round(value, 4)} for name, value in measures.items()]
    print_table(rows, as_json=as_json)
    note(f"{len(truth.image_ids):,} images of {masks or f'{target} {split}'}")


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``, below ``eval``."""
    app.add_typer(evaluate, name="eval")
