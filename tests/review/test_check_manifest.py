"""`wsssbed-hub check`: the rules that a pull request to the index has to keep."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tinyvoc
import typer
import yaml
from rangeserver import RangeServer
from typer.testing import CliRunner, Result

from wsssbed_hub.cli import contribute
from wsssbed_hub.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
A = "sha256:" + "a" * 64
URL = "https://example.org/x.zip"


def run(*arguments: object) -> Result:
    app = typer.Typer()
    contribute.register(app)
    return CliRunner().invoke(app, ["check", *(str(argument) for argument in arguments)])


def found(*arguments: object) -> list[str]:
    """What is wrong, without the names of the files; checks that the exit code agrees."""
    result = run(*arguments, "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == any(row["severity"] == "error" for row in rows)
    return [f"{row['severity']}: {row['what']}" for row in rows]


def entry(target: str = "shapes", **other: Any) -> dict[str, Any]:
    file = {"path": f"{target}/1.0.0/00000.parquet", "size": 10, "sha256": A}
    source = {"repo": "wsssbed/sal-x-duts", "commit": "1" * 40}
    stated = {"images": 3, "image_list": A, "content": A, "files": [file], "source": source}
    return stated | other


def raw(**other: Any) -> dict[str, Any]:
    return {
        "key": "sal/x-duts",
        "kind": "sal",
        "title": "T",
        "method": {"name": "X"},
        "trained_on": [{"dataset": "duts", "supervision": "pixel masks"}],
        "licence": "MIT",
        "versions": {"1.0.0": {"shapes": entry()}},
    } | other


def put(root: Path, data: dict[str, Any], name: str | None = None) -> Path:
    path = root / f"{name or data['key']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_index_of_record_passes() -> None:
    result = run(ROOT / "manifests")
    assert result.exit_code == 0
    assert result.stdout.endswith("no errors\n")
    assert not result.stdout.startswith("0 ")


def test_a_good_manifest(tmp_path: Path) -> None:
    assert found(put(tmp_path, raw())) == []


def cam(name: str, *trained_with: str) -> dict[str, Any]:
    return {"key": f"cam/{name}", "kind": "cam", "trained_with": list(trained_with)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": None}, "licence: the licence of the maps is not stated"),
        ({"trained_on": []}, "trained_on: what the method was trained on"),
        ({"key": "sal/x"}, "key: trained on the masks of duts, it ends with -duts"),
        (cam("eps-x", "sal/vst-duts"), "key: trained with sal/vst-duts, it ends with -vst-duts"),
        (
            {"versions": {"1.0.0": {"shapes": entry(source=None)}}},
            "1.0.0/shapes: source: it is not said where the files can be had",
        ),
        (
            {"versions": {"1.0.0": {"shapes": {"source": {"url": URL}}}}},
            "1.0.0/shapes: source: a url without its sha256 and size",
        ),
        (
            {"versions": {"1.0.0": {"shapes": {"source": {"url": URL, "release": "Mine"}}}}},
            "'Mine' is no release that is known",
        ),
        (
            {"versions": {"1.0.0": {"shapes": {"source": {"url": URL, "release": "WSSS-BED"}}}}},
            "what is of WSSS-BED begins with https://github.com/clovaai/WSSS-BED/",
        ),
    ],
)
def test_rules(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (what,) = found(put(tmp_path, raw(**change)))
    assert what.startswith("error: ")
    assert message in what


def test_the_place_of_a_manifest(tmp_path: Path) -> None:
    assert found(put(tmp_path, raw(), "sal/other")) == [
        "error: the place of sal/x-duts is sal/x-duts.yaml"
    ]


@pytest.mark.parametrize("commit", ["main", "refs/pr/3", "1" * 39, "1.0.0"])
def test_revisions_are_commits(tmp_path: Path, commit: str) -> None:
    source = {"repo": "a/b", "commit": commit}
    path = put(tmp_path, raw(versions={"1.0.0": {"shapes": entry(source=source)}}))
    (what,) = found(path)
    assert "is not a valid manifest" in what
    assert "commit" in what


def test_one_that_is_not_valid_does_not_hide_the_others(tmp_path: Path) -> None:
    put(tmp_path, raw(licence=None))
    (tmp_path / "sal" / "a.yaml").write_text("key: [")
    assert len(found(tmp_path)) == 2


def test_what_is_not_there(tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "none.yaml").exception, UsageError)


def _drop(data: dict[str, Any]) -> None:
    data["versions"] = {"1.0.1": data["versions"]["1.0.0"]}
    data["versions"]["1.0.1"]["shapes"]["files"][0]["path"] = "shapes/1.0.1/00000.parquet"


def _entry(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["versions"]["1.0.0"]["shapes"].update(change)


RESULT = {"metric": "mIoU", "value": 0.5, "images": 3, "image_list": A, "split": "train_aug"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "1.0.0/shapes is published and was removed"),
        (
            _entry(content="sha256:" + "b" * 64),
            "1.0.0/shapes is published and never changes; content",
        ),
        (_entry(images=4), "never changes; images did"),
        (_entry(files=[{"path": "shapes/1.0.0/1.parquet", "size": 10, "sha256": A}]), "files did"),
        (_entry(results=[]), "results did"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "git"])
def test_published_versions_never_change(
    tmp_path: Path, kind: str, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = raw(versions={"1.0.0": {"shapes": entry(results=[RESULT])}})
    path, base = published(tmp_path, data, kind)
    assert found(path, "--against", base) == []
    change(data)
    put(path.parent.parent, data)
    (what,) = found(path, "--against", base)
    assert message in what


def published(folder: Path, data: dict[str, Any], kind: str) -> tuple[Path, str]:
    """A manifest in a repository, and the name of the state before."""
    path = put(folder / "repo" / "manifests", data)
    if kind == "folder":
        shutil.copytree(folder / "repo" / "manifests", folder / "base")
        return path, str(folder / "base")
    git = ["git", "-C", str(folder / "repo"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    return path, "main"


@pytest.mark.parametrize("kind", ["folder", "git"])
def test_what_may_change(tmp_path: Path, kind: str) -> None:
    data = raw()
    path, base = published(tmp_path, data, kind)
    data["title"] = "Another"
    data["versions"]["1.0.0"]["shapes"]["source"]["commit"] = "2" * 40  # the content is stated
    data["versions"]["1.0.0"]["shapes"]["results"] = [RESULT]
    data["versions"]["1.1.0"] = {"voc12": entry("voc12")}
    data["versions"]["1.1.0"]["voc12"]["files"][0]["path"] = "voc12/1.1.0/00000.parquet"
    put(path.parent.parent, data)
    put(path.parent.parent, raw(key="sal/new-duts"))
    assert found(path.parent.parent, "--against", base) == []


@pytest.mark.parametrize("kind", ["folder", "git"])
def test_a_manifest_that_was_removed(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "repo" / "manifests", raw(key="sal/b-duts"))
    path, base = published(tmp_path, raw(), kind)
    path.unlink()
    folder = path.parent.parent
    assert found(folder, "--against", base) == [
        "error: sal/x-duts is published and its manifest was removed"
    ]


def test_an_address_without_digest_never_changes(tmp_path: Path) -> None:
    name = "https://github.com/clovaai/WSSS-BED/releases/download/sal_maps/"
    source = {"url": name + "a.zip", "release": "WSSS-BED"}
    data = raw(versions={"1.0.0": {"shapes": {"source": source}}})
    path, base = published(tmp_path, data, "folder")
    source["url"] = name + "b.zip"
    put(path.parent.parent, data)
    (what,) = found(path, "--against", base)
    assert "source did" in what


@pytest.mark.parametrize("base", ["none", "--output=x", "main..x"])
def test_unknown_bases(tmp_path: Path, base: str) -> None:
    path, _ = published(tmp_path, raw(), "git")
    result = run(path, f"--against={base}")
    assert isinstance(result.exception, UsageError)
    assert "neither a folder nor a commit" in str(result.exception)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    server = RangeServer({"/x.zip": tinyvoc.zipped(tinyvoc.saliency())}).start()
    yield server
    server.stop()


def at(server: RangeServer, **other: Any) -> dict[str, Any]:
    data = server.files["/x.zip"]
    sha256 = "sha256:" + hashlib.sha256(data).hexdigest()
    source = {"url": server.url("/x.zip"), "sha256": sha256, "size": len(data)}
    return raw(versions={"1.0.0": {"shapes": {"source": source} | other}})


def test_sources(tmp_path: Path, server: RangeServer) -> None:
    path = put(tmp_path, at(server))
    assert found(path, "--sources") == []
    assert {method for method, _, _ in server.requests} == {"HEAD"}
    server.files["/x.zip"] += b"more"
    (what,) = found(path, "--sources")
    assert "bytes, not" in what
    del server.files["/x.zip"]
    (what,) = found(path, "--sources")
    assert "1.0.0/shapes" in what
    assert "the link is dead" in what


def test_fetch(tmp_path: Path, server: RangeServer) -> None:
    from wsssbed_hub.datasets import TARGETS

    data = tinyvoc.make_target(tmp_path / "data", TARGETS["shapes"].classes)
    path = put(tmp_path, at(server))
    assert found(path, "--fetch", "--data-root", data) == []
    put(tmp_path, at(server, content=A))
    (what,) = found(path, "--fetch", "--data-root", data)
    assert "states content" in what
    put(tmp_path, at(server, images=4))
    (what,) = found(path, "--fetch", "--data-root", data)
    assert "states images 4, found 3" in what


def test_fetch_compares_with_the_target(tmp_path: Path, server: RangeServer) -> None:
    from wsssbed_hub.datasets import TARGETS

    data = tinyvoc.make_target(tmp_path / "data", TARGETS["shapes"].classes)
    files = tinyvoc.saliency()
    del files["b2.png"]
    server.files["/x.zip"] = tinyvoc.zipped(files)
    path = put(tmp_path, at(server))
    (what,) = found(path, "--fetch", "--data-root", data)
    assert "1.0.0/shapes: the files are what the manifest says: " in what
    assert "missing images of shapes train_aug: b2." in what
