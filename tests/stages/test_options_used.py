"""Every option of every stage changes what is made, or is refused beside what makes it useless.

The options are found by walking each family's command; the table has words for each, which are
added to a run that is as small as can be. A new option fails ``test_the_table_is_complete``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from option_walk import options_of
from PIL import Image
from toy_methods import Recipe, ToyCam, ToyCamWithSaliency, ToySeg, ToySod

from stages import ssnet
from stages.__main__ import run_stage
from stages.runtime.catalogue import Stage, all_stages
from stages.runtime.method import Phase
from stages.runtime.options import command
from wsssbed_hub.artifacts.key_folder import read_manifest
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


class TracedSsnet(Traced, ssnet.Method):
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


class Words(NamedTuple):
    """What to add to the base, instead of what, and what comes before it in the same folder."""

    add: str
    drop: str = ""
    before: str | None = None
    also: str = ""
    """Added to the base and to what is compared with it."""


def instead(flag: str, old: str, new: str) -> Words:
    return Words(f"{flag} {new}", drop=f"{flag} {old}")


WHERE = {
    "--target": instead("--target", "shapes", "voc12"),
    "--data-root": instead("--data-root", "DATA", "nowhere"),
    "--out": instead("--out", "out", "elsewhere"),
    "--version": Words("--version 1.1.0"),
    "--limit": Words("--limit 3"),
}
TRAINING = {
    "--fresh": Words("--fresh", before="--set rate=0.7", also="--version 1.1.0"),
    "--seed": Words("--seed 1"),
    "--device": instead("--device", "cpu", "cuda:9"),
    "--amp": Words("--amp bf16"),
    "--batch-size": Words("--batch-size 2"),
    "--workers": instead("--workers", "0", "1"),
    "--steps": Words("--steps 2"),
    "--epochs": Words("--epochs 1"),
    "--weights": Words("--weights made/FAMILY.safetensors", drop="--init random"),
    "--init": Words("--init made/trunk.pt", drop="--init random"),
    "--deterministic": Words("--deterministic"),
    "--recipe": instead("--recipe", "shapes", "published"),
    "--set": Words("--set rate=0.5"),
    "--checkpoint-every": Words("--checkpoint-every 0"),
}
TABLE: dict[str, dict[str, Words]] = {
    "sod": WHERE
    | TRAINING
    | {
        "--data": instead("--data", "shapes-small", "shapes"),
        "--split": Words("--split val"),
        "--maps": Words("--maps hand=made/hand"),
    },
    "cam": WHERE | TRAINING | {"--sal": Words("--sal made/sal/toy-shapes-small")},
    "seg": WHERE
    | TRAINING
    | {
        "--labels": instead("--labels", "ground-truth", "made/label/made"),
        "--seeds": Words("--seeds 0,1"),
        "--crf": Words("--crf deeplab"),
    },
    "ssnet": WHERE
    | TRAINING
    | {
        "--batch-size": instead("--batch-size", "4", "2"),
        "--steps": instead("--steps", "2", "3"),
        "--epochs": Words("--epochs 1"),
        "--weights": Words("--weights made/FAMILY.safetensors", drop="--steps 2 --batch-size 4"),
        "--init": Words("--init made/nothing.pt"),
        "--recipe": Words("--recipe published --init made/nothing.pt", drop="--recipe shapes"),
        "--set": Words("--set rate=0.1"),
        "--data": instead("--data", "shapes-small", "shapes"),
        "--setting": Words(
            "--setting S", drop="--setting M --data shapes-small --saliency-crf none"
        ),
        "--seeds": Words("--seeds 0,1"),
        "--saliency-crf": instead("--saliency-crf", "none", "ssnet"),
    },
    "pseudo": WHERE
    | {
        "--fresh": Words("--fresh", before=""),
        "--cam": instead("--cam", "made/cam/toy", "made/cam/other"),
        "--sal": Words("", drop="--sal made/sal/toy-shapes-small"),
        "--tau": instead("--tau", HALF, "0.9"),
        "--tau-from": Words("--tau-from curve:train_aug", drop=f"--tau {HALF}"),
        "--rule": Words("--rule release"),
        "--sal-threshold": Words("--sal-threshold 0.9"),
        "--ignore": Words("--no-ignore"),
        "--name": Words("--name mine"),
    },
}

REFUSED = {
    **{
        f"{BASES[family].replace('--init random', '').replace('--steps 2 --batch-size 4', '')} "
        f"--weights made/{family}.safetensors {words}": "leave"
        for family in ("sod", "cam", "seg", "ssnet")
        for words in ("--seed 0", "--steps 2", "--batch-size 2", "--amp off", "--init random")
    },
    f"{BASES['sod']} --weights made/sod.safetensors": "With --weights nothing is trained; leave "
    "--init out",
    f"{BASES['sod']} --weights x --checkpoint-every 5": "--checkpoint-every",
    f"{BASES['sod']} --steps 2 --epochs 1": "choose one",
    f"{BASES['sod']} --set steps=2 --set epochs=1": "choose one",
    f"{BASES['sod']} --set steps=2 --steps 3": "choose one",
    f"{BASES['sod']} --set rate=1 --set rate=2": "choose one",
    f"{BASES['sod']} --maps hand=made/hand --maps hand=made/hand": "choose one",
    f"{BASES['cam']} --sal made/sal/toy-shapes-small": "leave --sal out",
    f"{BASES['seg']} --seed 1 --seeds 0,1": "leave --seed out",
    f"{BASES['seg']} --weights made/seg.safetensors --seeds 0,1": "leave",
    f"{BASES['seg']} --crf dss": "there are no such settings",
    f"{BASES['ssnet']} --seed 1 --seeds 0,1": "leave --seed out",
    f"{BASES['ssnet'].replace('--setting M', '--setting S')}": "leave --data out",
    f"{BASES['ssnet'].replace('--setting M', '--setting all')}": "leave --saliency-crf out",
    BASES["ssnet"].replace("--setting M", "--setting all").replace("--saliency-crf none", "")
    + " --version 1.1.0": "leave --version out",
    f"{BASES['pseudo']} --tau-from published": "leave --tau-from out",
    f"{BASES['pseudo'].replace('--sal made/sal/toy-shapes-small', '')} --no-ignore": "--ignore",
    f"{BASES['pseudo'].replace('--sal made/sal/toy-shapes-small', '')} --sal-threshold 0.2": (
        "leave --sal-threshold out"
    ),
}


# The tests.


class Outcome(NamedTuple):
    """What a run came to: exit code, what it made, and the traces that the toys left.

    Not what repeats the options themselves: the command and the settings in the provenance.
    """

    code: int
    made: dict[str, Any]
    traces: dict[str, Any]


Run = Callable[[str], Outcome]


@pytest.fixture(scope="session")
def made(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps, labels and weights of a seed that no test has."""
    folder = tmp_path_factory.mktemp("options")
    with pytest.MonkeyPatch.context() as patched:
        _enter(folder, patched)
        for family in ("sod", "cam", "seg", "ssnet"):
            _stage(f"{BASES[family]} --seed 9", shapes)
            (weights,) = folder.glob("out/runs/**/weights.safetensors")
            (folder / "made").mkdir(exist_ok=True)
            weights.rename(folder / "made" / f"{family}.safetensors")
            for kind in folder.glob("out/[!r]*/*"):
                kind.rename(_below(folder / "made" / kind.relative_to(folder / "out")))
            shutil.rmtree(folder / "out")
        _stage(f"{BASES['cam']} --seed 8", shapes)
        (folder / "out/cam/toy").rename(folder / "made/cam/other")
        shutil.rmtree(folder / "out")
        _stage(f"{BASES['pseudo']} --name made", shapes)
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


def _enter(folder: Path, patched: pytest.MonkeyPatch) -> None:
    (folder / "seen").mkdir()
    patched.chdir(folder)
    patched.setenv(SEEN, str(folder / "seen") + "/")


def _stage(words: str, shapes: Path) -> int:
    name, *arguments = words.replace("DATA", str(shapes)).split()
    return run_stage(stage(name), arguments)


@pytest.fixture(scope="session")
def run(made: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs stages in a folder of their own, one after the other; the last one's outcome, which is
    remembered."""
    known: dict[str, Outcome] = {}

    def whole(commands: str) -> Outcome:
        if commands not in known:
            folder = tmp_path_factory.mktemp("run")
            (folder / "made").symlink_to(made)
            with pytest.MonkeyPatch.context() as patched:
                _enter(folder, patched)
                codes = [_stage(words, shapes) for words in commands.split(";")]
            known[commands] = Outcome(codes[-1], dict(_made(folder)), _traces(folder))
        return known[commands]

    return whole


def _made(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*/*/*/manifest.yaml")):
        if path.parts[-4] == "made":
            continue
        for version, target, entry in read_manifest(path.parent).entries():
            provenance = entry.provenance
            assert provenance is not None
            environment = provenance.environment
            yield (
                f"{path.parent.relative_to(folder)}@{version} over {target}",
                {
                    "content": entry.content,
                    "made from": sorted(item.digest for item in provenance.made_from),
                    "results": [(one.metric, one.value, one.crf) for one in entry.results],
                    "environment": (environment.precision, environment.deterministic),
                },
            )


def _traces(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        path.name: sorted({*path.read_text().split()}) for path in (folder / "seen").iterdir()
    }
    if "loaded" in found:
        found["loaded"] = found["loaded"] == [str(os.getpid())]  # by this very process
    return found


PAIRS = [(family, flag) for family, own in TABLE.items() for flag in own]


def test_the_table_is_complete() -> None:
    families = {s.family: s.load()[0].Options for s in all_stages().values()}
    there = {
        (family.removeprefix("stages."), flag)
        for family, options in families.items()
        for _, flag in options_of(command(options, lambda _: 0, name="x", title="X"))
    }
    assert set(PAIRS) == there


@pytest.mark.parametrize(("family", "flag"), PAIRS)
def test_the_option_changes_something(run: Run, family: str, flag: str) -> None:
    words = TABLE[family][flag]
    base = BASES[family]
    if (family, flag) == ("cam", "--sal"):  # the other method is trained without
        base = base.replace("cam-toy", "cam-sal")
    assert words.drop in base
    before = "" if words.before is None else f"{base} {words.before};"
    without = run(f"{before}{base} {words.also}")
    given = run(
        f"{before}{base.replace(words.drop, '')} {words.add.replace('FAMILY', family)} {words.also}"
    )
    assert given != without


@pytest.mark.parametrize("family", BASES)
def test_the_same_words_come_to_the_same(run: Run, family: str) -> None:
    """And well, so that what differs differs by the option."""
    first, second = run(BASES[family]), run(f"{BASES[family]} ")
    assert first == second
    assert first.code == 0
    assert first.made


@pytest.mark.parametrize("words", REFUSED)
def test_what_would_be_of_no_use_is_refused(
    run: Run, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    outcome = run(words)
    assert (outcome.code, outcome.made) == (2, {})
    assert REFUSED[words] in capsys.readouterr().err
