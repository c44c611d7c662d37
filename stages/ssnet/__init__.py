"""SSNet: joint learning of saliency detection and weakly supervised segmentation.

``--setting`` names what is trained, as Tables 5 and 6 of the paper do; the network, its losses and
the settings are in ``_ssnet.py``. A training has a folder of its own below ``runs/``, by
seed and setting, so settings share the trainings that they build on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from stages.runtime.options import SeveralTrainings
from stages.runtime.session import setup
from stages.runtime.study import seeds_of
from stages.runtime.training import locked
from stages.ssnet._artifacts import make_artifacts
from stages.ssnet._ssnet import SETTINGS, Method, Setting
from stages.ssnet._tables import make_tables
from stages.ssnet._training import Study, has_saliency, needs_sod
from wsssbed_hub.utils.errors import UsageError, did_you_mean

__all__ = ["Method", "Options", "run"]

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Options(SeveralTrainings):
    data: Annotated[
        str | None,
        typer.Option(
            help="SOD dataset to train on (with --weights: that it was trained on); settings S and "
            "SS need none.",
            show_default=False,
        ),
    ] = None
    setting: Annotated[
        str,
        typer.Option(
            help="What to train and to make: S, M, SS, MS, MM or 2S, as in the paper's Tables 5 "
            "and 6, or `all`: both tables, no artifacts."
        ),
    ] = "MM"
    saliency_crf: Annotated[
        Literal["ssnet", "none"] | None,
        typer.Option(
            help="CRF that refines the saliency maps that are written.", show_default="ssnet"
        ),
    ] = None

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        yield from super().useless()
        if self.setting == ALL:
            yield ["version"], "--setting all makes tables and no artifact"


def run(stage: str, method: type[Method], options: Options) -> None:
    """Train a setting, and what it builds on, once for each seed; measure it; write its artifacts.

    With ``--setting all`` every setting is trained and measured, and Tables 5 and 6 are written.
    With ``--weights`` nothing is trained: the network of that file makes the setting's maps, and
    they are measured. The last iteration is the result.
    """
    settings = _chosen(options)
    seeds = seeds_of(options.seeds, options)
    session = setup(stage, method, options)
    study = Study.begin(session, method, settings, options.data)
    with ExitStack() as stack:
        for folder in sorted({study.root(setting) for setting in settings}):
            stack.enter_context(locked(folder))
        if options.setting == ALL:
            make_tables(study, seeds)
        else:
            make_artifacts(study, settings[0], seeds, crf=options.saliency_crf != "none")


def _chosen(options: Options) -> list[Setting]:
    """The settings that are asked for. Raises UsageError if the options do not fit them."""
    name = options.setting
    if name not in (*SETTINGS, ALL):
        near = did_you_mean(name.upper(), SETTINGS) or did_you_mean(name, [ALL])
        raise UsageError(
            f"--setting {name}: there is no such setting.{near} Settings are "
            f"{', '.join(SETTINGS)} and {ALL}."
        )
    settings = [*SETTINGS.values()] if name == ALL else [SETTINGS[name]]
    if name == ALL and options.weights is not None:
        raise UsageError(
            "With --weights nothing is trained, and the tables compare trainings. Name the one "
            "setting that the file was trained in with --setting."
        )
    if options.data is None and any(map(needs_sod, settings)):
        raise UsageError(
            f"--setting {name} is trained with saliency masks. Name the SOD dataset with --data, "
            "duts as in the paper; only S and SS need none."
        )
    if options.data is not None and not any(map(needs_sod, settings)):
        raise UsageError(f"--setting {name} is trained without saliency masks; leave --data out.")
    writes = name != ALL and has_saliency(settings[0])
    if options.saliency_crf is not None and not writes:
        raise UsageError(f"--setting {name} writes no saliency maps; leave --saliency-crf out.")
    return settings
