"""The manifests of the WSSS-BED release, against the list of its files."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import pytest

from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Manifest, UrlSource
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.release.manifests import main, manifests

HERE = Path(__file__).parent
FOLDER = HERE.parents[2] / "manifests"


def addresses(found: Iterable[Manifest]) -> set[tuple[str, str, str, str]]:
    rows = set()
    for manifest in found:
        for _, target, entry in manifest.entries():
            assert isinstance(entry.source, UrlSource)
            if entry.source.release == "WSSS-BED":
                rows.add((manifest.kind, manifest.key, target, entry.source.url))
    return rows


def test_every_file_of_the_release_has_its_entry_and_there_is_no_other() -> None:
    with open(HERE / "artifacts.csv", newline="") as file:
        listed = {(r["kind"], r["key"], r["target"], r["url"]) for r in csv.DictReader(file)}
    assert len(listed) == 130
    assert addresses(manifests()) == listed
    assert addresses(m for m in IndexRegistry(FOLDER).manifests()) == listed


def test_the_committed_files_are_what_the_program_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check", str(FOLDER)]) == 0
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    (tmp_path / "sal" / "vst-duts.yaml").write_text("schema_version: 1\n")
    assert main(["--check", str(tmp_path)]) == 1
    assert "sal/vst-duts.yaml is out of date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "method", "trained_on", "trained_with"),
    [
        ("sal/vst-duts", "VST", [("duts", 10553, "pixel masks")], []),
        ("sal/dss-msra-hku", "DSS", [("msra-hku", 9447, "pixel masks")], []),
        ("sal/pfan-coco20", "PFAN", [("coco20", None, "pixel masks")], []),
        ("sal/move", "MOVE", [("duts", 10553, "unsupervised")], []),
        # Table 7 of the paper: EPS uses PFAN; what that was trained on is not said.
        ("sal/paper-eps", "PFAN", [(None, None, "pixel masks")], []),
        ("cam/mcis", "MCIS", [("voc12", 10582, "image labels")], []),
        (
            "cam/eps-vst-duts",
            "EPS",
            [("coco14", 82081, "image labels"), ("voc12", 10582, "image labels")],
            ["sal/vst-duts"],
        ),
        ("cam/l2g-paper-oaa", "L2G", [("voc12", 10582, "image labels")], ["sal/paper-oaa"]),
    ],
)
def test_facts(
    key: str, method: str, trained_on: list[tuple[object, ...]], trained_with: list[str]
) -> None:
    manifest = IndexRegistry(FOLDER).find(Key.parse(key))
    assert manifest.method.name == method
    found = [(item.dataset, item.images, item.supervision) for item in manifest.trained_on]
    assert found == trained_on
    assert manifest.trained_with == trained_with


def test_what_is_not_known_is_absent() -> None:
    keys = set(map(str, IndexRegistry(FOLDER).keys()))
    for manifest in manifests():
        for _, _, entry in manifest.entries():
            assert (entry.images, entry.image_list, entry.content) == (None, None, None)
            assert not entry.files
            assert entry.provenance is None
        assert set(manifest.trained_with) <= keys
