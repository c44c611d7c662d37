"""Writes the artifacts of a stage: maps over a target, by all processes, as a key folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.runtime import distributed
from stages.runtime.inference import through_network
from stages.runtime.method import Image
from stages.runtime.options import OutputOptions
from stages.runtime.progress import progress, say
from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.key_folder import complete, finished
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Ingredient, MethodCitation, Provenance, Result, TrainedOn
from wsssbed_hub.artifacts.shard_writer import PART, Pipe, Written, read_record
from wsssbed_hub.datasets import Target
from wsssbed_hub.registry.open_artifact import (
    Activations,
    Maps,
    ParquetMaps,
    open_artifact,
    write_maps,
    write_parts,
)
from wsssbed_hub.utils.errors import HubError, UsageError

_ENCODERS = 2  # threads beside a GPU that turn maps between phases into PNGs


@dataclass(frozen=True)
class Artifact:
    """One version of one key over one target, below ``--out``."""

    key: str
    title: str
    method: MethodCitation
    trained_on: Sequence[TrainedOn]
    settings: Mapping[str, Any]
    """All that it depends on; they are the recipe in its provenance."""
    options: OutputOptions
    image_ids: Sequence[str] | None = None
    """None for weights."""

    @property
    def folder(self) -> Path:
        return self.options.out / self.key

    def is_there(self) -> bool:
        """Whether an earlier command finished this very artifact.

        Raises HubError if it is there with other settings or other images, and with ``--fresh``:
        a version never changes.
        """
        return distributed.on_main(self._is_there)

    def discard_unfinished(self) -> None:
        """Remove maps of an earlier command that did not come to its end."""
        distributed.on_main(lambda: shutil.rmtree(self.folder / ".partial", ignore_errors=True))

    def complete(
        self, written: Written, provenance: Provenance, results: Sequence[Result] = ()
    ) -> None:
        """Turn what was written into a version of the key: files in place, then the manifest."""
        complete(
            self.folder,
            written,
            key=self.key,
            target=self.options.target,
            version=self.options.version,
            title=self.title,
            method=self.method,
            trained_on=self.trained_on,
            provenance=provenance,
            results=results,
        )

    def _is_there(self) -> bool:
        entry = finished(
            self.folder,
            target=self.options.target,
            version=self.options.version,
            settings=self.settings,
            image_ids=self.image_ids,
        )
        name = f"{self.key}@{self.options.version} over {self.options.target}"
        if entry is not None and self.options.fresh:
            raise HubError(
                f"{name} is in {self.folder}, and a version never changes. Give another --version "
                "or --out, or remove it."
            )
        if entry is not None:
            say(f"{name} is finished, in {self.folder}: nothing to do.")
        return entry is not None


def write_artifact(
    artifact: Artifact,
    kind: str,
    produce: Callable[[Any], np.ndarray | Activations],
    provenance: Callable[[], Provenance],
    *,
    read: Callable[[str], Any] | None = None,
    device: torch.device,
    workers: int,
) -> None:
    """Write the maps that ``produce`` gives of each image, by all processes, and the manifest.

    It gets the image's id, or what ``read`` makes of it, as ``through_network`` has it. Images that
    an earlier command finished are not produced again.
    """
    ids = list(artifact.image_ids or ())
    settings = artifact.settings
    pipe = partial(through_network, device=device, workers=workers)
    _write_shares(artifact.folder, kind, ids, produce, settings, artifact.key, pipe, read=read)

    def finish() -> None:
        written = write_maps(artifact.folder, kind, ids, _made_already, settings=settings)
        artifact.complete(written, provenance())

    distributed.on_main(finish)
    say(f"{artifact.key}@{artifact.options.version}: {len(ids):,} images in {artifact.folder}")


def write_scratch_maps(
    folder: Path,
    kind: str,
    image_ids: Sequence[str],
    network: nn.Module,
    produce: Callable[[str], np.ndarray | Activations],
) -> None:
    """Make maps of these images by all processes, for use in the phase that begins.

    For ``Phase.prepare``: ``network`` is in eval mode meanwhile, without gradients. ``folder`` is
    below the method's ``scratch``, another one for each set of maps; images that an interrupted
    call finished there are not produced again.
    """
    training = network.training
    network.eval()

    def one(image_id: str) -> np.ndarray | Activations:
        with torch.inference_mode():
            return produce(image_id)

    device = next(network.parameters()).device
    pipe = partial(through_network, device=device, workers=_ENCODERS)
    _write_shares(folder, kind, image_ids, one, {}, folder.name, pipe)
    distributed.on_main(lambda: write_maps(folder, kind, image_ids, _made_already, settings={}))
    network.train(training)


def open_scratch_maps(folder: Path, kind: str) -> Maps:
    """The maps that ``write_scratch_maps`` made. For ``Phase.sources``: a phase that is resumed is
    not prepared again. Every process must see the same files."""
    written = read_record(folder)
    files = [written.folder / file.name for file in written.files]
    return ParquetMaps(files, kind, name=folder.name)


def _write_shares(
    folder: Path,
    kind: str,
    ids: Sequence[str],
    produce: Callable[[Any], np.ndarray | Activations],
    settings: Mapping[str, Any],
    name: str,
    pipe: Pipe,
    *,
    read: Callable[[str], Any] | None = None,
) -> None:
    """Every process writes its share; when this returns, all of it is there."""
    rank, processes = distributed.rank(), distributed.size()
    share = sum(place // PART % processes == rank for place in range(len(ids)))
    title = f"writing {name}" + (f", 1 of {processes} processes" if processes > 1 else "")
    with progress(title, share, "image") as show:
        write_parts(
            folder,
            kind,
            ids,
            produce,
            settings=settings,
            part=(rank, processes),
            progress=lambda done, _: show(done, ""),
            read=read,
            pipe=pipe,
        )
    distributed.barrier()


def _made_already(image_id: str) -> np.ndarray:
    raise HubError(f"The map of {image_id}, which another process made, is not there any more.")


def without_gradients(make: Callable[[Image], np.ndarray], image: Image) -> np.ndarray:
    """The maps that ``make`` gives for one image, the same whatever was made before or beside it.

    Raises HubError if they have not the size of the image, TypeError for a method that draws from
    torch's common generator: images share it (``ops.determinism.generator`` makes one for each).
    """
    drawn = torch.get_rng_state()
    with torch.inference_mode():
        maps = make(image)
    if not torch.equal(drawn, torch.get_rng_state()):
        raise TypeError(f"the maps of image {image.id} were made with common random numbers")
    if maps.shape[-2:] != image.rgb.shape[:2]:
        raise HubError(
            f"The method made maps of {maps.shape[-2:]} (height, width) of image {image.id}, "
            f"which is {image.rgb.shape[:2]}."
        )
    return maps


def images_of(target: Target, split: str, limit: int | None) -> list[str]:
    """The images of a split, or the first ``limit`` of them.

    Raises HubError if the split has not the published number of images, or if the file of any
    image is missing.
    """
    ids = target.image_ids(split)
    require_count(f"{target.name} {split}", len(ids), target.spec.counts.get(split), target.name)
    ids = ids[:limit]
    missing = [image_id for image_id in ids if not target.image_path(image_id).is_file()]
    if missing:
        raise HubError(
            f"{len(missing):,} of the {len(ids):,} images of {target.name} {split} are missing, "
            f"{target.image_path(missing[0])} for example. {_check(target.name)}"
        )
    return ids


def require_count(what: str, found: int, published: int | None, dataset: str) -> None:
    """Raises HubError unless there are as many images as were published (None: not known)."""
    if published is not None and found != published:
        raise HubError(
            f"{what} has {published:,} images, and here are {found:,}. {_check(dataset)}"
        )


def _check(dataset: str) -> str:
    return f"`wsssbed-hub data check {dataset}` says what is missing and where to get it."


def list_ingredient(role: str, name: str, ids: Sequence[str]) -> Ingredient:
    """A list of images, as provenance names it."""
    return Ingredient(role=role, file=f"{name}, {len(ids):,} images", digest=list_digest(ids))


def open_maps(where: str, target: str | None, kind: str) -> Maps:
    """The maps that an option names. Raises UsageError if they are of another kind."""
    maps = open_artifact(where, target, kind=kind)
    if maps.kind != kind:
        raise UsageError(f"{where} holds maps of kind {maps.kind}, and {kind} is needed here.")
    return maps


def artifact_name(maps: Maps) -> str:
    """The name of ``maps`` in keys of what is made from them: ``vst-duts`` for ``sal/vst-duts``."""
    if maps.key is not None:
        return Key.parse(maps.key).name
    name = re.sub(r"[^a-z0-9]+", "-", Path(maps.name).stem.lower()).strip("-")
    if not name:
        raise UsageError(f"{maps.name}: rename it to something with letters or digits.")
    return name
