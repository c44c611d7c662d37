"""Activation maps: train on a target's image-level labels, then write maps over its images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import typer

from stages.runtime.artifacts import (
    Artifact,
    artifact_name,
    images_of,
    list_ingredient,
    open_maps,
    without_gradients,
)
from stages.runtime.method import Image, Method, Phase
from stages.runtime.options import WHERE, TrainOptions
from stages.runtime.session import setup
from stages.runtime.study import Inference, Training, train_and_write
from stages.runtime.training import Trained
from wsssbed_hub.artifacts.manifest import TrainedOn
from wsssbed_hub.datasets import Target, open_target
from wsssbed_hub.evaluation.curves import require_ids
from wsssbed_hub.evaluation.labelling import ingredient
from wsssbed_hub.registry.open_artifact import Activations, Maps
from wsssbed_hub.utils.errors import UsageError


@dataclass(frozen=True)
class CamData:
    """The images that a CAM method is trained on, with their image-level labels."""

    target: Target
    image_ids: Sequence[str]
    saliency: Maps | None = None
    """Saliency maps of these images, for methods that are trained with them."""

    @property
    def num_classes(self) -> int:
        """Background not counted."""
        return self.target.num_classes

    def read_image(self, image_id: str) -> np.ndarray:
        """uint8[H, W, 3], RGB."""
        return self.target.read_image(image_id)

    def image_labels(self, image_id: str) -> tuple[int, ...]:
        """The classes that are present, from 0, ascending."""
        return self.target.image_labels(image_id)

    @cached_property
    def images_by_class(self) -> Sequence[Sequence[str]]:
        """The images of each class, in their order. Reads the labels of all images, once."""
        found: list[list[str]] = [[] for _ in range(self.num_classes)]
        for image_id in self.image_ids:
            for class_id in self.image_labels(image_id):
                found[class_id].append(image_id)
        return found

    def image(self, image_id: str) -> Image:
        """The image with its classes."""
        class_ids = np.array(self.image_labels(image_id), np.int64)
        return Image(image_id, self.read_image(image_id), class_ids)


class CamMethod(Method):
    """A CAM method: one file in this folder with a class ``Method`` derived from this one."""

    needs_saliency: ClassVar[bool] = False
    """Whether the training takes saliency maps (``--sal``), which the key then names."""

    def __init__(self, recipe: Any, scratch: Path, num_classes: int) -> None:
        super().__init__(recipe, scratch)
        self.num_classes = num_classes
        """Of the target, background not counted."""

    @abstractmethod
    def phases(self, network: Any, data: CamData) -> Iterator[Phase]: ...

    @abstractmethod
    def activations(self, network: Any, image: Image, data: CamData) -> np.ndarray:
        """Activation maps uint8[K, H, W] of an image and its classes, ``image.class_ids``.

        ``data`` are the images that the network was trained on, for methods that look at related
        ones or at saliency. Called with the network in eval mode, in float32, without gradients;
        the network's parameters tell the device.
        """


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    sal: Annotated[
        str | None,
        typer.Option(help=f"Saliency maps, for methods trained with them: {WHERE}."),
    ] = None


def key_of(stage: str, method: type[CamMethod], sal: str) -> str:
    """The key of a method's activation maps, trained with the saliency maps ``sal`` if with any."""
    name = stage.removeprefix("cam-")
    return f"cam/{name}-{sal}" if method.needs_saliency else f"cam/{name}"


def run(stage: str, method: type[CamMethod], options: Options) -> None:
    """Train on the image-level labels of the target's training split and write maps over it."""
    session = setup(stage, method, options)
    target = open_target(options.target, options.data_root)
    ids = images_of(target, target.training_split, options.limit)
    saliency = _saliency(stage, method, options, ids)
    lists = [list_ingredient("target-list", f"{target.name} {target.training_split}", ids)]
    settings = session.settings | {"data": target.name, "limit": options.limit}
    if options.weights is None:
        settings |= {"seed": options.seed, "data_list": lists[0].digest}
    key = key_of(stage, method, artifact_name(saliency) if saliency else "")
    folder = f"{stage}-{target.name}"
    if saliency is not None:
        used = ingredient(saliency)
        lists.append(used)
        settings["saliency"] = used.digest
        folder += f"-{artifact_name(saliency)}"
    data = CamData(target, ids, saliency)
    images = len(ids) if options.weights is None else None
    source = TrainedOn(dataset=target.name, images=images, supervision="image labels")
    train_and_write(
        session,
        Training(
            options.out / "runs" / folder,
            lambda scratch: method(session.recipe, scratch, target.num_classes),
            data,
            settings,
            None if options.weights else options.seed,
            lists,
        ),
        Artifact(
            key=key,
            title=f"Activation maps of {method.card.name} on {target.name}",
            method=method.card,
            trained_on=[source],
            settings=settings,
            options=options,
            image_ids=ids,
        ),
        Inference("cam", data.image, partial(_activations, data=data)),
        [],
    )


def _saliency(
    stage: str, method: type[CamMethod], options: Options, ids: Sequence[str]
) -> Maps | None:
    if not method.needs_saliency:
        if options.sal is not None:
            raise UsageError(f"{stage} is trained without saliency maps; leave --sal out.")
        return None
    if options.sal is None:
        raise UsageError(f"{stage} is trained with saliency maps. Name them with --sal: {WHERE}.")
    saliency = open_maps(options.sal, options.target, "sal")
    if options.weights is None:
        require_ids(ids, saliency, "saliency maps")
    return saliency


def _activations(trained: Trained, image: Image, *, data: CamData) -> Activations:
    maps = without_gradients(
        lambda image: trained.method.activations(trained.network, image, data), image
    )
    return Activations(maps, image.class_ids)
