"""Valid manifests as plain data, for tests to spoil."""

from __future__ import annotations

from typing import Any

import yaml

from wsssbed_hub.artifacts.manifest import Manifest, parse_manifest

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def entry(target: str = "voc12", version: str = "1.0.0", **other: Any) -> dict[str, Any]:
    files = [{"path": f"{target}/{version}/00000.parquet", "size": 10, "sha256": A}]
    return {"images": 3, "image_list": A, "content": A, "files": files} | other


def raw(**other: Any) -> dict[str, Any]:
    """A valid manifest as plain data."""
    return {
        "schema_version": 1,
        "key": "sal/vst-duts",
        "kind": "sal",
        "title": "Saliency maps of VST",
        "method": {"name": "VST", "paper": "https://arxiv.org/abs/2104.12099"},
        "trained_on": [{"dataset": "duts", "images": 10553, "supervision": "pixel masks"}],
        "versions": {"1.0.0": {"voc12": entry()}},
    } | other


def parse(data: Any) -> Manifest:
    return parse_manifest(yaml.safe_dump(data), "here/manifest.yaml")
