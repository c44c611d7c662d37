"""Runs of every family of stages that are as small as can be, by toys that leave traces of what no
artifact shows."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from toy_methods import Recipe, ToyCam, ToyCamWithSaliency, ToySeg, ToySod

from stages.__main__ import run_stage
from stages.runtime.catalogue import Stage, all_stages
from stages.runtime.method import Phase
from stages.ssnet.ssnet import Method as SsnetMethod
from wsssbed_hub.datasets import open_sod_dataset

SEEN = "WSSSBED_TEST_SEEN"


# Toys that leave traces of what no artifact shows.


@dataclass(frozen=True)
class Epochs(Recipe):
    epochs: int = 0


class Tracing:
    """Samples that note which process loads them."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: np.random.Generator) -> Any:
        note("loaded", str(os.getpid()))
        return self.samples.sample(index, rng)


class Traced:
    """Notes who loads what, and at the last step whether there is a checkpoint."""

    recipe: Any

    def phases(self, network: Any, data: Any) -> Iterator[Phase]:
        for phase in super().phases(network, data):  # type: ignore[misc]
            sources = {
                name: replace(source, samples=Tracing(source.samples))
                for name, source in phase.sources.items()
            }
            yield replace(phase, sources=sources, loss=partial(_at_the_end, phase))


def _at_the_end(phase: Phase, batches: Any, step: int) -> Any:
    if step == phase.steps - 1:
        note("checkpoints", str(len([*Path().rglob("checkpoint.pt")])))
    return phase.loss(batches, step)


class ByEpochs(Traced):
    """A toy that goes by epochs if its recipe has no steps."""

    recipes: ClassVar = {
        "published": Epochs(initial="none", steps=5),
        "shapes": Epochs(initial="none", steps=3),
    }

    def phases(self, network: Any, data: Any) -> Iterator[Phase]:
        recipe = self.recipe
        if not recipe.steps:
            steps = recipe.epochs * -(-len(data.image_ids) // recipe.batch_size)
            self.recipe = replace(recipe, steps=steps)
        return super().phases(network, data)


class TracedSod(ByEpochs, ToySod):
    takes_maps: ClassVar = {"hand": False}


class TracedCam(ByEpochs, ToyCam):
    pass


class TracedCamWithSaliency(ByEpochs, ToyCamWithSaliency):
    pass


class TracedSeg(ByEpochs, ToySeg):
    pass


class TracedSsnet(Traced, SsnetMethod):
    pass


def note(name: str, text: str) -> None:
    with open(os.environ[SEEN] + name, "a") as file:
        file.write(f"{text}\n")


class ToyStage(Stage):
    """A stage with a method of this file."""

    def load(self) -> tuple[ModuleType, Any]:
        return super().load()[0], TOYS[self.name]


TOYS = {
    "sod-toy": TracedSod,
    "cam-toy": TracedCam,
    "cam-sal": TracedCamWithSaliency,
    "seg-toy": TracedSeg,
    "ssnet": TracedSsnet,
}


def stage(name: str) -> Stage:
    if name not in TOYS:
        return all_stages()[name]
    family = next(s for s in all_stages().values() if name.split("-")[0] == s.name.split("-")[0])
    return ToyStage(name, family.family, family.path, family.module)


# What is run, and with which words.

SMALL = "--target shapes --data-root DATA --out out"
TRAINED = f"{SMALL} --recipe shapes --device cpu --workers 0"
TOY = f"{TRAINED} --init random"
OF_M = "--setting M --data shapes-small --saliency-crf none"
SSNET = f"ssnet {OF_M} {TRAINED} --set size=32 --set crf=deeplab --steps 2 --batch-size 4"
SAL = "made/sal/toy-shapes-small"
HALF = "0.5019607843137255"  # 128 / 255: what equals it tells the rules apart
BASES = {
    "sod": f"sod-toy --data shapes-small {TOY}",
    "cam": f"cam-toy {TOY}",
    "seg": f"seg-toy --labels ground-truth {TOY}",
    "ssnet": SSNET,
    "pseudo": f"pseudo --cam made/cam/toy --sal {SAL} --tau {HALF} {SMALL}",
}


def make(folder: Path, shapes: Path) -> Path:
    """Maps, labels and weights of a seed that no test has, in ``folder/made``."""
    with pytest.MonkeyPatch.context() as patched:
        enter(folder, patched)
        for family in ("sod", "cam", "seg", "ssnet"):
            run_words(f"{BASES[family]} --seed 9", shapes)
            (weights,) = folder.glob("out/runs/**/weights.safetensors")
            (folder / "made").mkdir(exist_ok=True)
            weights.rename(folder / "made" / f"{family}.safetensors")
            for kind in folder.glob("out/[!r]*/*"):
                kind.rename(_below(folder / "made" / kind.relative_to(folder / "out")))
            shutil.rmtree(folder / "out")
        run_words(f"{BASES['cam']} --seed 8", shapes)
        (folder / "out/cam/toy").rename(folder / "made/cam/other")
        shutil.rmtree(folder / "out")
        run_words(f"{BASES['pseudo']} --name made", shapes)
        (folder / "out/label/made").rename(_below(folder / "made/label/made"))
    masks = open_sod_dataset("shapes-small", shapes)
    (folder / "made" / "hand").mkdir()
    for image_id in masks.image_ids:
        Image.fromarray(masks.read_mask(image_id)).save(folder / f"made/hand/{image_id}.png")
    trunk = {"weight": torch.zeros(4, 3, 3, 3), "bias": torch.zeros(4)}
    torch.save(trunk, folder / "made" / "trunk.pt")
    return folder / "made"


def _below(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def enter(folder: Path, patched: pytest.MonkeyPatch) -> None:
    """Makes ``folder`` the working folder, with a place for the traces."""
    (folder / "seen").mkdir()
    patched.chdir(folder)
    patched.setenv(SEEN, str(folder / "seen") + "/")


def run_words(words: str, shapes: Path) -> int:
    """Runs a stage as its command line does; DATA stands for the data root."""
    name, *arguments = words.replace("DATA", str(shapes)).split()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["stages", name, *arguments])
        return run_stage(stage(name), arguments)
