from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from killing import deaths, exit_code, in_child
from samples import IDS, flip, key_folder, leftovers, maps_of, noise, same

from wsssbed_hub.artifacts.key_folder import check_file, verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.utils.errors import HubError, UsageError

SHARD = "shapes/1.0.0/00000.parquet"


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    return FolderRegistry(tmp_path / "registry")


def everything(registry: FolderRegistry) -> list[str]:
    """Files that a reader of the registry is led to, each found to be what its manifest says."""
    found = []
    for manifest in registry.manifests():
        folder = registry.root / "wsssbed" / manifest.parsed_key.repository
        for chosen in manifest.entries():
            found += [str(check_file(folder, file)) for file in chosen.entry.files]
    return found


def test_the_tree_of_a_registry(tmp_path: Path, registry: FolderRegistry) -> None:
    key_folder(tmp_path / "key", name="vst-duts")
    steps: list[tuple[int, int]] = []
    published = registry.publish(
        tmp_path / "key", progress=lambda done, of: steps.append((done, of))
    )
    assert [str(key) for key in published] == ["sal/vst-duts@1.0.0"]
    names = [str(p.relative_to(registry.root)) for p in registry.root.rglob("*") if p.is_file()]
    assert sorted(names) == ["wsssbed/sal-vst-duts/manifest.yaml", f"wsssbed/sal-vst-duts/{SHARD}"]
    assert verify_folder(registry.root / "wsssbed/sal-vst-duts")
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]


def test_keys_are_listed(tmp_path: Path, registry: FolderRegistry) -> None:
    assert registry.keys() == []
    for kind, name in [("sal", "b"), ("cam", "eps-b"), ("sal", "a-b")]:
        key_folder(tmp_path / kind / name, kind, name=name)
        registry.publish(tmp_path / kind / name)
    place = registry.root / "wsssbed"
    (place / "sal-unfinished").mkdir()
    (place / "notes").mkdir()
    (place / "README.md").write_text("words")
    expected = ["cam/eps-b", "sal/a-b", "sal/b"]
    assert list(map(str, registry.keys())) == expected
    assert [manifest.key for manifest in registry.manifests()] == expected


def test_near_keys_are_suggested(tmp_path: Path, registry: FolderRegistry) -> None:
    for name in ("vst-duts", "poolnet-duts"):
        key_folder(tmp_path / name, name=name)
        registry.publish(tmp_path / name)
    with pytest.raises(UsageError, match=r"no sal/vst-dust in .*Did you mean 'sal/vst-duts'"):
        registry.find(Key.parse("sal/vst-dust@1.0.0"))
    with pytest.raises(UsageError, match=r"no cam/zzz in .*It has 2 keys"):
        registry.find(Key.parse("cam/zzz"))


def test_a_manifest_of_another_key(tmp_path: Path, registry: FolderRegistry) -> None:
    key_folder(tmp_path / "key", name="a")
    registry.publish(tmp_path / "key")
    shutil.copytree(registry.root / "wsssbed/sal-a", registry.root / "wsssbed/sal-b")
    with pytest.raises(HubError, match="speaks of sal/a, not of sal/b"):
        registry.find(Key.parse("sal/b"))


def test_a_damaged_manifest_is_named(tmp_path: Path, registry: FolderRegistry) -> None:
    key_folder(tmp_path / "key")
    registry.publish(tmp_path / "key")
    (registry.root / "wsssbed/sal-test/manifest.yaml").write_text("colour: blue")
    for ask in (registry.find, lambda key: list(registry.manifests())):
        with pytest.raises(HubError, match=r"wsssbed/sal-test/manifest\.yaml is not a valid"):
            ask(Key.parse("sal/test"))


def test_versions_and_targets_are_added(tmp_path: Path, registry: FolderRegistry) -> None:
    for number, (target, version) in enumerate(
        [("shapes", "1.0.0"), ("voc12", "1.0.0"), ("shapes", "1.1.0")]
    ):
        maps = maps_of("sal", IDS[: number + 1])
        key_folder(tmp_path / str(number), maps=maps, target=target, version=version)
        registry.publish(tmp_path / str(number))
    manifest = registry.find(Key.parse("sal/test"))
    counts = [(str(c.version), c.target, c.entry.images) for c in manifest.entries()]
    assert counts == [("1.0.0", "shapes", 1), ("1.0.0", "voc12", 2), ("1.1.0", "shapes", 3)]
    assert len(everything(registry)) == 3


def test_the_same_again_changes_nothing(tmp_path: Path, registry: FolderRegistry) -> None:
    key_folder(tmp_path / "key")
    registry.publish(tmp_path / "key")
    before = {p: p.stat().st_mtime_ns for p in registry.root.rglob("*")}
    assert registry.publish(tmp_path / "key")
    assert {p: p.stat().st_mtime_ns for p in registry.root.rglob("*")} == before


def test_a_published_version_never_changes(tmp_path: Path, registry: FolderRegistry) -> None:
    key_folder(tmp_path / "one")
    registry.publish(tmp_path / "one")
    before = everything(registry)
    other = maps_of("sal") | {IDS[0]: noise(99)}
    key_folder(tmp_path / "two", maps=other)
    with pytest.raises(HubError, match=r"other content.*A version never changes.*higher number"):
        registry.publish(tmp_path / "two")
    assert everything(registry) == before
    published = registry.publish(tmp_path / "two", version="1.0.1")
    assert [str(key) for key in published] == ["sal/test@1.0.1"]
    assert len(everything(registry)) == 2
    assert same(open_artifact("sal/test@1.0.1", registry=registry).read(IDS[0]), noise(99))


def test_a_folder_of_several_versions_keeps_its_numbers(
    tmp_path: Path, registry: FolderRegistry
) -> None:
    key_folder(tmp_path / "key")
    key_folder(tmp_path / "key", version="2.0.0")
    with pytest.raises(UsageError, match=r"holds the versions 1\.0\.0, 2\.0\.0"):
        registry.publish(tmp_path / "key", version="3.0.0")
    assert len(registry.publish(tmp_path / "key")) == 2


@pytest.mark.parametrize("place", [10, 500, -3])
def test_a_damaged_folder_is_not_published(
    tmp_path: Path, registry: FolderRegistry, place: int
) -> None:
    key_folder(tmp_path / "key")
    flip(tmp_path / "key" / SHARD, place)
    with pytest.raises(HubError, match=r"00000\.parquet is damaged or was changed"):
        registry.publish(tmp_path / "key")
    assert registry.keys() == []


def test_a_wrong_claim_is_not_published(tmp_path: Path, registry: FolderRegistry) -> None:
    key_folder(tmp_path / "key")
    path = tmp_path / "key/manifest.yaml"
    data = yaml.safe_load(path.read_text())
    data["versions"]["1.0.0"]["shapes"]["content"] = "sha256:" + "0" * 64
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(HubError, match=r"the content of shapes/1\.0\.0 is not what its manifest"):
        registry.publish(tmp_path / "key")
    assert registry.keys() == []


@pytest.mark.parametrize("version", ["1", "v2", "../2.0.0"])
def test_not_a_version(tmp_path: Path, registry: FolderRegistry, version: str) -> None:
    key_folder(tmp_path / "key")
    with pytest.raises(UsageError, match="is not a version"):
        registry.publish(tmp_path / "key", version=version)


def test_a_missing_file_is_named(tmp_path: Path, registry: FolderRegistry) -> None:
    manifest = key_folder(tmp_path / "key")
    registry.publish(tmp_path / "key")
    (registry.root / "wsssbed/sal-test" / SHARD).unlink()
    file = manifest.entry("1.0.0", "shapes").files[0]
    with pytest.raises(HubError, match=r"00000\.parquet cannot be read: No such file"):
        registry.fetch(Key.parse("sal/test"), file, io.BytesIO())


def test_killed_while_publishing(tmp_path: Path, registry: FolderRegistry) -> None:
    """What a reader is led to is whole at any moment, and the next push goes through."""
    key_folder(tmp_path / "old")
    registry.publish(tmp_path / "old")
    key_folder(tmp_path / "new", maps=maps_of("sal", ["a"]), version="1.1.0")
    seen = set()
    for _ in deaths(lambda: registry.publish(tmp_path / "new")):
        seen.add(len(everything(registry)))
    assert 1 in seen
    assert len(everything(registry)) == 2
    assert verify_folder(registry.root / "wsssbed/sal-test")
    assert not leftovers(registry.root)


def test_what_a_killed_push_of_other_content_left_is_replaced(
    tmp_path: Path, registry: FolderRegistry
) -> None:
    key_folder(tmp_path / "key")
    place = registry.root / "wsssbed/sal-test" / SHARD
    place.parent.mkdir(parents=True)
    place.write_bytes(b"of a push that was killed before its manifest")
    registry.publish(tmp_path / "key")
    assert len(everything(registry)) == 1


def test_several_pushes_at_once(tmp_path: Path, registry: FolderRegistry) -> None:
    for number in range(4):
        maps = maps_of("sal", IDS[: 1 + number % 3])
        key_folder(tmp_path / str(number), maps=maps, version=f"1.{number}.0")
    pushes = [in_child(lambda n=n: registry.publish(tmp_path / str(n))) for n in (0, 1, 2, 3, 3)]
    assert [exit_code(pid) for pid in pushes] == [0] * 5
    assert len(everything(registry)) == 4


def test_a_full_disk(tmp_path: Path, small_disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, resize = small_disk
    key_folder(tmp_path / "key", maps={"a": noise(0, 1200, 1200)})
    registry = FolderRegistry(disk / "registry")
    with pytest.raises(HubError, match=r"1,4\d\d,\d+ bytes are needed there and the disk has"):
        registry.publish(tmp_path / "key")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9**9, 0, 9**9))
    with pytest.raises(HubError, match=r"the disk is full; 1,4\d\d,\d+ bytes are needed there"):
        registry.publish(tmp_path / "key")
    assert registry.keys() == []
    assert not [path for path in disk.rglob("*") if path.is_file()]
    resize(4 << 20)
    registry.publish(tmp_path / "key")
    assert verify_folder(pull("sal/test", registry=registry))
