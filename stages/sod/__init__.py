"""Saliency: train on a SOD dataset, then write saliency maps over a target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import typer

from stages.runtime.artifacts import (
    Artifact,
    images_of,
    list_ingredient,
    require_count,
    train_and_write,
    without_gradients,
)
from stages.runtime.method import Method, Phase
from stages.runtime.options import TrainOptions
from stages.runtime.session import setup
from wsssbed_hub.artifacts.manifest import Supervision, TrainedOn
from wsssbed_hub.datasets import SodDataset, open_sod_dataset, open_target


class SodMethod(Method):
    """A saliency model: one file in this folder with a class ``Method`` derived from this one."""

    supervision: ClassVar[Supervision] = "pixel masks"
    """What of the SOD dataset supervises the training. With masks the key names the dataset."""

    @abstractmethod
    def phases(self, network: Any, data: SodDataset) -> Iterator[Phase]: ...

    @abstractmethod
    def saliency(self, network: Any, rgb: np.ndarray) -> np.ndarray:
        """The saliency map uint8[H, W] of one image uint8[H, W, 3].

        Called with the network in eval mode, in float32, without gradients; the network's
        parameters tell the device.
        """


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    data: Annotated[
        str, typer.Option(help="SOD dataset to train on (with --weights: that it was trained on).")
    ]
    split: Annotated[
        str | None,
        typer.Option(
            help="Split of the target to write maps over.",
            show_default="that which methods are trained on",
        ),
    ] = None


def run(stage: str, method: type[SodMethod], options: Options) -> None:
    """Train on ``--data`` and write saliency maps over ``--target``.

    The training does not depend on the target: another one takes the weights that are there.
    """
    session = setup(stage, method, options)
    target = open_target(options.target, options.data_root)
    split = options.split or target.training_split
    ids = images_of(target, split, options.limit)
    lists = [list_ingredient("target-list", f"{target.name} {split}", ids)]
    settings = session.settings
    dataset = None
    if options.weights is None:
        dataset = open_sod_dataset(options.data, options.data_root)
        require_count(dataset.name, len(dataset.image_ids), dataset.spec.count, dataset.name)
        data_list = list_ingredient("training-list", dataset.name, dataset.image_ids)
        lists.insert(0, data_list)
        settings = settings | {
            "seed": options.seed,
            "data": options.data,
            "data_list": data_list.digest,
        }
    train_and_write(
        session,
        _artifact(stage, method, options, dataset, {**settings, "split": split}, ids),
        "sal",
        options.out / "runs" / f"{stage}-{options.data}",
        make=lambda scratch: method(session.recipe, scratch),
        data=dataset,
        settings=settings,
        lists=lists,
        produce=lambda trained, image_id: without_gradients(
            lambda rgb: trained.method.saliency(trained.network, rgb), target, image_id
        ),
    )


def _artifact(
    stage: str,
    method: type[SodMethod],
    options: Options,
    dataset: SodDataset | None,
    settings: Mapping[str, Any],
    ids: Sequence[str],
) -> Artifact:
    name = stage.removeprefix("sod-")
    images = len(dataset.image_ids) if dataset else None
    return Artifact(
        key=f"sal/{name}-{options.data}" if method.supervision == "pixel masks" else f"sal/{name}",
        title=f"Saliency maps of {method.card.name}, trained on {options.data}",
        method=method.card,
        trained_on=[TrainedOn(dataset=options.data, images=images, supervision=method.supervision)],
        settings={**settings, "limit": options.limit},
        options=options,
        image_ids=ids,
    )
