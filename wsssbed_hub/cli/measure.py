"""Combine and measure: label, curve, report."""

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
    from wsssbed_hub.report.comparison import Comparison, Pair


class Rule(StrEnum):
    paper = "paper"
    release = "release"
    oaa = "oaa"
    mcis = "mcis"
    drs = "drs"
    edam = "edam"


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
    Rule,
    typer.Option(
        help="paper: A > tau (Algorithm 1); release: the published program's; the others: what "
        "the authors of that method label by."
    ),
]
Beta = Annotated[
    float, typer.Option(help="Of the rule edam: a class above it is labelled, salient or not.")
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
        typer.Option(
            help="Without --tau: published (the benchmark's), authors (the method's own), or "
            "curve:SPLIT for the best on a split."
        ),
    ] = "published",
    rule: RuleOption = Rule.paper,
    sal_threshold: SalThreshold = 0.2,
    ignore: Annotated[
        bool, typer.Option(help="Write 255 where a salient pixel has no class; else background.")
    ] = True,
    beta: Beta = 0.95,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Make pseudo labels as a folder of palette PNGs, with settings.json beside them.

    Stopped, it goes on where it was. A folder with labels of other settings is an error.
    """
    from wsssbed_hub.evaluation.labelling import label_artifact
    from wsssbed_hub.evaluation.thresholds import choose_threshold

    _refuse_useless_settings(context, rule, sal)
    if tau is not None:
        refuse(context, ["tau_from"], "With --tau the threshold is known")

    activations = open_maps(cam, target, registry, "cam")
    saliency = None if sal is None else open_maps(sal, target, registry, "sal")
    threshold = choose_threshold(
        activations,
        saliency,
        tau=tau,
        tau_from=tau_from,
        target=target,
        data_root=data_root,
        rule=rule.value,
        sal_threshold=sal_threshold,
        beta=beta,
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
            beta=beta,
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


def _refuse_useless_settings(
    context: typer.Context, rule: Rule, sal: str | list[str] | None
) -> None:
    from wsssbed_hub.evaluation.method_rules import useless_settings

    for names, because in useless_settings(rule.value, saliency=bool(sal)):
        refuse(context, names, because)


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
    beta: Beta = 0.95,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves into this PNG file.")] = None,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Score the labels of every threshold against the ground truth of a split, in one pass.

    By the rules oaa and mcis there is no such pass, and no curve.
    """
    _refuse_useless_settings(context, rule, sal)
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
        beta=beta,
    )
    if plot is not None:
        from wsssbed_hub.report import curves_png
        from wsssbed_hub.utils.files import write_whole

        write_whole(plot, curves_png([pair.row(compared) for pair in compared.pairs]))
        note(f"curves drawn in {plot}")
    if as_json:
        curves = {pair.name: pair.curve.as_dict() | _published(pair) for pair in compared.pairs}
        typer.echo(json.dumps(curves, indent=2))
        return
    rows = []
    for pair in compared.pairs:
        taus = {one.origin: one.tau for one in pair.thresholds} | {"best": pair.curve.best_tau()}
        rows += [_curve_row(pair.name, which, pair.curve, tau) for which, tau in taus.items()]
    print_table(rows, as_json=False)
    note(
        f"{compared.images:,} images of {target} {split}. Ignored pixels count as misses, but not "
        "in 'labelled mIoU', whose pixels are the share 'coverage'."
    )


def open_maps(where: str, target: str | None, registry: str | None, kind: str) -> Maps:
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
            open_maps(cam, target, registry, "cam"),
            [open_maps(name, target, registry, "sal") for name in sals],
            [open_maps(name, target, registry, "label") for name in own or ()],
            target=target,
            progress=progress,
            **how,
        )


def _published(pair: Pair) -> dict[str, Any]:
    """What the labels are worth at the published thresholds, each with who published it."""
    rows = [{"origin": one.origin, **pair.curve.row(one.tau)} for one in pair.thresholds]
    return {"published": rows}


def _curve_row(name: str, which: str, curve: ThresholdCurve, tau: float) -> dict[str, Any]:
    row = curve.row(tau)
    return {
        "saliency": name,
        "threshold": which,
        "tau": f"{tau:.3f}",
        "mIoU": percent(row["miou_ignored_missed"]),
        "labelled mIoU": percent(row["miou"]),
        "coverage": percent(row["coverage"]),
    }


def percent(value: float | None) -> str | None:
    """``12.3 %``; None of nothing."""
    return None if value is None else f"{100 * value:.1f} %"


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
    beta: Beta = 0.95,
    data_root: DataRoot = DATA_ROOT,
    registry: Registry = None,
    as_json: AsJson = False,
) -> None:
    """Compare saliency maps on one activation map: table, curves, gallery, provenance, as a page.

    The rows of the table: labels from each saliency map, labels that were made elsewhere, and the
    networks trained on them.
    """
    _refuse_useless_settings(context, rule, sal)
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
        beta=beta,
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
