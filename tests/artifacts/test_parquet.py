from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from samples import IDS, flip, key_folder, maps_of, noise, png, same

from wsssbed_hub.artifacts.parquet import schema
from wsssbed_hub.registry.open_artifact import ParquetMaps, open_artifact
from wsssbed_hub.registry.pull import verify
from wsssbed_hub.utils.errors import HubError

MANY = [f"shapes_{number:06d}" for number in range(150)]


def shard(path: Path, kind: str, rows: list[dict[str, Any]], **options: Any) -> Path:
    """A shard as somebody else may write it."""
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(kind)), path, **options)
    return path


def sal(image_id: str | None, data: bytes | None = None) -> dict[str, Any]:
    return {"image_id": image_id, "saliency": {"bytes": data or png(noise(0)), "path": None}}


def cam(class_ids: list[int | None], datas: list[bytes]) -> dict[str, Any]:
    images = [{"bytes": data, "path": None} for data in datas]
    return {"image_id": "a", "class_ids": class_ids, "activations": images}


def opened(path: Path, kind: str) -> ParquetMaps:
    return ParquetMaps([path], kind, name="maps")


@pytest.mark.parametrize("kind", ["sal", "cam", "label"])
def test_reading_at_random_and_in_order(tmp_path: Path, kind: str) -> None:
    maps = maps_of(kind, MANY)
    key_folder(tmp_path, kind, maps)
    found = open_artifact(tmp_path)
    assert (found.kind, found.image_ids, len(found)) == (kind, MANY, 150)
    for image_id in (MANY[149], MANY[0], MANY[64], MANY[63], MANY[64]):
        assert same(found.read(image_id), maps[image_id])
    seen = list(found)
    assert [image_id for image_id, _ in seen] == MANY
    assert all(same(one, maps[image_id]) for image_id, one in seen)


def test_types_of_activations(tmp_path: Path) -> None:
    key_folder(tmp_path, "cam")
    found = open_artifact(tmp_path).read(IDS[0])
    assert isinstance(found, tuple)
    assert found.activations.dtype == np.uint8
    assert found.class_ids.dtype == np.int64
    assert found.class_ids.tolist() == [0, 20]


def test_readers_survive_pickling_and_forking(tmp_path: Path) -> None:
    maps = maps_of("sal", MANY)
    key_folder(tmp_path, "sal", maps)
    found = open_artifact(tmp_path)
    found.read(MANY[0])
    again = pickle.loads(pickle.dumps(found))
    assert same(again.read(MANY[100]), maps[MANY[100]])
    pid = os.fork()
    if pid == 0:
        os._exit(0 if same(found.read(MANY[70]), maps[MANY[70]]) else 1)
    assert same(found.read(MANY[140]), maps[MANY[140]])
    assert os.waitpid(pid, 0)[1] == 0


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    key_folder(tmp_path)
    with pytest.raises(HubError, match=r"sal/test@1\.0\.0 \(shapes\) has no maps of image x"):
        open_artifact(tmp_path).read("x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(noise(0))[:-20], "cut short"),
        (png(noise(0), "RGB"), "8-bit RGB"),
        (png(noise(0), "P"), "is palette; maps of kind sal are not"),
        (png(noise(0), format="JPEG"), "is not a PNG"),
    ],
)
def test_a_corrupt_picture_names_shard_and_image(tmp_path: Path, data: bytes, message: str) -> None:
    found = opened(shard(tmp_path / "x.parquet", "sal", [sal("a"), sal("b", data)]), "sal")
    assert found.read("a") is not None
    with pytest.raises(HubError, match=message) as caught:
        found.read("b")
    assert "maps: the map of image b" in str(caught.value)


@pytest.mark.parametrize(
    "image_id", ["../a", "/etc/passwd", "a/b", "a..b", ".a", "", "a b", "ä", "a" * 129, None]
)
def test_an_image_id_is_not_a_path(tmp_path: Path, image_id: str | None) -> None:
    path = shard(tmp_path / "x.parquet", "sal", [sal(image_id)])
    with pytest.raises(HubError, match="is not an image id"):
        opened(path, "sal")


@pytest.mark.parametrize("ids", [["b", "a"], ["a", "a"]])
def test_ids_ascend(tmp_path: Path, ids: list[str]) -> None:
    path = shard(tmp_path / "x.parquet", "sal", [sal(image_id) for image_id in ids])
    with pytest.raises(HubError, match="not in order"):
        opened(path, "sal")


def test_ids_ascend_over_shards(tmp_path: Path) -> None:
    paths = [
        shard(tmp_path / f"{number}.parquet", "sal", [sal(image_id)])
        for number, image_id in enumerate("ba")
    ]
    assert ParquetMaps(paths[::-1], "sal", name="maps").image_ids == ["a", "b"]
    with pytest.raises(HubError, match="image a comes after b"):
        ParquetMaps(paths, "sal", name="maps")


@pytest.mark.parametrize(
    ("class_ids", "datas", "message"),
    [
        ([], [], "0 activation maps for 0 classes"),
        ([1], [png(noise(0)), png(noise(1))], "2 activation maps for 1 classes"),
        ([2, 1], [png(noise(0)), png(noise(1))], "do not ascend"),
        ([1, 1], [png(noise(0)), png(noise(1))], "do not ascend"),
        ([-1], [png(noise(0))], "do not ascend"),
        ([254], [png(noise(0))], "do not ascend"),
        ([None], [png(noise(0))], "no picture or no class"),
        ([1, 2], [png(noise(0)), png(noise(1, 7))], "differ in size: 6 x 8, 7 x 8"),
    ],
)
def test_wrong_activations(
    tmp_path: Path, class_ids: list[int | None], datas: list[bytes], message: str
) -> None:
    path = shard(tmp_path / "x.parquet", "cam", [cam(class_ids, datas)])
    with pytest.raises(HubError, match=message):
        opened(path, "cam").read("a")


def test_a_picture_elsewhere_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(noise(0)))
    row = {"image_id": "a", "saliency": {"bytes": None, "path": str(tmp_path / "secret.png")}}
    path = shard(tmp_path / "x.parquet", "sal", [row])
    with pytest.raises(HubError, match="no picture"):
        opened(path, "sal").read("a")


def test_a_dictionary_does_not_unpack_to_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsssbed_hub.artifacts.parquet._MAX_GROUP_BYTES", 1 << 20)
    data = png(noise(0, 200, 200))
    rows = [sal(f"{number:04d}", data) for number in range(100)]
    path = shard(tmp_path / "x.parquet", "sal", rows, use_dictionary=True)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(HubError, match="larger than 1 GiB"):
        opened(path, "sal").read("0000")


def test_columns_of_another_kind(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.parquet", "sal", [sal("a")])
    with pytest.raises(HubError, match="maps of kind cam have image_id: string, class_ids"):
        opened(path, "cam")


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _cut_end(data: bytes) -> bytes:
    return data[:-1]


def _append(data: bytes) -> bytes:
    return data + b"x"


def _zero(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize("change", [_cut, _cut_end, _append, _zero, lambda data: b""])
def test_a_truncated_shard_names_the_file(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    key_folder(tmp_path)
    path = tmp_path / "shapes/1.0.0/00000.parquet"
    path.write_bytes(change(path.read_bytes()))
    for read in (open_artifact, verify):
        with pytest.raises(HubError, match=r"shapes/1\.0\.0/00000\.parquet"):
            read(tmp_path)


def test_a_missing_shard_names_the_file(tmp_path: Path) -> None:
    key_folder(tmp_path)
    (tmp_path / "shapes/1.0.0/00000.parquet").unlink()
    with pytest.raises(HubError, match=r"00000\.parquet cannot be read: No such file"):
        open_artifact(tmp_path)


def test_a_shard_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    key_folder(tmp_path / "a", maps=maps_of("sal", ["x", "y"], height=6))
    key_folder(tmp_path / "b", maps=maps_of("sal", ["u", "v"], height=6))
    found = open_artifact(tmp_path / "a")
    place = "shapes/1.0.0/00000.parquet"
    os.replace(tmp_path / "b" / place, tmp_path / "a" / place)
    with pytest.raises(HubError, match=r"changed while it was read|damaged"):
        found.read("x")


@pytest.mark.parametrize("kind", ["sal", "cam"])
def test_flipped_bits_are_found(tmp_path: Path, kind: str) -> None:
    """Verifying finds every one; reading finds those that would change the maps."""
    content = key_folder(tmp_path, kind).entry("1.0.0", "shapes").content
    path = tmp_path / "shapes/1.0.0/00000.parquet"
    good = path.read_bytes()
    found = 0
    places = range(0, len(good), 23)
    for place in places:
        flip(path, place, place % 8)
        message = ""
        try:
            assert open_artifact(tmp_path).digest() == content
        except HubError as error:
            message = str(error)
        assert not message or "00000.parquet" in message or f"{kind}/test" in message
        found += bool(message)
        path.write_bytes(good)
    assert found > len(places) / 3
    for place in range(5, len(good), 397):
        flip(path, place)
        with pytest.raises(HubError, match=r"expected sha256:\w+, found sha256:"):
            verify(tmp_path)
        path.write_bytes(good)
    assert verify(tmp_path)


def test_the_columns_are_those_that_datasets_shows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    string, image = datasets.Value("string"), datasets.Image()
    features = {
        "sal": {"image_id": string, "saliency": image},
        "label": {"image_id": string, "label": image},
        "cam": {
            "image_id": string,
            "class_ids": datasets.List(datasets.Value("int32")),
            "activations": datasets.List(image),
        },
    }
    for kind, expected in features.items():
        wanted = datasets.Features(expected)
        assert datasets.Features.from_arrow_schema(schema(kind)) == wanted
        key_folder(tmp_path / kind, kind)
        metadata = pq.read_schema(tmp_path / kind / "shapes/1.0.0/00000.parquet").metadata
        assert set(metadata) == {b"huggingface"}


def test_labels_are_stored_as_palette_pictures(tmp_path: Path) -> None:
    key_folder(tmp_path, "label")
    row = pq.read_table(tmp_path / "shapes/1.0.0/00000.parquet").to_pylist()[0]
    picture = Image.open(io.BytesIO(row["label"]["bytes"]))
    assert picture.mode == "P"
    assert picture.convert("RGB").getpixel((0, 0)) != (0, 0, 0) or picture.getpixel((0, 0)) == 0
