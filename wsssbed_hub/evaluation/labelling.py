"""Pseudo labels of a whole artifact: every image, resumable, with its settings on record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from wsssbed_hub.artifacts.digests import content_digest, image_digest, list_digest
from wsssbed_hub.artifacts.manifest import Ingredient, Threshold
from wsssbed_hub.artifacts.maps import Maps, check_image_id
from wsssbed_hub.artifacts.png_codec import check_png, decode_png, encode_png
from wsssbed_hub.artifacts.shard_writer import Written, require_same, write_maps
from wsssbed_hub.evaluation.curves import require_ids
from wsssbed_hub.evaluation.method_rules import (
    EDAM_BETA,
    check_rule,
    check_settings,
    salient_above,
    useless_settings,
)
from wsssbed_hub.evaluation.pseudo_label import pseudo_label
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.files import atomic_folder, disk_errors, write_whole
from wsssbed_hub.utils.progress import Progress

if TYPE_CHECKING:
    from wsssbed_hub.artifacts.manifest import Rule

SETTINGS = "settings.json"


class Labels(NamedTuple):
    """The result of ``label_artifact``: how many labels, their content digest, and (for Parquet)
    the shards that wait for ``key_folder.complete``."""

    images: int
    content: str
    written: Written | None


def ingredient(maps: Maps) -> Ingredient:
    """The entry for ``maps`` in a provenance: role (their kind), key or file name, content digest.

    The name is that of the file or folder alone: a path would tell of somebody's machine.

    The digest is the one that their manifest states; without a manifest all maps are decoded.
    """
    digest = maps.content or maps.digest()
    if maps.key is not None:
        return Ingredient(role=maps.kind, key=maps.key, digest=digest)
    return Ingredient(role=maps.kind, file=Path(maps.name).name, digest=digest)


def label_settings(
    ingredients: Sequence[Ingredient],
    image_ids: Iterable[str],
    *,
    tau: Threshold,
    rule: Rule = "paper",
    sal_threshold: float = 0.2,
    ignore: bool = True,
    beta: float = EDAM_BETA,
) -> dict[str, Any]:
    """All that labels depend on, as flat JSON; the record that lies beside them.

    ``ingredients`` are the activation maps (role ``cam``) and, if they take part, the saliency
    maps (``sal``). What has no effect is null: ``sal_threshold`` and ``ignore`` without saliency,
    or where the rule has its own; ``beta`` is there for the rule edam alone. Raises UsageError for
    other ingredients or settings.
    """
    check_settings(tau.tau, sal_threshold, rule)
    roles = sorted(item.role for item in ingredients)
    if roles not in (["cam"], ["cam", "sal"]):
        raise UsageError(f"Labels are made of cam, or of cam and sal, not of {roles}.")
    made_from: dict[str, Any] = {}
    for item in sorted(ingredients, key=lambda item: item.role):
        made_from[item.role] = item.key or item.file
        made_from[f"{item.role}_content"] = item.digest
    saliency = "sal" in made_from
    check_rule(rule, saliency=saliency, ignore=ignore, beta=beta)
    useless = {name for names, _ in useless_settings(rule, saliency=saliency) for name in names}
    ids = list(image_ids)
    return made_from | {
        "tau": tau.tau,
        "tau_origin": tau.origin,
        "tau_split": tau.split,
        "rule": rule,
        "sal_threshold": salient_above(rule, sal_threshold) if saliency else None,
        "ignore": None if "ignore" in useless else ignore,
        **({} if "beta" in useless else {"beta": beta}),
        "images": len(ids),
        "image_list": list_digest(ids),
    }


def label_artifact(
    cam: Maps,
    sal: Maps | None,
    out: Path,
    *,
    tau: Threshold,
    rule: Rule = "paper",
    sal_threshold: float = 0.2,
    ignore: bool = True,
    beta: float = EDAM_BETA,
    image_ids: Sequence[str] | None = None,
    ingredients: Sequence[Ingredient] | None = None,
    as_: Literal["png", "parquet"] = "png",
    progress: Progress | None = None,
) -> Labels:
    """Labels all images of ``image_ids`` (those of ``cam`` by default) with ``pseudo_label``.

    ``png``: ``out`` becomes a folder of palette PNGs in VOC colours, ``{image_id}.png``, and
    ``settings.json``, the settings (see ``label_settings``) and the content digest. It appears when
    it is complete; until then the labels lie in ``.<name>.partial`` beside it. ``parquet``: shards
    are made in ``out``, for ``key_folder.complete`` to turn into a version of a key; the settings
    become the recipe in its provenance.

    A run that was killed goes on with the labels that are missing. ``ingredients`` default to
    ``ingredient`` of the maps.

    Raises UsageError for the settings; HubError if ``out`` holds, or began to hold, labels with
    other settings or anything else, if images are missing in the maps, or if maps do not fit.
    """
    if as_ not in ("png", "parquet"):
        raise UsageError(f"Labels cannot be written as {as_!r}, only as 'png' or 'parquet'.")
    sources = _sources(cam, sal)
    ids = _ids(cam.image_ids if image_ids is None else image_ids)
    for maps, what in zip(sources, ("activation maps", "saliency maps"), strict=False):
        require_ids(ids, maps, what)
    if ingredients is None:
        ingredients = [ingredient(maps) for maps in sources]
    elif len(ingredients) != len(sources):
        raise UsageError(f"{len(ingredients)} ingredients for {len(sources)} artifacts.")
    how: dict[str, Any] = {
        "rule": rule,
        "sal_threshold": sal_threshold,
        "ignore": ignore,
        "beta": beta,
    }
    settings = label_settings(ingredients, ids, tau=tau, **how)
    produce = partial(_label, cam, sal, tau=tau.tau, **how)
    write = _write_pngs if as_ == "png" else _write_shards
    return write(Path(os.path.abspath(out)), ids, produce, settings, progress)


def _sources(cam: Maps, sal: Maps | None) -> list[Maps]:
    for maps, kind in ((cam, "cam"), (sal, "sal")):
        if maps is not None and maps.kind != kind:
            raise UsageError(f"{maps.name} holds maps of kind {maps.kind}; {kind} is needed here.")
    return [cam] if sal is None else [cam, sal]


def _label(cam: Maps, sal: Maps | None, image_id: str, **settings: Any) -> np.ndarray:
    activations, class_ids = cam.read(image_id)
    saliency = None if sal is None else np.asarray(sal.read(image_id))
    try:
        return pseudo_label(activations, class_ids, saliency, **settings)
    except HubError as error:
        raise HubError(f"{image_id}: {error}") from None


def _ids(image_ids: Sequence[str]) -> list[str]:
    ids = sorted(check_image_id(image_id) for image_id in image_ids)
    if not ids:
        raise HubError("The list of images is empty: there is nothing to label.")
    twice = [a for a, b in pairwise(ids) if a == b]
    if twice:
        raise HubError(f"The list of images names {twice[0]} twice.")
    return ids


MakeLabel = Callable[[str], np.ndarray]


def _write_shards(
    out: Path,
    ids: list[str],
    produce: MakeLabel,
    settings: dict[str, Any],
    progress: Progress | None,
) -> Labels:
    if (out / SETTINGS).exists():
        raise HubError(f"{out} holds labels as PNGs. Choose another folder for Parquet.")
    written = write_maps(out, "label", ids, produce, settings=settings, progress=progress)
    return Labels(len(ids), written.content, written)


def _write_pngs(
    out: Path,
    ids: list[str],
    produce: MakeLabel,
    settings: dict[str, Any],
    progress: Progress | None,
) -> Labels:
    with disk_errors(out.parent), atomic_folder(out, resume=True) as unfinished:
        if unfinished is None:
            return _compare_finished(out, ids, settings)
        _claim_folder(unfinished, settings)
        labels = _fill(unfinished, ids, produce, progress)
        record = {"settings": settings, "content": labels.content}
        write_whole(unfinished / SETTINGS, _json(record))
        os.sync()  # thousands of files: one call is far faster than one for each
    return labels


def _compare_finished(out: Path, ids: list[str], settings: dict[str, Any]) -> Labels:
    """The labels in ``out``. Raises HubError unless they are all of these, and nothing else."""
    if not (out / SETTINGS).is_file():
        raise HubError(
            f"{out} is there already, and nothing says how it was made. Choose another folder."
        )
    record = _read_record(out)
    require_same(record["settings"], settings, f"{out} holds labels", "Choose another folder.")
    there = {path.name for path in out.iterdir() if path.name[0] != "."} - {SETTINGS}
    wrong = sorted(there ^ {f"{image_id}.png" for image_id in ids})
    if wrong:
        what = "should not be there" if wrong[0] in there else "is missing"
        raise HubError(
            f"{out} was changed after it was complete: {len(wrong)} files are too many or too "
            f"few, {wrong[0]} {what}. Remove the folder and label again."
        )
    if not isinstance(record.get("content"), str):
        raise HubError(f"{out} holds labels that are not complete. Remove it and label again.")
    return Labels(len(ids), record["content"], None)


def _claim_folder(unfinished: Path, settings: dict[str, Any]) -> None:
    """Writes down what ``unfinished`` is for, or compares it with what is written there."""
    if not (unfinished / SETTINGS).exists():
        write_whole(unfinished / SETTINGS, _json({"settings": settings}))
    there = _read_record(unfinished)["settings"]
    advice = f"Remove {unfinished} to begin again, or choose another folder."
    require_same(there, settings, f"{unfinished} holds unfinished labels", advice)
    for path in unfinished.iterdir():
        if path.name.endswith(".tmp"):
            path.unlink()  # a killed run was writing it


def _fill(
    unfinished: Path, ids: list[str], produce: MakeLabel, progress: Progress | None
) -> Labels:
    digests = []
    for done, image_id in enumerate(ids, 1):
        path = unfinished / f"{image_id}.png"
        label = _whole(path)
        if label is None:
            label = produce(image_id)
            # A kill leaves no half label under this name; a power cut may, hence _whole.
            write_whole(path, encode_png(label, palette=True), sync=False)
        digests.append((image_id, image_digest(label)))
        if progress is not None:
            progress(done, len(ids))
    return Labels(len(ids), content_digest("label", digests), None)


def _whole(path: Path) -> np.ndarray | None:
    """The label at ``path``; None if there is none, or not all of it."""
    try:
        data = path.read_bytes()
        check_png(data, str(path))
        return decode_png(data, str(path))
    except (FileNotFoundError, HubError):
        return None


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        record = json.loads(path.read_bytes())
        if isinstance(record["settings"], dict):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise HubError(f"{path} is damaged: it does not say how the labels were made. Remove {folder}.")


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()
