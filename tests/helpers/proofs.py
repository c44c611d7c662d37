"""Manifests in an index whose maps lie as zips on a server, over shapes that were drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tinyvoc
from rangeserver import RangeServer
from samples import png

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.datasets import Target


def release_files(kind: str, maps: Mapping[str, Any]) -> dict[str, bytes]:
    """PNGs by file name; ``maps`` are arrays, or arrays by class of activation maps."""
    if kind == "cam":
        return {
            f"{image_id}_{c}.png": png(pixels)
            for image_id, of in maps.items()
            for c, pixels in of.items()
        }
    mode = "P" if kind == "label" else None
    return {f"{image_id}.png": png(pixels, mode) for image_id, pixels in maps.items()}


def index_manifest(
    root: Path,
    server: RangeServer,
    key: str,
    files: Mapping[str, bytes],
    *,
    target: str = "shapes",
    results: list[dict[str, Any]] | None = None,
    **entry: Any,
) -> Path:
    """Puts the zip on the server and its manifest below ``root``; the path of that."""
    kind = key.partition("/")[0]
    data = tinyvoc.zipped(files)
    where = f"/{key.replace('/', '-')}.zip"
    server.files[where] = data
    sha256 = "sha256:" + hashlib.sha256(data).hexdigest()
    source = {"url": server.url(where), "sha256": sha256, "size": len(data)}
    manifest = {
        "key": key,
        "kind": kind,
        "title": "For a test",
        "method": {"name": "Test"},
        "trained_on": [{"dataset": "shapes", "supervision": "image labels"}],
        "licence": "CC0-1.0",
        "versions": {"1.0.0": {target: {"source": source, "results": results or []} | entry}},
    }
    path = root / f"{key}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))  # which is YAML
    return path


def stated(target: Target, split: str, metric: str, value: float, **other: Any) -> dict[str, Any]:
    """A result over all images of a split."""
    ids = target.image_ids(split)
    basis = {"images": len(ids), "image_list": list_digest(ids), "split": split}
    return {"metric": metric, "value": value} | basis | other


def slow_iou(labels: Mapping[str, np.ndarray], target: Target, split: str) -> list[float]:
    """IoU of each class, background first, counted pixel set by pixel set; 255 is a miss."""
    truth = target.ground_truth(split)
    found = []
    for value in range(target.num_classes + 1):
        hit = union = 0
        for image_id in target.image_ids(split):
            true = np.asarray(truth.read(image_id))
            counted = true != 255
            there = (true == value) & counted
            said = (labels[image_id] == value) & counted
            hit += int((there & said).sum())
            union += int((there | said).sum())
        found.append(hit / union if union else float("nan"))
    return found
