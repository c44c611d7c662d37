from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import exit_code, in_child
from samples import IDS, flip, key_folder, leftovers, maps_of, same

from wsssbed_hub.artifacts.key_folder import complete, read_manifest, verify_folder
from wsssbed_hub.artifacts.manifest import MethodCitation
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import default_registry, load_dataset, open_registry, pull, verify
from wsssbed_hub.utils.errors import HubError, UsageError

SHARD = "shapes/1.0.0/00000.parquet"
PUBLISHED = "wsssbed/sal-test/" + SHARD


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    """The default registry of the test, with ``sal/test`` over three images."""
    key_folder(tmp_path / "key")
    made = FolderRegistry(default_registry())
    made.publish(tmp_path / "key")
    return made


# Pulling.


def test_pull_into_the_cache(tmp_path: Path, registry: FolderRegistry) -> None:
    steps: list[tuple[int, int]] = []
    folder = pull("sal/test", progress=lambda done, of: steps.append((done, of)))
    assert folder.is_relative_to(tmp_path / "cache")
    assert sorted(os.listdir(folder)) == ["manifest.yaml", "shapes"]
    assert verify_folder(folder)
    assert steps[-1][0] == steps[-1][1] == (folder / SHARD).stat().st_size
    assert pull("sal/test@1.0.0", "shapes") == folder
    assert not leftovers(tmp_path)


def test_pull_to_a_folder(tmp_path: Path, registry: FolderRegistry) -> None:
    goal = tmp_path / "below" / "out"
    assert pull("sal/test", to=goal) == goal
    assert verify_folder(goal)
    before = {path: path.stat().st_mtime_ns for path in goal.rglob("*")}
    assert pull("sal/test", to=str(goal)) == goal
    assert {path: path.stat().st_mtime_ns for path in goal.rglob("*")} == before
    assert not leftovers(tmp_path)


def test_pull_takes_one_entry(tmp_path: Path, registry: FolderRegistry) -> None:
    key_folder(tmp_path / "two", maps=maps_of("sal", ["a"]), target="voc12", version="1.1.0")
    registry.publish(tmp_path / "two")
    folder = pull("sal/test", "shapes")
    (chosen,) = read_manifest(folder).entries()
    assert (str(chosen.version), chosen.target) == ("1.0.0", "shapes")
    with pytest.raises(UsageError, match=r"covers shapes, voc12\. Choose one with --target"):
        pull("sal/test")
    assert open_artifact("sal/test@1.1.0").image_ids == ["a"]
    with pytest.raises(UsageError, match=r"sal/test has no version 7\.0\.0"):
        pull("sal/test@7.0.0")


def test_pull_as_pngs(tmp_path: Path, registry: FolderRegistry) -> None:
    steps: list[tuple[int, int]] = []
    folder = pull(
        "sal/test",
        to=tmp_path / "pngs",
        as_="png",
        progress=lambda done, of: steps.append((done, of)),
    )
    assert sorted(os.listdir(folder)) == [f"{image_id}.png" for image_id in IDS]
    assert all(same(one, maps_of("sal")[image_id]) for image_id, one in open_artifact(folder))
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert pull("sal/test", to=tmp_path / "pngs", as_="png") == folder


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("sal/tset", {}, "Did you mean 'sal/test'"),
        ("SAL/test", {}, "is not a key"),
        ("../registry", {}, "is not a key"),
        ("sal/test", {"as_": "jpeg", "to": "x"}, "comes as parquet or as png"),
        ("sal/test", {"as_": "png"}, "say where"),
        ("sal/test", {"target": "voc12"}, "nothing over 'voc12'"),
    ],
)
def test_mistakes(
    registry: FolderRegistry, key: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pull(key, **options)


def test_weights_are_pulled(tmp_path: Path, registry: FolderRegistry) -> None:
    tensors = {"w": np.arange(4, dtype=np.float32)}
    complete(
        tmp_path / "weights",
        write_weights(tmp_path / "weights", tensors, {"classes": 3}, settings={}),
        key="weights/seg-test",
        target="shapes",
        version="1.0.0",
        title="Weights",
        method=MethodCitation(name="Test"),
    )
    registry.publish(tmp_path / "weights")
    folder = pull("weights/seg-test")
    assert sorted(os.listdir(folder / "shapes/1.0.0")) == ["config.json", "model.safetensors"]
    assert verify("weights/seg-test")
    with pytest.raises(UsageError, match="they do not come as png"):
        pull("weights/seg-test", to=tmp_path / "x", as_="png")


def _write(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def _flip(folder: Path) -> None:
    pull("sal/test", to=folder)
    flip(folder / SHARD, 300)


def _other_maps(folder: Path) -> None:
    key_folder(folder, maps=maps_of("sal", ["a"]))


def _other_key(folder: Path) -> None:
    key_folder(folder, name="other")


@pytest.mark.parametrize("fill", [_write, _flip, _other_maps, _other_key])
def test_something_else_is_left_alone(
    tmp_path: Path, registry: FolderRegistry, fill: Callable[[Path], None]
) -> None:
    goal = tmp_path / "out"
    goal.mkdir()
    fill(goal)
    before = {path: path.read_bytes() for path in goal.rglob("*") if path.is_file()}
    with pytest.raises(HubError, match=f"{goal} is there already and is not sal/test: "):
        pull("sal/test", to=goal)
    assert {path: path.read_bytes() for path in goal.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [SHARD, "manifest.yaml"])
def test_damage_in_the_cache_is_mended(registry: FolderRegistry, name: str) -> None:
    folder = pull("sal/test")
    good = (folder / name).read_bytes()
    flip(folder / name, 50)
    assert pull("sal/test") == folder
    assert (folder / name).read_bytes() == good


def test_damage_to_the_bytes_that_folders_share_is_mended(registry: FolderRegistry) -> None:
    folder = pull("sal/test")
    with open(folder / SHARD, "r+b") as file:  # root may write to what is read-only
        file.seek(77)
        file.write(b"\0\0\0")
    assert pull("sal/test") == folder
    assert verify(folder)


def test_two_registries_with_other_maps_under_one_key(
    tmp_path: Path, registry: FolderRegistry
) -> None:
    other = FolderRegistry(tmp_path / "other")
    key_folder(tmp_path / "b", maps=maps_of("sal", ["a"]))
    other.publish(tmp_path / "b")
    assert open_artifact("sal/test").image_ids == IDS
    assert open_artifact("sal/test", registry=other).image_ids == ["a"]
    assert open_artifact("sal/test", registry=str(other)).image_ids == ["a"]
    assert open_artifact("sal/test").image_ids == IDS


# Several at once, and killed.


def test_several_pulls_at_once(tmp_path: Path, registry: FolderRegistry) -> None:
    def work() -> None:
        assert verify_folder(pull("sal/test", to=tmp_path / "out"))
        assert verify_folder(pull("sal/test"))
        assert verify_folder(pull("sal/test", to=tmp_path / "pngs", as_="png").parent / "out")

    assert [exit_code(pid) for pid in [in_child(work) for _ in range(6)]] == [0] * 6
    assert not leftovers(tmp_path)


# Verifying and loading.


def test_verify_a_key_and_a_folder(tmp_path: Path, registry: FolderRegistry) -> None:
    assert verify("sal/test") == verify(tmp_path / "key") == verify(str(tmp_path / "key"))
    with pytest.raises(UsageError, match="is neither a key nor a folder"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["sal", "cam", "label"])
def test_load_dataset(tmp_path: Path, kind: str) -> None:
    maps = maps_of(kind)
    key_folder(tmp_path / "key", kind)
    open_registry(create=True).publish(tmp_path / "key")
    for where in (f"{kind}/test", tmp_path / "key"):
        found = load_dataset(where, "shapes")
        assert found["image_id"] == IDS
        row = found[1]
        if kind == "cam":
            assert row["class_ids"] == maps[IDS[1]].class_ids.tolist()
            pixels = np.stack([np.asarray(picture) for picture in row["activations"]])
            assert np.array_equal(pixels, maps[IDS[1]].activations)
        else:
            column = {"sal": "saliency", "label": "label"}[kind]
            assert np.array_equal(np.asarray(row[column]), maps[IDS[1]])


def test_load_dataset_says_what_is_damaged(tmp_path: Path) -> None:
    key_folder(tmp_path)
    (tmp_path / SHARD).write_bytes(b"PAR1")
    with pytest.raises(HubError, match=r"00000\.parquet has 4 bytes"):
        load_dataset(tmp_path)


# Opening a registry.


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_registry_is_a_folder(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "a registry"
    folder.mkdir()
    url = form.format(str(folder).replace(" ", "%20") if "file" in form else folder)
    assert str(open_registry(url)) == str(folder)


@pytest.mark.parametrize("url", ["ftps3://bucket/x", "hf://datasets/x"])
def test_what_is_no_registry(url: str) -> None:
    with pytest.raises(UsageError, match=r"is not a registry|a registry on the Hub is hf:"):
        open_registry(url)


def test_a_folder_of_another_machine() -> None:
    with pytest.raises(UsageError, match="as file:///path"):
        open_registry("file://server/share")


def test_a_registry_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no registry at .*missing"):
        open_registry(tmp_path / "missing")
    assert open_registry(tmp_path / "missing", create=True).keys() == []
    assert not (tmp_path / "missing").exists()
    with pytest.raises(UsageError, match=r"There is no sal/x in .*registry\.\n"):
        pull("sal/x")


def test_the_default_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSSBED_REGISTRY", "/given")
    assert str(open_registry()).startswith("/given and the index of wsssbed-hub (")
    monkeypatch.delenv("WSSSBED_REGISTRY")
    monkeypatch.setenv("XDG_DATA_HOME", "/data-home")
    assert default_registry() == "/data-home/wsssbed-hub/registry"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_registry() == "/home/me/.local/share/wsssbed-hub/registry"
