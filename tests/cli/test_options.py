"""Every option of every command changes something, or is refused beside what makes it useless.

The walk finds the options; the table has, for each, two invocations whose outcomes have to differ.
A new option fails ``test_the_table_is_complete`` until it has its line here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import option_world
import pytest
from option_walk import Seen, options_of, see
from rangeserver import RangeServer
from samples import Hub, flip

from wsssbed_hub.cli import demo
from wsssbed_hub.cli.app import app


@dataclass(frozen=True)
class Pair:
    """Two invocations. Words are separated by spaces, ``+`` stands for one in a word."""

    without: str
    given: str
    before: tuple[str, ...] = ()
    """Invocations that come first, each time."""
    see: str = "result"
    """What has to differ, see ``Seen.part``: more than an echo of the option."""
    prepare: str = ""
    """Name of a function of this module that gets the folder."""


def plus(base: str, **more: str | Pair) -> dict[str, Pair]:
    """``base`` without and with each option: ``sal_threshold="0.5"`` is ``--sal-threshold 0.5``."""
    found = {}
    for name, words in more.items():
        flag = "--" + name.strip("_").replace("_", "-")
        found[flag] = words if isinstance(words, Pair) else Pair(base, f"{base} {flag} {words}")
    return found


def instead(base: str, flag: str, value: str, **how: str) -> Pair:
    """``base``, and ``base`` with another value behind ``flag``."""
    words = base.split()
    words[words.index(flag) + 1] = value
    return Pair(base, " ".join(words), **how)  # type: ignore[arg-type]


FILTERS = {"kind": "cam", "target": "voc12", "sod": "vst", "method": "net"}
FILTERS |= {"supervision": "image+labels", "registry": "registry2", "json": ""}
OVER = "--target shapes --split train_aug --data-root data"
LABEL = "label --cam maps/cam --sal maps/sal --target shapes --to out --tau 0.3 --data-root data"
BY_CURVE = LABEL.replace("--tau 0.3", "--tau-from curve:train_aug")
CURVE = f"curve --cam maps/cam --sal maps/sal {OVER} --json"
REPORT = f"report --cam maps/cam --sal maps/sal {OVER} --to out.html"
IMPORT = "import maps/sal sal/mine --target shapes --method Mine --data-root data --to out"
AGAIN = "reproduce sal/again --target shapes --data-root data --inputs inputs"
RUN = "run --print sod-test --data-root data"
EXACT = "--cam cam/exact --sal sal/exact"
HALF = "0.5019607843137255"  # 128 / 255: what equals it tells the rules apart
PNGS = "out/*.png"

TABLE: dict[str, dict[str, Pair]] = {
    "": {"--version": Pair("", "--version")},
    "list": plus("list", **FILTERS),
    "search": plus("search test", **FILTERS),
    "show": plus("show sal/both", target="voc12", registry="registry2", json=""),
    "pull": plus(
        "pull sal/both --target shapes",
        target=Pair("pull sal/both", "pull sal/both --target voc12"),
        as_=Pair("pull label/test --to out", "pull label/test --to out --as png"),
        to="out",
        jobs=Pair("pull weights/test", "pull weights/test --jobs 1", prepare="count_threads"),
        data_root=Pair(
            "pull sal/zip", "pull sal/zip --data-root data", see="lock", prepare="serve"
        ),
        registry="registry2",
    ),
    "push": plus(
        "push made/label",
        version="1.1.0",
        to="registry2",
        pr=Pair("push made/label --to hf:alice", "push made/label --to hf:alice --pr"),
    ),
    "verify": plus(
        "verify sal/both --target shapes",
        target=Pair("verify sal/both --target shapes", "verify sal/both --target voc12"),
        registry="registry2",
    ),
    "label": plus(
        LABEL,
        cam=instead(LABEL, "--cam", "maps/cam2", see=PNGS),
        sal=instead(LABEL, "--sal", "maps/sal2", see=PNGS),
        to=instead(LABEL, "--to", "elsewhere"),
        target=instead(BY_CURVE, "--target", "voc12"),
        tau=instead(LABEL, "--tau", "0.9", see=PNGS),
        tau_from=Pair(LABEL.replace("--tau 0.3", ""), BY_CURVE),
        rule=Pair(
            LABEL.replace("0.3", HALF), LABEL.replace("0.3", HALF) + " --rule release", see=PNGS
        ),
        sal_threshold=Pair(LABEL, LABEL + " --sal-threshold 0.9", see=PNGS),
        ignore=Pair(
            LABEL.replace("0.3", "0.9"), LABEL.replace("0.3", "0.9") + " --no-ignore", see=PNGS
        ),
        beta=Pair(
            LABEL.replace("0.3", "0.05") + " --rule edam",
            LABEL.replace("0.3", "0.05") + " --rule edam --beta 0.06",
            see=PNGS,
        ),
        data_root=instead(BY_CURVE, "--data-root", "nowhere"),
        registry=Pair(
            f"label {EXACT} --target shapes --to out --tau 0.3",
            f"label {EXACT} --target shapes --to out --tau 0.3 --registry registry2",
        ),
        json="",
    ),
    "curve": plus(
        CURVE,
        cam=instead(CURVE, "--cam", "maps/cam2"),
        sal=Pair(CURVE, f"{CURVE} --sal maps/sal2"),
        target=instead(CURVE, "--target", "voc12"),
        split=instead(CURVE, "--split", "train"),
        rule="release",
        sal_threshold="0.9",
        beta=Pair(f"{CURVE} --rule edam", f"{CURVE} --rule edam --beta 0.05"),
        plot="plot.png",
        data_root=instead(CURVE, "--data-root", "nowhere"),
        registry=Pair(f"curve {EXACT} {OVER}", f"curve {EXACT} {OVER} --registry registry2"),
        json=Pair(CURVE.removesuffix(" --json"), CURVE),
    ),
    **{
        f"eval {command}": plus(
            f"eval {command} maps/{maps} {OVER}",
            target=instead(f"eval {command} maps/{maps} {OVER}", "--target", "voc12"),
            split=instead(f"eval {command} maps/{maps} {OVER}", "--split", "train"),
            data_root=instead(f"eval {command} maps/{maps} {OVER}", "--data-root", "nowhere"),
            registry=Pair(
                f"eval {command} {key} {OVER}", f"eval {command} {key} {OVER} --registry registry2"
            ),
            json="",
            **more,
        )
        for command, maps, key, more in (
            ("segmentation", "segmented", "label/exact", {}),
            ("labels", "labels", "label/exact", {}),
            (
                "saliency",
                "sal2",
                "sal/exact",
                {
                    "protocol": "ssnet",
                    "masks": Pair(
                        "eval saliency maps/sal2 --data-root data",
                        "eval saliency maps/sal2 --data-root data --masks shapes-test",
                    ),
                },
            ),
        )
    },
    "report": plus(
        REPORT,
        cam=instead(REPORT, "--cam", "maps/cam2"),
        sal=Pair(REPORT, f"{REPORT} --sal maps/sal2"),
        labels="maps/labels",
        segmentation="weights/test",
        target=instead(REPORT, "--target", "voc12"),
        split=instead(REPORT, "--split", "train"),
        images="1",
        rule=Pair(f"{REPORT} --json", f"{REPORT} --json --rule release"),
        sal_threshold="0.9",
        beta=Pair(f"{REPORT} --json --rule edam", f"{REPORT} --json --rule edam --beta 0.05"),
        data_root=instead(REPORT, "--data-root", "nowhere"),
        registry=Pair(
            f"report {EXACT} {OVER} --to out.html",
            f"report {EXACT} {OVER} --to out.html --registry registry2",
        ),
        to=instead(REPORT, "--to", "elsewhere.html"),
        json="",
    ),
    "import": plus(
        IMPORT,
        target=instead(IMPORT, "--target", "voc12"),
        method=instead(IMPORT, "--method", "Other"),
        paper="https://example.org/paper",
        code="https://example.org/code",
        method_licence="MIT",
        licence="MIT",
        trained_on="duts:pixel+masks",
        trained_with="cam/test",
        title="Mine",
        to=instead(IMPORT, "--to", "elsewhere"),
        data_root=instead(IMPORT.replace("sal ", "few ", 1), "--data-root", "nowhere"),
        measure="train",
        gallery="gallery.png",
        report_only="",
        json="",
    ),
    "contribute": plus(
        "contribute imported --to hf:alice",
        to=instead("contribute imported --to hf:alice", "--to", "registry2"),
        index="other-index",
        pr="",
        yes=Pair(
            "contribute imported --to hf:alice --index clone/manifests",
            "contribute imported --to hf:alice --index clone/manifests --yes",
            see="clone/.git/refs/heads/*",
            prepare="clone",
        ),
    ),
    "check": plus(
        "check manifests",
        against="base",
        sources=Pair("check zipped", "check zipped --sources", prepare="serve_nothing"),
        fetch=Pair("check zipped", "check zipped --fetch", prepare="serve"),
        report="report.md",
        data_root=Pair(
            "check zipped --fetch --json",
            "check zipped --fetch --json --data-root data",
            prepare="serve",
        ),
        json="",
    ),
    "data list": plus("data list", data_root="data", json=""),
    "data check": plus(
        "data check shapes --data-root data",
        data_root=instead("data check shapes --data-root data", "--data-root", "nowhere"),
        deep=Pair(
            "data check shapes --data-root data",
            "data check shapes --data-root data --deep",
            prepare="break_image",
        ),
        json="",
    ),
    "data make": plus(
        "data make shapes --data-root new --train 3 --val 1 --sod 1",
        data_root=instead(
            "data make shapes --data-root new --train 3 --val 1 --sod 1", "--data-root", "newer"
        ),
        seed="1",
        train=instead("data make shapes --data-root new --train 3 --val 1 --sod 1", "--train", "4"),
        val=instead("data make shapes --data-root new --train 3 --val 1 --sod 1", "--val", "2"),
        sod=instead("data make shapes --data-root new --train 3 --val 1 --sod 1", "--sod", "2"),
    ),
    "demo": plus(
        "demo",
        to=Pair("demo", "demo --to elsewhere", prepare="run_nothing"),
        seed=Pair("demo", "demo --seed 1", prepare="run_nothing"),
        quick=Pair("demo", "demo --quick", prepare="run_nothing"),
        with_=Pair("demo", "demo --with ssnet", prepare="run_nothing"),
        all=Pair("demo", "demo --all", prepare="run_nothing"),
        without_segmentation=Pair("demo", "demo --without-segmentation", prepare="run_nothing"),
        labels_of=Pair("demo", "demo --labels-of sal/poolnet-shapes", prepare="run_nothing"),
        seeds=Pair("demo", "demo --seeds 0,1", prepare="run_nothing"),
    ),
    "registry list": plus("registry list", json=""),
    "cache list": plus("cache list", json=Pair("cache list", "cache list --json")),
    "cache prune": {
        flag: Pair(
            f"cache prune --yes {less}",
            f"cache prune --yes {more}",
            ("pull label/test",),
            see="cache/*",
            prepare="leave_partial",
        )
        for flag, less, more in (
            ("--older-than", "", "--older-than 0"),
            ("--partials", "", "--partials"),
            ("--all", "", "--all"),
            ("--dry-run", "--all", "--all --dry-run"),
        )
    }
    | {
        "--yes": Pair("cache prune --all", "cache prune --all --yes", ("pull label/test",)),
        "--json": Pair(
            "cache prune --all --dry-run",
            "cache prune --all --dry-run --json",
            ("pull label/test",),
        ),
    },
    "cache verify": {
        "--remove": Pair(
            "cache verify",
            "cache verify --remove",
            ("pull label/test",),
            see="cache/*",
            prepare="damage_cache",
        ),
        "--json": Pair("cache verify", "cache verify --json"),
    },
    "run": plus(
        RUN,
        print=Pair(RUN.replace("--print ", ""), RUN),
        apptainer=Pair(RUN, RUN.replace("--print", "--apptainer")),
        image=Pair(RUN, RUN.replace("run", "run --image other/image:1")),
        repository=Pair(RUN, RUN.replace("run", "run --repository mine", 1), see="said"),
        engine=Pair(RUN, RUN.replace("run", "run --engine podman")),
        gpus=Pair(RUN, RUN.replace("run", "run --gpus 1")),
        processes=Pair(RUN, RUN.replace("run", "run --processes 2")),
        shm_size=Pair(RUN, RUN.replace("run", "run --shm-size 1g")),
        cache=Pair(RUN, RUN.replace("run", "run --cache mine")),
        offline=Pair(RUN, RUN.replace("run", "run --offline")),
        registry=Pair(
            f"{RUN} --target shapes --sal sal/exact",
            f"{RUN} --target shapes --sal sal/exact".replace("run", "run --registry registry2", 1),
        ),
    ),
    "reproduce": plus(
        AGAIN,
        target=instead(AGAIN, "--target", "voc12"),
        registry="registry2",
        data_root=instead(AGAIN, "--data-root", "data/shapes"),
        inputs=Pair(AGAIN.removesuffix(" --inputs inputs"), AGAIN),
        to="elsewhere",
        tolerance="1",
        worst="1",
        repository="mine",
        engine="podman",
        gpus="none",
        shm_size="1g",
        cache="mine",
        offline="",
        json="",
    ),
}

REFUSED = {
    f"{LABEL} --tau-from published": "With --tau the threshold is known; leave --tau-from out",
    f"{LABEL} --tau-from published --sal-threshold 0.2".replace("--sal maps/sal", ""): "--sal",
    "label --cam maps/cam --to out --tau 0.3 --no-ignore": "leave --ignore out",
    f"{CURVE} --sal-threshold 0.2".replace("--sal maps/sal", ""): "leave --sal-threshold out",
    f"{REPORT} --sal-threshold 0.2".replace("--sal maps/sal", ""): "leave --sal-threshold out",
    f"{LABEL} --rule oaa --no-ignore": "what is ignored is the rule's own; leave --ignore out",
    f"{LABEL} --rule mcis --sal-threshold 0.5": "saliency is soft",
    f"{LABEL} --rule drs --sal-threshold 0.5": "salient means above 50 of 255",
    f"{LABEL} --rule edam --no-ignore": "nothing is ignored; leave --ignore out",
    f"{LABEL} --beta 0.5": "Only the rule edam has a beta; leave --beta out",
    f"{LABEL} --rule edam --beta 0.5".replace("--sal maps/sal", ""): "leave --beta out",
    f"{LABEL} --rule drs".replace("--sal maps/sal", ""): "The rule drs needs saliency maps",
    f"{BY_CURVE} --rule oaa": "There is no curve by the rule oaa",
    f"{CURVE} --rule mcis": "There is no curve by the rule mcis",
    f"eval saliency maps/sal --masks ecssd {OVER}": "leave --target, --split out",
    f"{IMPORT} --report-only --measure train": "leave --measure out",
    "pull hf:alice/sal-test --registry registry": "leave --registry out",
    "verify hf:alice/sal-test --registry registry": "leave --registry out",
    "verify made/both --target shapes": "leave --target out",
    "verify made/both --registry registry": "leave --registry out",
    "run --apptainer --shm-size 1g sod-test --data-root data": "leave --shm-size out",
    "run --print --image x --repository y sod-test --data-root data": "leave --repository out",
    "pull sal/both --target shapes --as png": "--to",
    "push made/label --to registry --pr": "--pr opens a pull request on the Hub",
}


# What some invocations need in their folder.


def count_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file says how many threads were started."""
    start = threading.Thread.start

    def counted(self: threading.Thread) -> None:
        with open(folder / "threads", "a") as file:
            file.write("started\n")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", counted)


def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest in the registry, and in ``zipped/``, of a zip at a server."""
    files = {f"/{path.name}": path.read_bytes() for path in folder.glob("*.zip")}
    server = RangeServer(files).start()
    text = f"""key: sal/zip
kind: sal
title: Maps for a test
method: {{name: Test}}
versions: {{1.0.0: {{shapes: {{source: {{url: "{server.url("/release.zip")}"}}}}}}}}
"""
    for path in ("registry/wsssbed/sal-zip/manifest.yaml", "zipped/sal/zip.yaml"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(text)


def serve_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "release.zip").unlink()
    serve(folder, monkeypatch)


def clone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone of a repository of manifests, with a person who commits there."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Alice")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "alice@example.org")
        monkeypatch.setenv(f"GIT_{who}_DATE", "2026-01-02T00:00:00Z")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)

    git("init", "--quiet", "--bare", "-b", "main", "origin.git")
    git("clone", "--quiet", "origin.git", "clone")
    (folder / "clone" / "manifests").mkdir()
    (folder / "clone" / "manifests" / "README").write_text("manifests")
    git("-C", "clone", "add", ".")
    git("-C", "clone", "commit", "--quiet", "-m", "first")
    git("-C", "clone", "push", "--quiet", "origin", "HEAD")


def break_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = next((folder / "data" / "shapes").rglob("*.jpg"))
    image.write_bytes(image.read_bytes()[:50])


def leave_partial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed transfer leaves in the cache."""
    blob = next(path for path in (folder / "cache").rglob("*") if len(path.name) == 64)
    blob.with_name(f"{blob.parent.name}{'0' * 62}.partial").write_bytes(b"some")


def damage_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(next(path for path in (folder / "cache").rglob("*") if len(path.name) == 64), 100)


def run_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of the demo are printed; running them takes minutes (CI does)."""
    keys = '{"cam-drs": "cam/drs"}'  # of all stages, to whoever asks for them
    monkeypatch.setattr(
        demo.subprocess,
        "run",
        lambda words, **_: subprocess.CompletedProcess(
            [], "report" in words, keys
        ),  # the last fails
    )


# The tests.


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return option_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def invoke(
    world: Path, tmp_path: Path, command: Hub, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Seen]:
    """Runs a command in a folder that is always the same one, as the world is at first."""
    folder = tmp_path / "here"
    places = {"CACHE": "cache", "REGISTRY": "registry", "LOCK": "lock"}
    for name, place in places.items():
        monkeypatch.setenv(f"WSSSBED_{name}", str(folder / place))
    for name in ("WSSSBED_DATA", "WSSSBED_IMAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")

    def run(text: str, before: tuple[str, ...] = (), prepare: str = "") -> Seen:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(world, folder)
        monkeypatch.chdir(folder)
        for earlier in before:
            assert _in_a_process(earlier.split())[0] == 0  # what it used is let go
        with monkeypatch.context() as patched:
            if prepare:
                globals()[prepare](folder, patched)
            words = [word.replace("+", " ") for word in text.split()]
            if words[:1] == ["run"] and not {"--print", "--apptainer"} & {*words}:
                done = _in_a_process(words)  # it becomes the engine
            else:
                done = command(*words)
        return see(folder, done[0], done[1], done[2])

    return run


def _in_a_process(words: list[str]) -> tuple[int, str, str]:
    line = [sys.executable, "-m", "wsssbed_hub", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


PAIRS = {(command, flag): pair for command, own in TABLE.items() for flag, pair in own.items()}


def test_the_table_is_complete() -> None:
    assert set(PAIRS) == options_of(app)


@pytest.mark.parametrize(("name", "flag"), PAIRS, ids=lambda word: word or "wsssbed-hub")
def test_the_option_changes_something(
    invoke: Callable[..., Seen],
    request: pytest.FixtureRequest,
    name: str,
    flag: str,
) -> None:
    pair = PAIRS[name, flag]
    if "hf:" in pair.given:
        request.getfixturevalue("token")
    given = invoke(pair.given, pair.before, pair.prepare)
    without = invoke(pair.without, pair.before, pair.prepare)
    assert "Traceback" not in given.err + without.err
    assert given.part(pair.see) != without.part(pair.see), given


@pytest.mark.parametrize("name", sorted({*TABLE}), ids=lambda word: word or "wsssbed-hub")
@pytest.mark.slow
def test_the_same_words_come_to_the_same(invoke: Callable[..., Seen], name: str) -> None:
    """So that what differs differs by the option."""
    pair = next(pair for pair in TABLE[name].values() if "hf:" not in pair.given)
    first, second = (invoke(pair.without, pair.before, pair.prepare) for _ in range(2))
    assert first.part(pair.see) == second.part(pair.see)


@pytest.mark.parametrize("words", REFUSED)
def test_what_would_be_of_no_use_is_refused(
    invoke: Callable[..., Seen], world: Path, words: str
) -> None:
    seen = invoke(words)
    assert seen.code == 2
    assert REFUSED[words] in seen.err
    assert seen.files == see(world, 0, "", "").files
