"""Saliency: train on a SOD dataset, then write saliency maps over a target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import typer

from stages.runtime.artifacts import (
    Artifact,
    images_of,
    list_ingredient,
    open_maps,
    require_count,
    without_gradients,
)
from stages.runtime.method import Image, Method, Phase
from stages.runtime.options import WHERE, TrainOptions
from stages.runtime.session import setup
from stages.runtime.study import Inference, Training, train_and_write
from wsssbed_hub.artifacts.manifest import Supervision, TrainedOn
from wsssbed_hub.datasets import (
    SOD_DATASETS,
    SodDataset,
    open_sod_dataset,
    open_sod_images,
    open_target,
)
from wsssbed_hub.datasets.image_files import read_rgb
from wsssbed_hub.evaluation.curves import require_ids
from wsssbed_hub.evaluation.labelling import ingredient
from wsssbed_hub.registry.open_artifact import Maps
from wsssbed_hub.utils.errors import HubError, UsageError, did_you_mean

MASKS: Supervision = "pixel masks"


@dataclass(frozen=True)
class SodData:
    """The images that a saliency model is trained on, with masks or with hand-crafted maps."""

    name: str
    image_paths: Mapping[str, Path]
    masks: SodDataset | None = None
    """None for methods that are trained without."""
    maps: Mapping[str, Maps] = field(default_factory=dict)
    """Hand-crafted saliency maps of these images, by the names in ``SodMethod.takes_maps``."""

    @cached_property
    def image_ids(self) -> list[str]:
        """In ascending order."""
        return sorted(self.image_paths)

    def read_image(self, image_id: str) -> np.ndarray:
        """uint8[H, W, 3], RGB."""
        return read_rgb(self.image_paths[image_id])

    def read_mask(self, image_id: str) -> np.ndarray:
        """uint8[H, W], 0..255. Raises HubError if it has not the size of the image."""
        if self.masks is None:
            raise HubError(f"{self.name}: this method is trained without masks, and reads one.")
        return self.masks.read_mask(image_id)


class SodMethod(Method):
    """A saliency model: one file in this folder with a class ``Method`` derived from this one."""

    supervision: ClassVar[Supervision] = MASKS
    """What of the SOD dataset supervises the training. With masks the key names the dataset;
    without, none need be there, and the images of a target will do."""
    takes_maps: ClassVar[Mapping[str, bool]] = {}
    """Hand-crafted saliency maps of the training images that ``--maps NAME=…`` gives, by name, and
    whether they must be given (else the method makes them itself)."""
    without_maps: ClassVar[str] = ""
    """A sentence for people who have not the maps that must be given: what else they can do."""

    @classmethod
    def maps_of(cls, recipe: Any) -> Mapping[str, bool]:
        """``takes_maps``, as far as this recipe takes them. Raises UsageError if it cannot be."""
        return cls.takes_maps

    @classmethod
    def remark(cls, recipe: Any) -> str:
        """A remark on this recipe that belongs on the maps' card, at the end of their title: that
        the network is a stand-in for the published one."""
        return ""

    @abstractmethod
    def phases(self, network: Any, data: SodData) -> Iterator[Phase]: ...

    @abstractmethod
    def saliency(self, network: Any, image: Image) -> np.ndarray:
        """The saliency map uint8[H, W] of an image.

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
    maps: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Hand-crafted maps of the training images, for methods that learn from them: "
            f"{WHERE}; repeatable.",
            metavar="NAME=MAPS",
        ),
    ] = None

    def useless(self) -> Iterator[tuple[Collection[str], str]]:
        yield from super().useless()
        if self.weights is not None:
            yield ["maps"], "With --weights nothing is trained"


def key_of(stage: str, method: type[SodMethod], data: str) -> str:
    """The key of the saliency maps of a method that is trained on ``data``."""
    name = stage.removeprefix("sod-")
    return f"sal/{name}-{data}" if method.supervision == MASKS else f"sal/{name}"


def run(stage: str, method: type[SodMethod], options: Options) -> None:
    """Train on ``--data`` and write saliency maps over ``--target``.

    The training does not depend on the target: another one takes the weights that are there.
    """
    session = setup(stage, method, options)
    target = open_target(options.target, options.data_root)
    split = options.split or target.training_split
    ids = images_of(target, split, options.limit)
    settings = session.settings
    data, seen = None, []
    if options.weights is None:
        data = _training_data(method, session.recipe, options)
        used = {name: ingredient(maps) for name, maps in data.maps.items()}
        seen = [list_ingredient("training-list", data.name, data.image_ids), *used.values()]
        settings = settings | {
            "seed": options.seed,
            "data": options.data,
            "data_list": seen[0].digest,
        }
        if used:
            settings["maps"] = {name: maps.digest for name, maps in used.items()}
    train_and_write(
        session,
        Training(
            options.out / "runs" / f"{stage}-{options.data}",
            lambda scratch: method(session.recipe, scratch),
            data,
            settings,
            None if options.weights else options.seed,
            seen,
        ),
        _artifact(
            stage,
            method,
            options,
            data,
            {**settings, "split": split},
            ids,
            method.remark(session.recipe),
        ),
        Inference(
            "sal",
            lambda image_id: Image(image_id, target.read_image(image_id)),
            lambda trained, image: without_gradients(
                partial(trained.method.saliency, trained.network), image
            ),
        ),
        [list_ingredient("target-list", f"{target.name} {split}", ids)],
    )


def _training_data(method: type[SodMethod], recipe: Any, options: Options) -> SodData:
    """The images that ``--data`` names, with what the method learns from beside them.

    Raises UsageError or HubError for what is not there.
    """
    name, root = options.data, options.data_root
    maps = _hand_crafted(method, recipe, options)
    masks = open_sod_dataset(name, root) if method.supervision == MASKS else None
    if masks is not None:
        paths = {image_id: masks.image_path(image_id) for image_id in masks.image_ids}
    elif name in SOD_DATASETS:
        paths = open_sod_images(name, root)
    else:
        target = open_target(name, root)
        paths = {i: target.image_path(i) for i in images_of(target, target.training_split, None)}
    if name in SOD_DATASETS:
        require_count(name, len(paths), SOD_DATASETS[name].count, name)
    for kind, found in maps.items():
        require_ids(sorted(paths), found, f"maps {kind}")
    return SodData(name, paths, masks, maps)


def _hand_crafted(method: type[SodMethod], recipe: Any, options: Options) -> dict[str, Maps]:
    """The maps that ``--maps`` names. Raises UsageError for unknown names and missing maps."""
    known = method.maps_of(recipe)
    found = {}
    for text in options.maps or ():
        name, _, where = text.partition("=")
        if name not in known or not where:
            names = f"one of {', '.join(known)}" if known else "none: it learns from no maps"
            raise UsageError(
                f"--maps {text}: write NAME=MAPS; the names of {method.card.name} are {names}."
                f"{did_you_mean(name, known)}"
            )
        if name in found:
            raise UsageError(f"--maps gives {name} twice: choose one.")
        found[name] = open_maps(where, None, "sal")
    missing = [name for name, needed in known.items() if needed and name not in found]
    if missing:
        raise UsageError(
            f"{method.card.name} learns from hand-crafted saliency maps. Name those of "
            f"{' and '.join(missing)} with --maps {missing[0]}=MAPS: {WHERE}. {method.without_maps}"
        )
    return found


def _artifact(
    stage: str,
    method: type[SodMethod],
    options: Options,
    data: SodData | None,
    settings: Mapping[str, Any],
    ids: Sequence[str],
    remark: str,
) -> Artifact:
    images = len(data.image_paths) if data else None
    return Artifact(
        key=key_of(stage, method, options.data),
        title=f"Saliency maps of {method.card.name}, trained on {options.data}{remark}",
        method=method.card,
        trained_on=[TrainedOn(dataset=options.data, images=images, supervision=method.supervision)],
        settings={**settings, "limit": options.limit},
        options=options,
        image_ids=ids,
    )
