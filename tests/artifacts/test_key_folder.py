from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from samples import IDS, key_folder, leftovers, maps_of, provenance, written

from wsssbed_hub.artifacts.digests import list_digest
from wsssbed_hub.artifacts.key_folder import complete, finished, read_manifest, verify_folder
from wsssbed_hub.artifacts.manifest import MethodCitation, TrainedOn
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.utils.errors import HubError

SHARD = "shapes/1.0.0/00000.parquet"


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes fields of the only entry of a manifest."""
    data = yaml.safe_load((folder / "manifest.yaml").read_text())
    data["versions"]["1.0.0"]["shapes"] |= changes
    (folder / "manifest.yaml").write_text(yaml.safe_dump(data))


def test_a_complete_folder(tmp_path: Path) -> None:
    manifest = complete(
        tmp_path,
        written(tmp_path, "sal", maps_of("sal"), {"steps": 3}),
        key="sal/poolnet-shapes",
        target="shapes",
        version="0.1.0",
        title="Saliency maps",
        method=MethodCitation(name="PoolNet"),
        trained_on=[TrainedOn(dataset="shapes", images=5, supervision="pixel masks")],
        licence="MIT",
        provenance=provenance(seed=7),
    )
    assert read_manifest(tmp_path) == manifest
    entry = manifest.entry("0.1.0", "shapes")
    assert (entry.images, entry.image_list) == (3, list_digest(IDS))
    assert entry.provenance is not None
    assert (entry.provenance.recipe, entry.provenance.seed) == ({"steps": 3}, 7)
    assert entry.files[0].path == "shapes/0.1.0/00000.parquet"
    assert entry.size == (tmp_path / entry.files[0].path).stat().st_size
    assert sorted(os.listdir(tmp_path)) == ["manifest.yaml", "shapes"]


def test_other_versions_and_targets_stay(tmp_path: Path) -> None:
    key_folder(tmp_path, maps=maps_of("sal"))
    key_folder(tmp_path, maps=maps_of("sal", ["a", "b"]), target="voc12")
    key_folder(tmp_path, maps=maps_of("sal", ["c"]), version="1.1.0")
    assert [(str(v.key), v.target, v.images) for v in verify_folder(tmp_path)] == [
        ("sal/test@1.0.0", "shapes", 3),
        ("sal/test@1.0.0", "voc12", 2),
        ("sal/test@1.1.0", "shapes", 1),
    ]
    assert open_artifact(tmp_path, "voc12").image_ids == ["a", "b"]
    assert open_artifact(tmp_path, "shapes").image_ids == ["c"]


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    key_folder(tmp_path)
    before = (tmp_path / "manifest.yaml").read_bytes()
    key_folder(tmp_path)
    assert (tmp_path / "manifest.yaml").read_bytes() == before
    assert not leftovers(tmp_path)


def test_other_content_is_refused(tmp_path: Path) -> None:
    key_folder(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = maps_of("sal") | {IDS[1]: np.zeros((7, 8), np.uint8)}
    with pytest.raises(HubError, match="is there already with other content"):
        key_folder(tmp_path, maps=other)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert verify_folder(tmp_path)


def test_a_moved_file_that_is_not_the_one(tmp_path: Path) -> None:
    result = written(tmp_path, "sal", maps_of("sal"))
    place = tmp_path / SHARD
    place.parent.mkdir(parents=True)
    os.replace(result.folder / "00000.parquet", place)
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    with pytest.raises(HubError, match="is damaged or was changed: expected"):
        key_folder(tmp_path)
    assert not (tmp_path / "manifest.yaml").exists()


def test_finished(tmp_path: Path) -> None:
    settings = {"tau": 0.3, "sal": {"key": "sal/x@1.0.0"}, "list": (1, 2)}

    def ask(**other: Any) -> Any:
        asked: dict[str, Any] = {"target": "shapes", "version": "1.0.0", "settings": settings}
        return finished(tmp_path, **(asked | other))

    assert ask() is None
    manifest = key_folder(tmp_path, settings=settings)
    assert ask() == ask(image_ids=IDS[::-1]) == manifest.entry("1.0.0", "shapes")
    assert ask(version="1.1.0") is None
    assert ask(target="voc12") is None
    with pytest.raises(HubError, match=r"made with other settings \(tau: 0\.3 there, 0\.5 now\)"):
        ask(settings=settings | {"tau": 0.5})
    with pytest.raises(HubError, match=r"key: \"sal/x@1.0.0\" there, \"sal/x@2.0.0\" now"):
        ask(settings=settings | {"sal": {"key": "sal/x@2.0.0"}})
    with pytest.raises(HubError, match="image_list"):
        ask(image_ids=IDS[:2])
    (tmp_path / SHARD).unlink()
    with pytest.raises(HubError, match="No such file"):
        ask()


def test_weights(tmp_path: Path) -> None:
    tensors = {"w": np.arange(4, dtype=np.float32)}
    result = write_weights(tmp_path, tensors, {"classes": 3}, settings={"seed": 1})
    manifest = complete(
        tmp_path,
        result,
        key="weights/seg-test",
        target="shapes",
        version="1.0.0",
        title="Weights",
        method=MethodCitation(name="Test"),
        provenance=provenance(),
    )
    assert manifest.entry("1.0.0", "shapes").images is None
    (verified,) = verify_folder(tmp_path)
    assert (verified.files, verified.content) == (2, result.content)
    with pytest.raises(HubError, match="holds weights, not maps"):
        open_artifact(tmp_path)


def test_weights_that_are_not_what_they_were(tmp_path: Path) -> None:
    test_weights(tmp_path)
    rewrite(tmp_path, content="sha256:" + "0" * 64)
    with pytest.raises(HubError, match=r"the content of shapes/1\.0\.0 is not what"):
        verify_folder(tmp_path)


@pytest.mark.parametrize("kind", ["sal", "cam", "label"])
def test_verify_reports_what_it_read(tmp_path: Path, kind: str) -> None:
    manifest = key_folder(tmp_path, kind)
    steps: list[tuple[int, int]] = []
    (found,) = verify_folder(tmp_path, progress=lambda done, of: steps.append((done, of)))
    entry = manifest.entry("1.0.0", "shapes")
    assert found == (f"{kind}/test@1.0.0", "shapes", 3, 1, entry.size, entry.content)
    assert str(found).startswith(f"{kind}/test@1.0.0 over shapes: 3 images, ")
    assert steps == sorted(steps)
    assert steps[-1] == (entry.size, entry.size)


def test_claims_that_do_not_hold(tmp_path: Path) -> None:
    claims = [
        ({"content": "sha256:" + "0" * 64}, "expected sha256:0000.*found sha256:"),
        ({"images": 4}, "holds 3 images that are not the 4 of the manifest"),
        ({"image_list": "sha256:" + "0" * 64}, "holds 3 images that are not the 3"),
    ]
    for number, (change, message) in enumerate(claims):
        folder = tmp_path / str(number)
        key_folder(folder)
        rewrite(folder, **change)
        with pytest.raises(HubError, match=message):
            verify_folder(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sha256", "sha256:" + "0" * 64, "expected sha256:0000.*found sha256:"),
        ("size", 5, "bytes, its manifest says 5"),
        ("path", "shapes/1.0.0/00001.parquet", r"00001\.parquet cannot be read"),
    ],
)
def test_wrong_files(tmp_path: Path, field: str, value: Any, message: str) -> None:
    manifest = key_folder(tmp_path)
    file = manifest.entry("1.0.0", "shapes").files[0].model_dump()
    rewrite(tmp_path, files=[file | {field: value}])
    with pytest.raises(HubError, match=message):
        verify_folder(tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    key_folder(tmp_path)
    (tmp_path / SHARD).unlink()
    (tmp_path / SHARD).mkdir()
    with pytest.raises(HubError, match="cut short or was changed"):
        verify_folder(tmp_path)


def test_what_is_not_a_key_folder(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"is not a key folder: it has no manifest\.yaml"):
        read_manifest(tmp_path)
    (tmp_path / ".partial").mkdir()
    with pytest.raises(HubError, match="is not finished"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.yaml").mkdir()
    with pytest.raises(HubError, match="cannot be read: Is a directory"):
        read_manifest(tmp_path)
