"""A folder in which every command of ``wsssbed-hub`` finds something to work on: a small target,
maps, key folders, two registries, manifests, and programs in place of docker and nvidia-smi."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from samples import key_folder, maps_of, png

from wsssbed_hub.artifacts.digests import file_digest, list_digest
from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.manifest import (
    Environment,
    Ingredient,
    MethodCitation,
    Provenance,
    Result,
)
from wsssbed_hub.artifacts.shard_writer import write_maps
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.datasets import make_shapes, open_target
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.review.import_maps import Card, Import, parse_trained_on

IMAGE = "sha256:" + "ab" * 32
ENGINE = f"""#!{sys.executable}
import json, os, pathlib, shutil, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open("engine.log", "a") as log:
    print(name, *arguments, file=log)
if arguments[:2] == ["image", "inspect"]:
    print(json.dumps([{{"Id": {IMAGE!r}, "RepoDigests": []}}]))
elif arguments[0] == "run":
    mount = next(word for word in arguments if word.endswith("target=/artifacts"))
    out = mount.split("source=")[1].split(",")[0]
    shutil.copytree("again", out + "/sal/again")
"""
GPUS = "#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: two'\n"


def build(root: Path) -> Path:
    """Everything, below ``root``."""
    make_shapes(root / "data", train=6, val=2, sod=2, sod_test=2, small=1)
    _maps(root)
    _registries(root)
    _again(root)
    _zipped(root)
    _imported(root)
    programs = {"docker": ENGINE, "podman": ENGINE, "nvidia-smi": GPUS}
    (root / "bin").mkdir()
    for name, text in programs.items():
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    return root


def _maps(root: Path) -> None:
    """Folders of PNGs in the layout of the release, made from the truth: what is in an object of a
    class has saliency 128 and activation 128."""
    target = open_target("shapes", root / "data")
    truth = target.ground_truth("train_aug")
    folders = ("sal", "sal2", "few", "cam", "cam2", "labels", "segmented")
    for name in folders:
        (root / "maps" / name).mkdir(parents=True)

    def write(folder: str, name: str, pixels: np.ndarray, mode: str | None = None) -> None:
        (root / "maps" / folder / f"{name}.png").write_bytes(png(pixels, mode))

    for image_id, label in truth:
        inside = (np.asarray(label) > 0).astype(np.uint8)
        write("sal", image_id, inside * 128)
        if not any((root / "maps" / "few").iterdir()):
            write("few", image_id, inside * 128)
        write("sal2", image_id, 255 - inside * 100)
        write("labels", image_id, np.asarray(label), "P")
        write("segmented", image_id, np.where(label == 255, 0, label), "P")
        for class_id in target.image_labels(image_id):
            grey = np.where(label == class_id + 1, 128, 20).astype(np.uint8)
            write("cam", f"{image_id}_{class_id}", grey)
            write("cam2", f"{image_id}_{class_id}", grey // 2)


def _registries(root: Path) -> None:
    """``registry`` with a key of each kind and one over two targets, ``registry2`` with another
    version of that one."""
    one, two = FolderRegistry(root / "registry"), FolderRegistry(root / "registry2")
    for target in ("shapes", "voc12"):
        key_folder(root / "made" / "both", name="both", target=target)
    key_folder(root / "made" / "other", name="both", version="2.0.0", maps=maps_of("sal", ["x"]))
    for kind in ("cam", "label"):
        key_folder(root / "made" / kind, kind, name="test")
    _weights(root / "made" / "weights", root / "data")
    _over_shapes(root)
    for name in ("both", "cam", "label", "weights", "exact/sal", "exact/cam", "exact/label"):
        one.publish(root / "made" / name)
    two.publish(root / "made" / "other")
    manifests = root / "manifests" / "sal"
    manifests.mkdir(parents=True)
    shutil.copy(root / "made" / "both" / "manifest.yaml", manifests / "both.yaml")
    base = root / "base" / "sal" / "both.yaml"
    base.parent.mkdir(parents=True)
    base.write_text((manifests / "both.yaml").read_text().replace("images: 3", "images: 4"))


def _over_shapes(root: Path) -> None:
    """The maps of ``maps/``, as key folders that are in one registry only."""
    for kind, folder in (("sal", "sal"), ("cam", "cam"), ("label", "segmented")):
        maps = dict(open_artifact(root / "maps" / folder, kind=kind))
        key_folder(root / "made" / "exact" / kind, kind, maps=maps, name="exact")


def _weights(folder: Path, data_root: Path) -> None:
    ids = open_target("shapes", data_root).image_ids("val")
    result = Result(metric="mIoU", value=0.5, images=2, image_list=list_digest(ids), split="val")
    complete(
        folder,
        write_weights(folder, {"w": np.zeros(3, np.float32)}, {}, settings={}),
        key="weights/test",
        target="shapes",
        version="1.0.0",
        title="A network for a test",
        method=MethodCitation(name="Net"),
        provenance=_provenance(),
        results=[result],
    )


def _provenance(**other: Any) -> Provenance:
    fields: dict[str, Any] = {
        "stage": "sod-test",
        "command": ["python", "-m", "stages", "sod-test", "--init", "/inputs/1/net.pth"],
        "project_version": "0.1.0",
        "image": "wsssbed/sod-test:0.1.0",
        "image_digest": IMAGE,
        "date": "2026-01-02T00:00:00Z",
        "environment": Environment(python="3.11", torch="2.14.1"),
    }
    return Provenance(**(fields | other))


def _again(root: Path) -> None:
    """``sal/again``, whose provenance names a file, and what running that again gives: a few pixels
    of three images are others."""
    (root / "inputs").mkdir()
    (root / "inputs" / "net.pth").write_bytes(b"weights")
    digest = file_digest(root / "inputs" / "net.pth")
    used = Ingredient(role="initial-weights", file="net.pth", digest=digest)
    before = maps_of("sal")
    after = {image_id: map_ ^ 0x80 for image_id, map_ in before.items()}
    for target in ("shapes", "voc12"):
        for folder, maps in (("again", after), ("made/again", before)):
            complete(
                root / folder,
                write_maps(root / folder, "sal", list(maps), maps.__getitem__, settings={}),
                key="sal/again",
                target=target,
                version="1.0.0",
                title="Maps for a test",
                method=MethodCitation(name="Test"),
                provenance=_provenance(made_from=[used]),
            )
    FolderRegistry(root / "registry").publish(root / "made" / "again")


def _zipped(root: Path) -> None:
    """Saliency maps as a release has them, for a server that the tests start."""
    shutil.make_archive(str(root / "release"), "zip", root / "maps" / "sal")


def _imported(root: Path) -> None:
    """A key folder that is ready for the index."""
    card = Card(
        MethodCitation(name="Mine"), parse_trained_on(["duts:pixel masks"]), (), "MIT", None
    )
    incoming = Import(root / "maps" / "sal", "sal/mine-duts", "shapes", root / "data")
    incoming.problems()
    incoming.write(root / "imported", card)
