"""Every option of every stage changes what is made, or is refused beside what makes it useless.

The options are found by walking each family's command; the table has words for each, which are
added to a run that is as small as can be. A new option fails ``test_the_table_is_complete``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from option_walk import options_of
from small_stages import BASES, HALF, enter, run_words

from stages.runtime.catalogue import all_stages
from stages.runtime.options import command
from wsssbed_hub.artifacts.key_folder import read_manifest


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
    "--precision": Words("--precision bf16"),
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
        "--predictions": Words("--predictions predicted"),
        "--predictions-of": Words("--predictions-of train", also="--predictions predicted"),
        "--server": Words("--server voc", also="--predictions predicted"),
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
        "--beta": Words("--beta 0.02", also="--rule edam --tau 0.01"),
        "--name": Words("--name mine"),
    },
}

REFUSED = {
    **{
        f"{BASES[family].replace('--init random', '').replace('--steps 2 --batch-size 4', '')} "
        f"--weights made/{family}.safetensors {words}": "leave"
        for family in ("sod", "cam", "seg", "ssnet")
        for words in (
            "--seed 0",
            "--steps 2",
            "--batch-size 2",
            "--precision float32",
            "--init random",
        )
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
    f"{BASES['seg']} --server voc": "leave --server out",
    f"{BASES['seg']} --predictions-of val": "leave --predictions-of out",
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
def run(made: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs stages in a folder of their own, one after the other; the last one's outcome, which is
    remembered."""
    known: dict[str, Outcome] = {}

    def whole(commands: str) -> Outcome:
        if commands not in known:
            folder = tmp_path_factory.mktemp("run")
            (folder / "made").symlink_to(made)
            with pytest.MonkeyPatch.context() as patched:
                enter(folder, patched)
                codes = [run_words(words, shapes) for words in commands.split(";")]
            known[commands] = Outcome(codes[-1], dict(_made(folder)), _traces(folder))
        return known[commands]

    return whole


def _made(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("predicted/**/*.png")):
        yield str(path.relative_to(folder)), path.read_bytes()
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
