"""Pulling artifacts that are a zip at a URL, as those of the WSSS-BED release are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinyvoc
import yaml
from killing import exit_code, in_child
from rangeserver import Fault, RangeServer
from samples import key_folder, leftovers, noise, png

from wsssbed_hub.datasets import TARGETS
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.multi import Registries
from wsssbed_hub.registry.open_artifact import Activations, open_artifact
from wsssbed_hub.registry.pull import load_dataset, pull, verify
from wsssbed_hub.utils.errors import HubError

SAL, CAM = "/sal_maps/SHAPES_VST_DUTS.zip", "/act_maps/SHAPES_CAM.zip"


@pytest.fixture
def server() -> Iterator[RangeServer]:
    files = {
        SAL: tinyvoc.zipped(tinyvoc.saliency(), "SHAPES_VST_DUTS/"),
        CAM: tinyvoc.zipped(tinyvoc.activations()),
    }
    server = RangeServer(files).start()
    yield server
    server.stop()


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "lock.yaml"
    monkeypatch.setenv("WSSSBED_LOCK", str(path))
    monkeypatch.setenv("WSSSBED_DATA", str(tmp_path / "no-data"))
    return path


@pytest.fixture
def place(server: RangeServer, tmp_path: Path, lock: Path) -> Registries:
    """A registry that is empty and an index with two entries at the server."""
    index = tmp_path / "index"
    for key, path in (("sal/vst-duts", SAL), ("cam/cam", CAM)):
        add(index, key, server.url(path))
    return Registries([FolderRegistry(tmp_path / "registry")], IndexRegistry(index))


def add(index: Path, key: str, url: str, **source: object) -> None:
    kind = key.partition("/")[0]
    entry = {"source": {"url": url, "release": "WSSS-BED"} | source}
    manifest = {"key": key, "kind": kind, "title": "T", "method": {"name": "M"}}
    path = index / f"{key}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(manifest | {"versions": {"1.0.0": {"shapes": entry}}}))


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: Path) -> Path:
    root = tinyvoc.make_target(tmp_path / "data", TARGETS["shapes"].classes)
    monkeypatch.setenv("WSSSBED_DATA", str(root))
    return root


def pins(lock: Path) -> dict[str, object]:
    return yaml.safe_load(lock.read_text())["pins"]["sal/vst-duts@1.0.0"]["shapes"]


def test_the_first_pull_pins_what_came(
    place: Registries, server: RangeServer, lock: Path, tmp_path: Path
) -> None:
    folder = pull("sal/vst-duts", "shapes", registry=place)
    maps = open_artifact(folder)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x.zip").write_bytes(server.files[SAL])
    original = open_artifact(tmp_path / "own" / "x.zip")
    assert list(maps.image_ids) == list(tinyvoc.IDS)
    assert maps.digest() == original.digest()
    pin = pins(lock)
    assert pin["sha256"] == "sha256:" + hashlib.sha256(server.files[SAL]).hexdigest()
    assert (pin["size"], pin["content"]) == (len(server.files[SAL]), original.digest())
    assert (pin["checked"], pin["remarks"]) == ([], [])
    assert verify(folder)[0].content == original.digest()
    cache = Path(os.environ["WSSSBED_CACHE"])
    assert not leftovers(cache)
    assert not list((cache / "downloads").iterdir())


def test_activation_maps_and_datasets(place: Registries) -> None:
    maps = open_artifact("cam/cam", registry=place)
    found = maps.read("a1")
    assert isinstance(found, Activations)
    assert found.class_ids.tolist() == [0, 2]
    assert np.array_equal(found.activations[1], noise(2, *tinyvoc.SIZE))
    assert len(load_dataset("cam/cam", registry=place)) == 3


def test_a_second_pull_asks_nobody(place: Registries, server: RangeServer, lock: Path) -> None:
    first = pull("sal/vst-duts", registry=place)
    server.requests.clear()
    lock.unlink()
    assert pull("sal/vst-duts", registry=place) == first
    assert server.requests == []
    assert pins(lock)["content"]


def test_as_pngs_and_elsewhere(place: Registries, tmp_path: Path) -> None:
    folder = pull("sal/vst-duts", registry=place, to=tmp_path / "png", as_="png")
    assert sorted(path.name for path in folder.iterdir()) == sorted(tinyvoc.saliency())
    pull("sal/vst-duts", registry=place, to=tmp_path / "here")
    assert verify(tmp_path / "here")


def test_changed_bytes_later(place: Registries, server: RangeServer, lock: Path) -> None:
    pull("sal/vst-duts", registry=place)
    before = lock.read_text()
    cache = Path(os.environ["WSSSBED_CACHE"])
    cache.rename(cache.with_name("lost"))
    other = dict(tinyvoc.saliency(), **{"a1.png": png(noise(99, *tinyvoc.SIZE))})
    server.files[SAL] = tinyvoc.zipped(other)
    with pytest.raises(HubError, match="has changed since it was first fetched") as caught:
        pull("sal/vst-duts", registry=place)
    assert str(lock) in str(caught.value)
    assert lock.read_text() == before
    assert not [p for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    server.files[SAL] = tinyvoc.zipped(tinyvoc.saliency(), "SHAPES_VST_DUTS/")
    assert verify(pull("sal/vst-duts", registry=place))


def test_a_stated_sha256(place: Registries, server: RangeServer, lock: Path) -> None:
    right = "sha256:" + hashlib.sha256(server.files[SAL]).hexdigest()
    add(place.index.root, "sal/good", server.url(SAL), sha256=right)
    pull("sal/good", registry=place)
    assert not lock.exists()  # the manifest pins it
    add(place.index.root, "sal/bad", server.url(SAL), sha256="sha256:" + "0" * 64)
    with pytest.raises(HubError, match=r"wrong bytes.*sal/bad@1.0.0.*sha256:000"):
        pull("sal/bad", registry=place)


def test_checked_against_the_target(place: Registries, target: Path, lock: Path) -> None:
    pull("sal/vst-duts", registry=place)
    assert pins(lock)["checked"] == ["ids", "sizes", "classes"]
    pull("cam/cam", registry=place)


def _without(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {other: data for other, data in files.items() if other != name}


S, A = tinyvoc.saliency(), tinyvoc.activations()
BIG = png(noise(0, 7, 8))


@pytest.mark.parametrize(
    ("key", "files", "message"),
    [
        ("sal/vst-duts", _without(S, "b2.png"), "missing images of shapes train_aug: b2"),
        ("sal/vst-duts", {**S, "z9.png": BIG}, "images that shapes does not have: z9"),
        ("sal/vst-duts", {**S, "b2.png": BIG}, "image b2 is 7 x 8 pixels, the image is 6 x 8"),
        ("sal/vst-duts", {**S, "b2.png": b"no"}, "b2 is not a PNG"),
        ("sal/vst-duts", {**S, "b2.png": png(noise(0), "RGB")}, "RGB"),
        ("cam/cam", _without(A, "a1_2.png"), "classes other than the image-level labels: a1"),
        ("cam/cam", {**A, "a1_9.png": BIG}, "classes beyond the 6 of shapes: a1"),
        ("cam/cam", S, "not named as an activation map"),
    ],
)
def test_what_does_not_fit_is_refused(
    place: Registries,
    server: RangeServer,
    target: Path,
    lock: Path,
    key: str,
    files: dict[str, bytes],
    message: str,
) -> None:
    server.files[SAL if key.startswith("sal") else CAM] = tinyvoc.zipped(files)
    with pytest.raises(HubError, match=message) as caught:
        pull(key, registry=place)
    assert "Nothing of it was kept" in str(caught.value)
    assert os.environ["WSSSBED_CACHE"] not in str(caught.value)
    assert not lock.exists()


def test_hostile_zips(place: Registries, server: RangeServer, lock: Path, tmp_path: Path) -> None:
    for data in (tinyvoc.zipped({"../../evil.png": BIG}), b"<html>not found</html>", b""):
        server.files[SAL] = data
        with pytest.raises(HubError, match="does not hold the maps of sal/vst-duts"):
            pull("sal/vst-duts", registry=place)
    assert not lock.exists()
    assert not list(tmp_path.rglob("evil.png"))


def test_remarks_are_written_down(
    place: Registries, server: RangeServer, target: Path, lock: Path
) -> None:
    inverted = {
        name: png(255 - noise(0, *tinyvoc.SIZE) // 9 * np.pad(np.ones((4, 6), np.uint8), 1))
        for name in [*S, "v9.png"]
    }
    server.files[SAL] = tinyvoc.zipped(inverted)
    pull("sal/vst-duts", registry=place)
    assert pins(lock)["remarks"] == [
        "images beyond train_aug: v9",
        "4 of 4 maps are brighter at the border than inside, inverted?: a1, b2, c3, v9",
    ]


def test_too_few_images_without_the_lists(
    place: Registries, server: RangeServer, lock: Path
) -> None:
    path = place.index.root / "sal/vst-duts.yaml"
    path.write_text(path.read_text().replace("shapes", "voc12"))
    with pytest.raises(HubError, match="3 images; voc12 has 10,582"):
        pull("sal/vst-duts", registry=place)


def test_a_cut_connection_goes_on(place: Registries, server: RangeServer) -> None:
    server.faults = [Fault(cut=100), Fault(cut=50)]
    assert verify(pull("sal/vst-duts", registry=place))
    assert [asked for _, _, asked in server.requests] == [None, "bytes=100-", "bytes=150-"]


def test_two_at_once(place: Registries, server: RangeServer) -> None:
    children = [in_child(lambda: pull("sal/vst-duts", registry=place)) for _ in range(3)]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    assert len(server.requests) == 1


def test_lost_and_damaged_blobs_are_fetched_again(place: Registries) -> None:
    folder = pull("sal/vst-duts", registry=place)
    blobs = [p for p in (Path(os.environ["WSSSBED_CACHE"]) / "blobs").rglob("*") if p.is_file()]
    blobs[0].unlink()
    assert pull("sal/vst-duts", registry=place) == folder
    blobs[0].chmod(0o644)
    blobs[0].write_bytes(b"x" * blobs[0].stat().st_size)
    with pytest.raises(HubError, match="was damaged in the cache"):
        pull("sal/vst-duts", registry=place)
    assert verify(pull("sal/vst-duts", registry=place))


def test_what_the_user_published_comes_before_the_index(place: Registries, tmp_path: Path) -> None:
    key_folder(tmp_path / "mine", name="vst-duts", target="voc12")
    place.publish(tmp_path / "mine")
    assert list(map(str, place.keys())) == ["cam/cam", "sal/vst-duts"]
    assert len(open_artifact("sal/vst-duts", "voc12", registry=place)) == 3
    assert list(open_artifact("sal/vst-duts", "shapes", registry=place).image_ids) == [
        "a1",
        "b2",
        "c3",
    ]


def test_a_damaged_lock_file(place: Registries, lock: Path) -> None:
    lock.parent.mkdir()
    lock.write_text("pins: {sal/vst-duts@1.0.0: {shapes: {url: x}}}")
    with pytest.raises(HubError, match="is not a valid lock file"):
        pull("sal/vst-duts", registry=place)
