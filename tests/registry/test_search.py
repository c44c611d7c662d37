"""Finding artifacts: list, search and show, on the release's manifests and on made ones."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import Hub, maps_of, provenance, written

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import (
    Entry,
    File,
    Ingredient,
    Manifest,
    MethodCitation,
    TrainedOn,
)
from wsssbed_hub.artifacts.parquet import schema
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.search import Filters, Found, explain, find_all, search
from wsssbed_hub.utils.errors import UsageError

COCO = 82_081  # images of coco14's train list


@pytest.fixture(scope="module")
def release() -> list[Found]:
    return find_all(IndexRegistry().manifests())


def keys(found: list[Found], **asked: str) -> set[str]:
    wanted = Filters(**asked)
    return {one.row.key for one in found if wanted.keeps(one)}


def make(tmp_path: Path, kind: str, name: str, *made_from: Ingredient, **known: object) -> Manifest:
    """Publishes maps in the registry of the test."""
    folder = tmp_path / f"{kind}-{name}"
    manifest = complete(
        folder,
        written(folder, kind, maps_of(kind)),
        key=f"{kind}/{name}",
        target="shapes",
        version="1.0.0",
        title=f"Maps of {name}",
        method=known.pop("method", MethodCitation(name="Test")),  # type: ignore[arg-type]
        provenance=provenance(
            made_from=list(made_from),
            seed=7,
            image="wsssbed/sod-test",
            image_digest="sha256:" + "5" * 64,
        ),
        **known,  # type: ignore[arg-type]
    )
    FolderRegistry(tmp_path / "registry").publish(folder)
    return manifest


def part(role: str, manifest: Manifest) -> Ingredient:
    content = manifest.choose().entry.content
    assert content is not None
    return Ingredient(role=role, key=f"{manifest.key}@1.0.0", digest=content)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Saliency maps, activation maps trained with them, labels made from both; and others."""
    duts = [TrainedOn(dataset="duts", supervision="pixel masks")]
    sal = make(tmp_path, "sal", "vst-duts", method=MethodCitation(name="VST"), trained_on=duts)
    cam = make(
        tmp_path,
        "cam",
        "eps-vst-duts",
        part("sal", sal),
        method=MethodCitation(name="EPS", paper="EPS'21"),
    )
    make(tmp_path, "label", "eps-vst-duts", part("cam", cam), part("sal", sal))
    free = [TrainedOn(dataset="duts", supervision="unsupervised")]
    make(tmp_path, "sal", "move", method=MethodCitation(name="MOVE"), trained_on=free)
    make(tmp_path, "cam", "drs", method=MethodCitation(name="DRS"))
    return tmp_path / "registry"


# Filters, against what the release is known to hold.


def test_every_artifact_of_the_release_is_a_row(release: list[Found]) -> None:
    assert len(release) == 130
    assert [(one.row.key, one.row.target) for one in release] == sorted(
        (one.row.key, one.row.target) for one in release
    )


def test_sod_finds_maps_and_what_was_trained_with_them(release: list[Found]) -> None:
    assert keys(release, sod="vst-duts") == {
        "sal/vst-duts",
        "cam/eps-vst-duts",
        "cam/l2g-vst-duts",
    }
    five = {"coco", "coco20", "duts", "msra", "msra-hku"}
    assert keys(release, sod="VST", kind="sal") == {f"sal/vst-{dataset}" for dataset in five}
    models = {"dss", "pfan", "poolnet", "vst"}
    assert keys(release, sod="msra-hku", kind="sal") == {f"sal/{m}-msra-hku" for m in models}
    # MSRA alone is another dataset; DeepUSPS saw its images without the masks.
    assert keys(release, sod="msra", kind="sal") == {f"sal/{m}-msra" for m in models} | {
        "sal/deepusps"
    }
    # The maps that EPS's authors distribute are PFAN's; the key does not say so.
    assert "cam/l2g-paper-eps" in keys(release, sod="pfan")
    assert keys(release, sod="pfan", kind="cam", method="eps") >= {"cam/eps-paper-eps"}
    assert keys(release, sod="eps") == set()


def test_other_filters(release: list[Found]) -> None:
    assert keys(release, supervision="unsupervised") == {"sal/deepusps", "sal/move"}
    assert keys(release, supervision="Pixel-Masks", kind="cam") == set()
    assert keys(release, method="l2g") == {key for key in keys(release) if "cam/l2g-" in key}
    assert keys(release, target="coco14", method="drs") == {"cam/drs"}
    both = [one.row for one in release if one.row.key == "cam/cam"]
    assert [(row.target, row.trained_on) for row in both] == [
        ("coco14", ["coco14"]),
        ("voc12", ["voc12"]),
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"kind": "maps"}, "sal, cam"), ({"supervision": "labels"}, "'image labels'")],
)
def test_words_that_nobody_uses(asked: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Filters(**asked)


def test_labels_are_found_through_what_they_were_made_from(chain: Path) -> None:
    found = find_all(FolderRegistry(chain).manifests())
    whole = {"sal/vst-duts", "cam/eps-vst-duts", "label/eps-vst-duts"}
    assert keys(found, sod="vst") == whole
    assert keys(found, sod="duts") == whole | {"sal/move"}
    assert keys(found, method="eps") == whole - {"sal/vst-duts"}
    (label,) = [one.row for one in found if one.row.kind == "label"]
    assert (label.saliency, label.supervision) == (["vst-duts"], [])


# Words.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vst-duts"], ["sal/vst-duts", "cam/eps-vst-duts", "cam/l2g-vst-duts"]),
        (["Eps", "MOVE"], ["cam/eps-move"]),
        (["sal/ deepusps", "unsupervised"], ["sal/deepusps"]),
        (["1905.99999"], []),
        (["abs/2210.07920"], ["sal/move"]),  # the paper
        (["oaa", "coco14"], []),  # both are words of the release, of other artifacts
    ],
)
def test_search(release: list[Found], words: list[str], expected: list[str]) -> None:
    found = [one.row.key for one in search(release, words)]
    assert list(dict.fromkeys(found)) == expected


def test_a_word_in_the_key_counts_most(release: list[Found]) -> None:
    """EDAM is a method, and the title of saliency maps that are distributed with it."""
    ranked = [one.row.key for one in search(release, ["edam"])]
    assert ranked[0] == "cam/edam"
    assert set(ranked) == {"cam/edam", "sal/paper-edam", "cam/eps-paper-edam", "cam/l2g-paper-edam"}
    by_title = [one.row.key for one in search(release, ["distributed", "pfan"])]
    assert set(by_title) == {"sal/paper-eps", "cam/eps-paper-eps", "cam/l2g-paper-eps"}


def test_nothing_found_is_explained(release: list[Found]) -> None:
    said = explain(release, ["poolnett", "voc12"])
    assert said.startswith("Nothing has 'poolnett'. Did you mean 'poolnet'")
    assert "'voc12'" not in said
    said = explain(release, ["deepusps", "coco20"])
    assert "Nothing has all" in said
    deepusps = sum("deepusps" in one.row.key for one in release)
    assert f"'deepusps' {deepusps}" in said


# The commands.


def test_list_and_search_on_the_command_line(command: Hub, chain: Path) -> None:
    rows = json.loads(command("list", "--sod", "vst", "--registry", chain, "--json").out)
    assert [row["key"] for row in rows] == [
        "cam/eps-vst-duts",
        "label/eps-vst-duts",
        "sal/vst-duts",
    ]
    assert {row["images"] for row in rows} == {3}
    stored = (chain / "wsssbed/sal-vst-duts/shapes/1.0.0/00000.parquet").stat().st_size
    assert rows[2]["size"] == stored
    words = ["search", "eps", "--kind", "label", "--registry", chain, "--json"]
    assert [row["key"] for row in json.loads(command(*words).out)] == ["label/eps-vst-duts"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--sod", "vts"], "Did you mean 'vst'"),
        (["list", "--target", "mars"], "For --target there is shapes"),
        (["search", "vts"], "Did you mean 'vst'"),
        (["search", "eps", "--kind", "weights"], "2 artifacts without that"),
    ],
)
def test_nothing_is_no_failure(command: Hub, chain: Path, words: list[str], said: str) -> None:
    outcome = command(*words, "--registry", chain)
    assert (outcome.code, outcome.out) == (0, "")
    assert said in outcome.err
    assert json.loads(command(*words, "--registry", chain, "--json").out) == []


def test_mistakes(command: Hub, chain: Path) -> None:
    refused = command("list", "--supervision", "labels", "--registry", chain)
    assert (refused.code, "'image labels'" in refused.err) == (2, True)
    assert command("show", "sal/vst-duts@3.0.0", "--registry", chain).code == 2
    refused = command("show", "sal/vst-duts", "--target", "voc12", "--registry", chain)
    assert (refused.code, "shapes" in refused.err) == (2, True)


@pytest.mark.parametrize("width", [80, 120, 160])
def test_tables_fit_the_window(
    command: Hub, monkeypatch: pytest.MonkeyPatch, width: int, release: list[Found]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("WSSSBED_REGISTRY")
    monkeypatch.setenv("XDG_DATA_HOME", "/nowhere/at/all")
    outcome = command("list")
    lines = [line for line in outcome.out.splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    # One line each, no name cut or folded, and what has no room is said.
    assert [line.split()[0] for line in lines[2:]] == [one.row.key for one in release]
    assert ("Left out" in outcome.err) == (width < 160)
    assert ("0.3 without sal (0.25 without sal)" in outcome.out) == (width == 160)


def test_texts_of_others_steer_no_terminal(command: Hub, tmp_path: Path) -> None:
    evil = MethodCitation(name="\x1b[2J[red]X\u202e")
    make(tmp_path, "sal", "evil", method=evil)
    for words in (["list"], ["show", "sal/evil"], ["search", "evil"]):
        out = command(*words).out
        assert "[2J[red]X" in out
        assert not {"\x1b", "\u202e"} & set(out)


def test_show_prints_the_whole_chain(
    command: Hub, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = command("show", "label/eps-vst-duts", "--registry", chain).out
    below = out[out.index("Provenance") :]
    for name in ("label/eps-vst-duts@1.0.0", "cam/eps-vst-duts@1.0.0", "sal/vst-duts@1.0.0"):
        assert name in below
    assert "made by sod-test, seed 7, 2026-01-02" in below
    assert "image: wsssbed/sod-test sha256:" + "5" * 64 in below
    assert "command: python -m stages" in below
    stored = (chain / "wsssbed/label-eps-vst-duts/shapes/1.0.0/00000.parquet").read_bytes()
    assert hashlib.sha256(stored).hexdigest() in out
    monkeypatch.setenv("COLUMNS", "80")
    narrow = command("show", "label/eps-vst-duts", "--registry", chain).out
    assert max(map(len, narrow.splitlines())) <= 80
    assert hashlib.sha256(stored).hexdigest() in narrow  # in one piece, to be copied


def test_show_as_json(command: Hub, chain: Path) -> None:
    data = json.loads(command("show", "label/eps-vst-duts", "--registry", chain, "--json").out)
    (tree,) = data.pop("trees")
    assert Manifest.model_validate(data).key == "label/eps-vst-duts"
    cam, sal = tree["made_from"]
    assert [node["name"] for node in cam["made_from"]] == ["sal/vst-duts@1.0.0"]
    assert sal["facts"]["seed"] == "7"


def test_show_of_the_release(command: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSSSBED_REGISTRY")
    monkeypatch.setenv("XDG_DATA_HOME", "/nowhere/at/all")
    data = json.loads(command("show", "cam/eps-vst-duts", "--json").out)
    for tree, target in zip(data["trees"], ("coco14", "voc12"), strict=True):
        (sal,) = tree["made_from"]
        assert (sal["name"], sal["target"]) == ("sal/vst-duts@1.0.0", target)
        assert sal["facts"]["trained on"] == "duts (pixel masks)"
        assert "not stated" in sal["remark"]


def test_show_where_the_saliency_is_elsewhere(command: Hub, tmp_path: Path) -> None:
    make(tmp_path, "cam", "eps-lost", trained_with=["sal/lost"])
    registry = ["--registry", tmp_path / "registry"]
    assert "not in any registry here" in command("show", "cam/eps-lost", *registry).out
    (row,) = json.loads(command("list", *registry, "--sod", "lost", "--json").out)
    assert row["saliency"] == ["lost"]


# Size.


def big(root: Path, images: int = COCO, shards: int = 20) -> Key:
    """Activation maps over as many images as coco14's train list has, in shards of 500 MB."""
    files = [
        File(
            path=f"coco14/1.0.0/{n:05d}.parquet",
            size=500_000_000,
            sha256="sha256:" + hashlib.sha256(str(n).encode()).hexdigest(),
        )
        for n in range(shards)
    ]
    digest = "sha256:" + "a" * 64
    entry = Entry(images=images, image_list=digest, content=digest, files=files)
    manifest = Manifest(
        key="cam/big",
        kind="cam",
        title="Activation maps over the whole of coco14",
        method=MethodCitation(name="Big"),
        versions={"1.0.0": {"coco14": entry}},
    )
    folder = root / "wsssbed" / "cam-big"
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text(manifest.dump())
    return manifest.parsed_key


def best_of_three(*command: object) -> float:
    """Seconds of a core that a process takes from its start to its end, whoever else uses them."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*map(str, command)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


# Times the cost of the same on little, most of which is the start; the size is 4,000 times that.
GENEROUS = 2.5


@pytest.mark.slow
def test_coco14_lists_and_resolves_at_once(tmp_path: Path) -> None:
    key = big(tmp_path / "registry")
    hub = (sys.executable, "-m", "wsssbed_hub")
    where = ("--registry", tmp_path / "registry")
    listed = subprocess.run(
        [*hub, "list", *map(str, where), "--json"], check=True, capture_output=True, text=True
    )
    (row,) = json.loads(listed.stdout)
    assert (row["images"], row["size"]) == (COCO, 10_000_000_000)
    big(tmp_path / "little", images=20, shards=1)
    for words in (["list"], ["show", key]):
        little = best_of_three(*hub, *words, "--registry", tmp_path / "little")
        assert best_of_three(*hub, *words, *where) < GENEROUS * little


def test_the_ids_of_coco14_are_read_at_once(tmp_path: Path) -> None:
    """Real shards of as many rows, with maps of one byte each: reading ids reads no maps."""
    whole, little = rows(tmp_path / "whole", COCO), rows(tmp_path / "little", 20)
    program = (
        "import sys; from wsssbed_hub import open_artifact as open; open(sys.argv[1]).image_ids"
    )
    few = best_of_three(sys.executable, "-c", program, little)
    assert best_of_three(sys.executable, "-c", program, whole) < GENEROUS * few


def rows(folder: Path, images: int) -> Path:
    """A key folder of saliency maps over so many images, in two shards."""
    ids = [f"COCO_train2014_{n:012d}" for n in range(images)]
    (folder / "coco14/1.0.0").mkdir(parents=True)
    files = []
    for number in range(2):
        path = folder / f"coco14/1.0.0/{number:05d}.parquet"
        part = ids[: images // 2] if number == 0 else ids[images // 2 :]
        columns = schema("sal")
        maps = [{"bytes": b"x", "path": None}] * len(part)
        table = pa.table({"image_id": part, "saliency": maps}, schema=columns)
        pq.write_table(table, path, row_group_size=512, compression="none", use_dictionary=False)
        data = path.read_bytes()
        sha256 = "sha256:" + hashlib.sha256(data).hexdigest()
        files.append(File(path=str(path.relative_to(folder)), size=len(data), sha256=sha256))
    entry = Entry(
        images=images, image_list=list_digest(ids), content="sha256:" + "a" * 64, files=files
    )
    manifest = Manifest(
        key="sal/big",
        kind="sal",
        title="Saliency maps over the whole of coco14",
        method=MethodCitation(name="Big"),
        versions={"1.0.0": {"coco14": entry}},
    )
    (folder / "manifest.yaml").write_text(manifest.dump())
    assert open_artifact(folder).image_ids == ids
    return folder
