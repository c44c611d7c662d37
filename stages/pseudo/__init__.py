"""Pseudo labels: a saliency map and an activation map, combined at a threshold (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from stages.runtime.artifacts import (
    Artifact,
    artifact_name,
    images_of,
    list_ingredient,
    open_maps,
)
from stages.runtime.options import WHERE, OutputOptions
from stages.runtime.progress import progress, say
from stages.runtime.provenance import machine, provenance
from wsssbed_hub.artifacts import manifest
from wsssbed_hub.datasets import Target, open_target
from wsssbed_hub.evaluation.labelling import (
    ingredient,
    label_artifact,
    label_settings,
)
from wsssbed_hub.evaluation.method_rules import EDAM_BETA, useless_settings
from wsssbed_hub.evaluation.thresholds import choose_threshold
from wsssbed_hub.registry.open_artifact import Maps

CARD = manifest.MethodCitation(
    name="Algorithm 1 of WSSS-BED",
    paper="https://arxiv.org/abs/2404.00918",
    code="https://github.com/clovaai/WSSS-BED",
    licence="Apache-2.0",
)


@dataclass(frozen=True, kw_only=True)
class Options(OutputOptions):
    cam: Annotated[str, typer.Option(help=f"Activation maps: {WHERE}.")]
    sal: Annotated[
        str | None,
        typer.Option(help=f"Saliency maps: {WHERE}. Left out: labels without saliency."),
    ] = None
    tau: Annotated[
        float | None, typer.Option(min=0, max=1, help="Threshold on the activation maps.")
    ] = None
    tau_from: Annotated[
        str,
        typer.Option(
            help="Without --tau: published (the benchmark's for the method), authors (the method's "
            "own), or curve:SPLIT, the best one on the ground truth of that split.",
            metavar="published|authors|curve:SPLIT",
        ),
    ] = "published"
    rule: Annotated[
        manifest.Rule,
        typer.Option(help="Whose comparison, to the bit; or the label rule of a method's authors."),
    ] = "paper"
    sal_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Saliency above it is salient; 0: soft.")
    ] = 0.2
    ignore: Annotated[
        bool, typer.Option(help="Salient pixels without a class become 255, else background.")
    ] = True
    beta: Annotated[
        float, typer.Option(min=0, max=1, help="Of the rule edam: a class above it is labelled.")
    ] = EDAM_BETA
    name: Annotated[
        str | None, typer.Option(help="Name of the key label/NAME.", show_default="CAM-SALIENCY")
    ] = None

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        yield from super().useless()
        yield from useless_settings(self.rule, saliency=self.sal is not None)
        if self.tau is not None:
            yield ["tau_from"], "With --tau the threshold is known"


def run(stage: str, options: Options) -> None:
    """Label the target's training split and write the label artifact. One process, no GPU."""
    target = open_target(options.target, options.data_root)
    ids = images_of(target, target.training_split, options.limit)
    cam = open_maps(options.cam, target.name, "cam")
    sal = open_maps(options.sal, target.name, "sal") if options.sal else None
    used = [maps for maps in (cam, sal) if maps is not None]
    ingredients = [ingredient(maps) for maps in used]
    how = _settings(options, cam, sal, target)
    artifact = Artifact(
        key=f"label/{options.name or '-'.join(map(artifact_name, used))}",
        title=f"Pseudo labels of {' and '.join(i.key or i.file or '' for i in ingredients)}",
        method=CARD,
        trained_on=[],
        settings=label_settings(ingredients, ids, **how),
        options=options,
        image_ids=ids,
    )
    if artifact.is_there():
        return
    if options.fresh:
        artifact.discard_unfinished()
    with progress(f"writing {artifact.key}", len(ids), "image") as show:
        made = label_artifact(
            cam,
            sal,
            artifact.folder,
            **how,
            image_ids=ids,
            ingredients=ingredients,
            as_="parquet",
            progress=lambda done, of: show(done, ""),
        )
    assert made.written is not None  # Parquet waits to be completed
    lists = [list_ingredient("target-list", f"{target.name} {target.training_split}", ids)]
    artifact.complete(made.written, provenance(stage, machine(), [*ingredients, *lists]))
    say(f"{artifact.key}@{options.version}: {len(ids):,} images in {artifact.folder}")


def _settings(options: Options, cam: Maps, sal: Maps | None, target: Target) -> dict[str, Any]:
    """How to label: tau and where it is from, and what the options say."""
    split = options.tau_from.removeprefix("curve:")
    measured = options.tau is None and split != options.tau_from
    images = len(target.image_ids(split)) if measured else 0
    with progress("measuring the curve", images, "image") as show:
        tau = choose_threshold(
            cam,
            sal,
            tau=options.tau,
            tau_from=options.tau_from,
            target=target.name,
            data_root=options.data_root,
            rule=options.rule,
            sal_threshold=options.sal_threshold,
            beta=options.beta,
            progress=lambda done, of: show(done, ""),
        )
    say(f"tau {tau.tau:.3f} ({tau.origin}{f' on {tau.split}' if tau.split else ''})")
    return {
        "tau": tau,
        "rule": options.rule,
        "sal_threshold": options.sal_threshold,
        "ignore": options.ignore,
        "beta": options.beta,
    }
