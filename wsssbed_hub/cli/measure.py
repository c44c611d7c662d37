"""Combine and measure: label, curve, eval, report."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsssbed_hub.cli.options import DATA_ROOT, WHERE, AsJson, DataRoot, Registry
from wsssbed_hub.cli.output import note, print_table
from wsssbed_hub.utils.options import refuse
from wsssbed_hub.utils.progress import progress_bar

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.maps import Maps
    from wsssbed_hub.evaluation.curves import ThresholdCurve
    from wsssbed_hub.report.comparison import Comparison

evaluate = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Score maps, labels or segmentations."
)


class Rule(StrEnum):
    paper = "paper"
    release = "release"


class Protocol(StrEnum):
    sod = "sod"
    ssnet = "ssnet"


Cam = Annotated[str, typer.Option(help=f"Activation maps: {WHERE}.")]
Sal = Annotated[
    str | None,
    typer.Option(help=f"Saliency maps: {WHERE}.", show_default="labels without saliency"),
]
TargetName = Annotated[str, typer.Option("--target", help="Dataset whose images the maps are for.")]
Split = Annotated[str, typer.Option(help="Images of the target that have a ground truth.")]
SalThreshold = Annotated[
    float, typer.Option(help="Salient means above this, in [0, 1]; 0 keeps the saliency soft.")
]
RuleOption = Annotated[
    Rule, typer.Option(help="paper: A > tau (Algorithm 1); release: the published program's.")
]


def label(
    context: typer.Context,
    cam: Cam,
    to: Annotated[Path, typer.Option(help="Folder to write the labels to.")],
    sal: Sal = None,
    target: TargetName = "voc12",
    tau: Annotated[
        float | None, typer.Option(help="Threshold on the activation maps, in [0, 1].")
    ] = None,
    tau_from: Annotated[
        str,
        typer.Option(help="Without --tau: published, or curve:SPLIT for the best on a split."),
    ] = "published",
    rule: RuleOption = Rule.paper,
    sal_threshold: SalThreshold = 0.2,
    ignore: Annotated[
        bool, typer.Option(help="Write 255 where a salient pixel has no class; else background.")
    ] = True,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Make pseudo labels as a folder of palette PNGs, with settings.json beside them.

    Stopped, it goes on where it was. A folder with labels of other settings is an error.
    """
    from wsssbed_hub.evaluation.labelling import label_artifact
    from wsssbed_hub.evaluation.thresholds import choose_threshold

    _refuse_settings_of_saliency(context, sal)
    if tau is not None:
        refuse(context, ["tau_from"], "With --tau the threshold is known")

    activations = _open_maps(cam, target, registry, "cam")
    saliency = None if sal is None else _open_maps(sal, target, registry, "sal")
    threshold = choose_threshold(
        activations,
        saliency,
        tau=tau,
        tau_from=tau_from,
        target=target,
        data_root=data_root,
        rule=rule.value,
        sal_threshold=sal_threshold,
    )
    with progress_bar("label", unit="images") as progress:
        made = label_artifact(
            activations,
            saliency,
            to,
            tau=threshold,
            rule=rule.value,
            sal_threshold=sal_threshold,
            ignore=ignore,
            progress=progress,
        )
    rows = [
        {
            "labels": str(to),
            "images": made.images,
            "tau": threshold.tau,
            "tau from": threshold.origin + (f" on {threshold.split}" if threshold.split else ""),
            "content": made.content,
        }
    ]
    print_table(rows, as_json=as_json)


def _refuse_settings_of_saliency(context: typer.Context, sal: str | list[str] | None) -> None:
    if not sal:
        names = ["sal_threshold", "ignore"]
        refuse(context, names, "Without --sal no saliency decides what is labelled or ignored")


def curve(
    context: typer.Context,
    cam: Cam,
    sal: Annotated[
        list[str] | None,
        typer.Option(help=f"Saliency maps, as often as you like: {WHERE}."),
    ] = None,
    target: TargetName = "voc12",
    split: Split = "train",
    rule: RuleOption = Rule.paper,
    sal_threshold: SalThreshold = 0.2,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this PNG file.")] = None,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Score the labels of every threshold against the ground truth of a split, in one pass."""
    _refuse_settings_of_saliency(context, sal)
    compared = _compare(
        "curve",
        cam,
        sal or [],
        registry,
        target=target,
        data_root=data_root,
        split=split,
        rule=rule.value,
        sal_threshold=sal_threshold,
    )
    if plot is not None:
        from wsssbed_hub.report import curves_png
        from wsssbed_hub.utils.files import write_whole

        write_whole(plot, curves_png([pair.row(compared) for pair in compared.pairs]))
        note(f"curves drawn in {plot}")
    if as_json:
        curves = {pair.name: pair.curve.as_dict() for pair in compared.pairs}
        typer.echo(json.dumps(curves, indent=2))
        return
    rows = []
    for pair in compared.pairs:
        taus = {"best": pair.curve.best_tau()}
        if pair.published is not None:
            taus = {"published": pair.published.tau} | taus
        rows += [_curve_row(pair.name, which, pair.curve, tau) for which, tau in taus.items()]
    print_table(rows, as_json=False)
    note(
        f"{compared.images:,} images of {target} {split}. Ignored pixels count as misses, but not "
        "in 'labelled mIoU', whose pixels are the share 'coverage'."
    )


def _open_maps(where: str, target: str | None, registry: str | None, kind: str) -> Maps:
    """The maps that a person names on the command line; another kind is a usage error."""
    from wsssbed_hub.registry.open_artifact import open_artifact
    from wsssbed_hub.utils.errors import UsageError

    maps = open_artifact(where, target, registry=registry)
    if maps.kind != kind:
        raise UsageError(f"{where} holds maps of kind {maps.kind}, and {kind} was asked for.")
    return maps


def _compare(
    title: str,
    cam: str,
    sals: list[str],
    registry: str | None,
    *,
    target: str,
    own: list[str] | None = None,
    **how: Any,
) -> Comparison:
    """``comparison.compare`` of maps as they are named on the command line, under a bar."""
    from wsssbed_hub.report.comparison import compare

    with progress_bar(title, unit="images") as progress:
        return compare(
            _open_maps(cam, target, registry, "cam"),
            [_open_maps(name, target, registry, "sal") for name in sals],
            [_open_maps(name, target, registry, "label") for name in own or ()],
            target=target,
            progress=progress,
            **how,
        )


def _curve_row(name: str, which: str, curve: ThresholdCurve, tau: float) -> dict[str, Any]:
    row = curve.row(tau)
    return {
        "saliency": name,
        "threshold": which,
        "tau": f"{tau:.3f}",
        "mIoU": _percent(row["miou_ignored_missed"]),
        "labelled mIoU": _percent(row["miou"]),
        "coverage": _percent(row["coverage"]),
    }


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


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
            _open_maps(where, target, registry, "label"),
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
        {"class": name, "IoU": _percent(float(value))}
        for name, value in zip(names, score.class_iou, strict=True)
    ]
    rows.append({"class": "mean (mIoU)", "IoU": _percent(score.mean_iou())})
    rows.append({"class": "pixel accuracy", "IoU": _percent(score.pixel_accuracy)})
    if undecided:
        rows.append({"class": "coverage", "IoU": _percent(score.coverage)})
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
            _open_maps(maps, None if masks else target, registry, "sal"),
            truth,
            protocol=protocol.value,
            progress=progress,
        )
    rows = [{"measure": name, "value": round(value, 4)} for name, value in measures.items()]
    print_table(rows, as_json=as_json)
    note(f"{len(truth.image_ids):,} images of {masks or f'{target} {split}'}")


def report(
    context: typer.Context,
    cam: Cam,
    to: Annotated[Path, typer.Option(help="HTML file to write.")],
    sal: Annotated[
        list[str] | None, typer.Option(help=f"Saliency maps, as often as you like: {WHERE}.")
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            "--labels", help=f"Labels that were made elsewhere, as often as you like: {WHERE}."
        ),
    ] = None,
    segmentation: Annotated[
        list[str] | None,
        typer.Option(help="Trained networks to show, as often as you like: weights/… keys."),
    ] = None,
    target: TargetName = "voc12",
    split: Split = "train",
    images: Annotated[int, typer.Option(help="Images in the gallery.", min=0)] = 8,
    rule: RuleOption = Rule.paper,
    sal_threshold: SalThreshold = 0.2,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Compare saliency maps on one activation map: table, curves, gallery, provenance, as a page.

    The rows of the table: labels from each saliency map, labels that were made elsewhere, and the
    networks trained on them.
    """
    _refuse_settings_of_saliency(context, sal)
    from rich.console import Console

    from wsssbed_hub.report import terminal_table, write_html
    from wsssbed_hub.report.comparison import make_report

    compared = _compare(
        "report",
        cam,
        sal or [],
        registry,
        own=own,
        target=target,
        data_root=data_root,
        split=split,
        rule=rule.value,
        sal_threshold=sal_threshold,
        saliency_quality=True,
    )
    page = make_report(compared, segmentation or (), registry=registry, images=images)
    write_html(page, to)
    if as_json:
        typer.echo(page.dump())
    else:
        Console().print(terminal_table(page))
    note(f"report written to {to}")


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    for command in (label, curve, report):
        app.command()(command)
    app.add_typer(evaluate, name="eval")
