"""Predicted label maps as palette PNGs: of a split, or of any folder of images.

A folder of them is whole or not there: it is filled beside its place, as ``.NAME.partial``, where
the next run of the same command goes on, and a hidden record in it says what it was made from. With
a CRF there are two, ``raw`` and ``crf``; with several seeds those of each are in ``seed0`` and so
on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.runtime import distributed
from stages.runtime.artifacts import require_count
from stages.runtime.inference import through_network
from stages.runtime.measuring import CRF, RAW, Predicted, Seed
from stages.runtime.method import Image
from stages.runtime.progress import progress, say
from stages.runtime.session import Session
from stages.runtime.training import LOCK, Trained, differing, locked
from stages.runtime.weight_files import brief
from wsssbed_hub.artifacts.digests import file_digest, list_digest
from wsssbed_hub.artifacts.maps import check_image_id
from wsssbed_hub.artifacts.png_codec import check_png, encode_png
from wsssbed_hub.artifacts.png_layout import PngFolder
from wsssbed_hub.datasets import Target, open_target
from wsssbed_hub.datasets.image_files import read_rgb, some
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import disk_errors, empty_folder, sync_folder, write_whole

RECORD = ".predictions.json"
SERVERS = {"voc": Path("results/VOC2012/Segmentation/comp6_test_cls")}
"""Where an evaluation server looks for the label maps, in the zip that it is sent."""
_SMALL = 32  # pixels of a side: that is less than a network's stride
_PICTURES = (".jpg", ".jpeg", ".png")
_ONE_DATE = (1980, 1, 1, 0, 0, 0)  # the same label maps give the same zip


@dataclass(frozen=True)
class Pictures:
    """The images that labels are predicted for."""

    name: str
    """For people: ``voc12 val``, or the folder."""
    paths: Mapping[str, Path]
    """The file of each image id, in ascending order."""
    digest: str
    """Of the ids, and in a folder of the images too."""
    split: str | None = None
    """None for a folder."""

    def read(self, image_id: str) -> Image:
        return Image(image_id, read_rgb(self.paths[image_id]))


def names_folder(where: str) -> bool:
    """Whether ``--predictions-of`` means a folder rather than a split."""
    return "/" in where or where in (".", "..") or where.startswith("~")


def pictures_of_split(target: Target, split: str, limit: int | None) -> Pictures:
    """The images of a split, or of another list that the dataset has; no masks are needed.

    Raises UsageError for an unknown one, HubError if an image is missing.
    """
    ids = target.listed_ids(split)
    name = f"{target.name} {split}"
    require_count(name, len(ids), target.spec.counts.get(split), target.name)
    paths = {image_id: target.image_path(image_id) for image_id in ids[:limit]}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise HubError(
            f"{len(missing):,} of the {len(paths):,} images of {name} are missing: {some(missing)}."
        )
    return Pictures(name, paths, list_digest(paths), split)


def pictures_in(folder: Path, limit: int | None) -> Pictures:
    """The PNG and JPEG files in a folder, hidden ones left out; an image's id is its file's name
    without the ending. Raises HubError for none, for two of one id, and for what is no id."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise HubError(f"--predictions-of {folder}: there is no such folder.")
    found = [p for p in folder.iterdir() if p.suffix.lower() in _PICTURES and p.name[0] != "."]
    paths: dict[str, Path] = {}
    for path in sorted(found):
        try:
            check_image_id(path.stem)
        except HubError as error:
            raise HubError(f"{path}: {error} Rename the file.") from None
        if paths.setdefault(path.stem, path) != path:
            raise HubError(f"{folder} has {paths[path.stem].name} and {path.name}: one id, twice.")
    if not paths:
        raise HubError(f"{folder} holds no images (.jpg, .jpeg or .png).")
    chosen = {image_id: paths[image_id] for image_id in sorted(paths)[:limit]}
    lines = "".join(f"{image_id} {file_digest(path)}\n" for image_id, path in chosen.items())
    return Pictures(str(folder), chosen, "sha256:" + hashlib.sha256(lines.encode()).hexdigest())


@dataclass(frozen=True)
class Predictions:
    """The label maps of one network, to be written to ``folder``."""

    folder: Path
    pictures: Pictures
    settings: Mapping[str, Any]
    """All that they depend on, but for the weights that come of it."""
    refined: bool
    """Whether there are those of a CRF too."""
    server: str | None = None
    """A name in ``SERVERS``, whose layout and zip are made."""
    fresh: bool = False
    workers: int = 0

    def of_seed(self, seed: Seed, several: bool) -> Predictions:
        """Those of one of the seeds."""
        return replace(self, folder=self.folder / f"seed{seed}") if several else self

    @property
    def kinds(self) -> Sequence[str]:
        """The folders of label maps below ``folder``; one alone is ``folder`` itself, ``""``."""
        return (RAW, CRF) if self.refined else ("",)

    def maps_in(self, kind: str) -> Path:
        """The folder of the label maps of one kind."""
        return self._maps_below(self.folder, kind)

    def is_there(self) -> bool:
        """Whether an earlier command finished these. Raises HubError if the folder holds anything
        else, or is part of the predictions of another command."""
        return distributed.on_main(lambda: self._is_there(None))

    def write(self, trained: Trained, predict: Callable[[Trained, Image], Predicted]) -> None:
        """Predict and write, by all processes, what an earlier command did not.

        Raises HubError if the folder holds those of other weights.
        """
        weights = trained.made_from[-1].digest
        if distributed.on_main(lambda: self._is_there(weights)):
            say(f"predictions are finished, in {self.folder}: nothing to do.")
            return
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        with disk_errors(self.folder), locked(partial):
            distributed.on_main(lambda: self._begin(partial, weights))
            self._write_share(partial, trained, predict)
            distributed.barrier()
            distributed.on_main(lambda: self._finish(partial))
        say(
            f"predictions for {self.pictures.name}: {len(self.pictures.paths):,} label maps in "
            f"{' and '.join(str(self.maps_in(kind)) for kind in self.kinds)}"
        )

    def read(self, trained: Trained, image: Image) -> Predicted:
        """What ``predict`` gave of an image, from the files."""
        raw, *refined = (PngFolder(self.maps_in(kind), "label") for kind in self.kinds)
        label = np.asarray(raw.read(image.id))
        return label, (lambda: np.asarray(refined[0].read(image.id))) if refined else None

    def _maps_below(self, folder: Path, kind: str) -> Path:
        return folder / kind / (SERVERS[self.server] if self.server else "")

    def _is_there(self, weights: str | None) -> bool:
        advice = "Remove it, or choose another folder for --predictions."
        if (self.folder.parent / RECORD).exists():
            raise HubError(f"{self.folder.parent} holds other predictions. {advice}")
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            return False
        if not os.path.lexists(self.folder):
            return False
        there = _record(self.folder)
        if there is None:
            raise HubError(f"{self.folder} is there and no folder of predictions. {advice}")
        if self.fresh:
            return False
        wanted = self._settings(weights or there.get("weights"))
        if there != wanted:
            raise HubError(
                f"{self.folder} holds predictions of other settings:\n{differing(there, wanted)}\n"
                f"Discard them with --fresh, or choose another folder for --predictions."
            )
        return True

    def _settings(self, weights: str | None) -> dict[str, Any]:
        of = {"images": self.pictures.digest, "server": self.server, "weights": weights}
        found: dict[str, Any] = json.loads(json.dumps({**self.settings, **of}))
        return found

    def _begin(self, partial: Path, weights: str) -> None:
        settings = self._settings(weights)
        if self.fresh or _record(partial) != settings:
            for path in partial.iterdir():
                if path.name == LOCK:
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_whole(partial / RECORD, json.dumps(settings, indent=2).encode() + b"\n")
        for kind in self.kinds:
            self._maps_below(partial, kind).mkdir(parents=True, exist_ok=True)

    def _write_share(
        self, partial: Path, trained: Trained, predict: Callable[[Trained, Image], Predicted]
    ) -> None:
        ids = list(self.pictures.paths)[distributed.rank() :: distributed.size()]
        folders = [self._maps_below(partial, kind) for kind in self.kinds]
        todo = [one for one in ids if not all(_is_whole(f / f"{one}.png") for f in folders)]

        def work(image: Image) -> tuple[str, Predicted]:
            with torch.inference_mode(), _of_some_size(image):
                return image.id, predict(trained, image)

        def finish(made: tuple[str, Predicted]) -> None:
            image_id, (label, refine) = made
            labels = [label, *([refine()] if refine is not None else [])]
            for folder, one in zip(folders, labels, strict=True):
                data = encode_png(one, palette=True)
                write_whole(folder / f"{image_id}.png", data, sync=False)

        title, device = (
            f"predicting {self.pictures.name}",
            next(trained.network.parameters()).device,
        )
        made = through_network(
            todo, self.pictures.read, work, finish, device=device, workers=self.workers
        )
        with progress(title, len(ids), "image") as show, closing(made):
            for done, _ in enumerate(made, len(ids) - len(todo) + 1):
                show(done, "")

    def _finish(self, partial: Path) -> None:
        """The folder in its place, with all label maps and, for a server, their zips."""
        names = [f"{image_id}.png" for image_id in self.pictures.paths]
        for kind in self.kinds:
            folder = self._maps_below(partial, kind)
            there = {path.name for path in folder.iterdir()}
            missing = sorted({*names} - there)
            if missing:
                raise HubError(f"{folder / missing[0]}, which another process made, is gone.")
            if self.server:
                _zip(partial / kind, SERVERS[self.server], names)
        os.sync()  # many files: one call is far faster than one for each
        if self.folder.is_dir():
            empty_folder(self.folder)
        (partial / LOCK).unlink()
        os.rename(partial, self.folder)
        sync_folder(self.folder.parent)


def requested(
    session: Session,
    options: Any,
    crf: str | None,
    settings: Mapping[str, Any],
    target: Target | None,
) -> Predictions | None:
    """The predictions that the options of a command ask for, if any.

    ``crf`` names the one that refines them, ``settings`` are what the network depends on;
    ``target`` is opened here if it is needed and not given. Raises HubError if the images are not
    there.
    """
    if options.predictions is None:
        return None
    where = options.predictions_of
    if names_folder(where):
        pictures = pictures_in(Path(where), options.limit)
    else:
        target = target or open_target(options.target, options.data_root)
        try:
            pictures = pictures_of_split(target, where, options.limit)
        except UsageError as error:
            folder = (
                f" Of a folder, write it with a slash: ./{where}." if Path(where).is_dir() else ""
            )
            raise UsageError(f"{error}{folder}") from None
    return Predictions(
        Path(os.path.abspath(options.predictions.expanduser())),
        pictures,
        {**settings, "stage": session.stage, "crf": crf},
        refined=crf is not None,
        server=options.server,
        fresh=options.fresh,
        workers=session.workers,
    )


def require_server(name: str | None) -> None:
    """Raises UsageError for a server that is not known."""
    if name is not None and name not in SERVERS:
        raise UsageError(
            f"--server {name}: there is none of that name. Choose {', '.join(SERVERS)}."
        )


@contextmanager
def _of_some_size(image: Image) -> Iterator[None]:
    """Raises HubError that names a very small image for whatever a network says of it."""
    try:
        yield
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        height, width = image.rgb.shape[:2]
        if min(height, width) >= _SMALL:
            raise
        raise HubError(
            f"The image {image.id} is too small for this network, with {height} x {width} pixels "
            f"(height x width). Leave it out. ({brief(error)})"
        ) from None


def _zip(root: Path, inside: Path, names: Sequence[str]) -> None:
    """``results.zip`` beside the folder ``results`` in ``root``."""
    path = root / f"{inside.parts[0]}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            member = zipfile.ZipInfo(str(inside / name), _ONE_DATE)
            member.external_attr = 0o644 << 16
            archive.writestr(member, (root / inside / name).read_bytes())


def _is_whole(path: Path) -> bool:
    try:
        check_png(path.read_bytes(), path.name, inflate=True)
    except (OSError, HubError):
        return False
    return True


def _record(folder: Path) -> dict[str, Any] | None:
    """What a folder of predictions says of itself; None if it says nothing."""
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
