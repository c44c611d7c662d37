"""What every registry does, wherever it lies: in a folder, in memory, in S3 (moto's server through
s3fs), in Google Cloud Storage (gcsfs), behind a driver without conditions, on the Hub; and what
those do that are only read."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from killing import exit_code, in_child
from places import KEY, SHARD, Place
from rangeserver import RangeServer
from samples import IDS, flip, key_folder, leftovers, maps_of, noise, same

from wsssbed_hub.artifacts.key_folder import complete, verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import MAX_BYTES, MethodCitation
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.cache.store import Store
from wsssbed_hub.registry.base import Registry
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.multi import Registries
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import open_registry, pull
from wsssbed_hub.utils.errors import HubError, UsageError

AT = "wsssbed/sal-test"
PUBLISHED = f"{AT}/{SHARD}"


@pytest.fixture(params=["folder", "memory", "plain", "bucket", "google", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty registry."""
    if request.param == "folder":
        return Place(str(tmp_path / "made"))
    if request.param == "hub":
        request.getfixturevalue("token")
        return Place("hf:alice", request.getfixturevalue("hub"))
    return Place(request.getfixturevalue(request.param))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key folder with sal/test@1.0.0 over three images."""
    key_folder(tmp_path / "key")
    return tmp_path / "key"


# Publishing.


def test_the_tree(place: Place, key: Path) -> None:
    steps: list[tuple[int, int]] = []
    published = place.open().publish(key, progress=lambda *step: steps.append(step))
    assert list(map(str, published)) == ["sal/test@1.0.0"]
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    paths = ("manifest.yaml", SHARD)
    assert place.files() == {f"{AT}/{path}": (key / path).read_bytes() for path in paths}
    assert place.read() == {"1.0.0 shapes": 3}


def test_the_same_again_changes_nothing(place: Place, key: Path) -> None:
    place.open().publish(key)
    before = place.files()
    assert list(map(str, place.open().publish(key))) == ["sal/test@1.0.0"]
    assert place.files() == before


def test_versions_and_targets_are_added(place: Place, tmp_path: Path) -> None:
    for number, (target, version) in enumerate(
        [("shapes", "1.0.0"), ("voc12", "1.0.0"), ("shapes", "1.1.0")]
    ):
        maps = maps_of("sal", IDS[: number + 1])
        key_folder(tmp_path / str(number), maps=maps, target=target, version=version)
        place.open().publish(tmp_path / str(number))
    assert place.read() == {"1.0.0 shapes": 1, "1.0.0 voc12": 2, "1.1.0 shapes": 3}


def test_a_published_version_never_changes(place: Place, key: Path, tmp_path: Path) -> None:
    place.open().publish(key)
    before = place.files()
    key_folder(tmp_path / "two", maps=maps_of("sal") | {IDS[0]: noise(99)})
    with pytest.raises(HubError, match=r"other content.*A version never changes.*higher number"):
        place.open().publish(tmp_path / "two")
    assert place.files() == before
    published = place.open().publish(tmp_path / "two", version="1.0.1")
    assert list(map(str, published)) == ["sal/test@1.0.1"]
    assert before.items() - {(f"{AT}/manifest.yaml", before[f"{AT}/manifest.yaml"])} <= (
        place.files().items()
    )
    assert same(open_artifact("sal/test@1.0.1", registry=place.address).read(IDS[0]), noise(99))


def test_version_numbers(place: Place, key: Path) -> None:
    for version in ("1", "v2", "../2.0.0"):
        with pytest.raises(UsageError, match="is not a version"):
            place.open().publish(key, version=version)
    key_folder(key, version="2.0.0")
    with pytest.raises(UsageError, match=r"holds the versions 1\.0\.0, 2\.0\.0"):
        place.open().publish(key, version="3.0.0")
    assert place.files() == {}
    assert len(place.open().publish(key)) == 2


def _damage(folder: Path) -> None:
    flip(folder / SHARD, 500)


def _claim(folder: Path) -> None:
    path = folder / "manifest.yaml"
    data = yaml.safe_load(path.read_text())
    data["versions"]["1.0.0"]["shapes"]["content"] = "sha256:" + "0" * 64
    path.write_text(yaml.safe_dump(data))


def _tell(folder: Path) -> None:
    manifest = folder / "manifest.yaml"
    text = manifest.read_text()
    manifest.write_text(text.replace("title: Maps for a test", "title: Those in /home/alice/maps"))


def _tell_in_config(folder: Path) -> None:
    shutil.rmtree(folder)
    complete(
        folder,
        write_weights(folder, {"w": np.zeros(3)}, {"from": "/home/alice/net"}, settings={}),
        key="weights/test",
        target="shapes",
        version="1.0.0",
        title="A network",
        method=MethodCitation(name="Net"),
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_damage, r"00000\.parquet is damaged or was changed"),
        (_claim, r"the content of shapes/1\.0\.0 is not what its manifest"),
        (_tell, r"manifest\.yaml would tell .*: /home/alice/maps\. Nothing was published"),
        (_tell_in_config, r"config\.json would tell .*: /home/alice/net"),
    ],
)
def test_what_is_not_what_it_says_is_not_published(
    place: Place, key: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(key)
    with pytest.raises(HubError, match=message):
        place.open().publish(key)
    assert place.files() == {}


@pytest.fixture
def once_verified(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen when the next push has verified its folder, and sent nothing."""

    def arrange(action: Callable[[], object]) -> None:
        actions = [action]

        def verify(folder: Path, **options: Any) -> None:
            verify_folder(folder, **options)
            if actions:
                actions.pop()()

        monkeypatch.setattr("wsssbed_hub.registry.base.verify_folder", verify)

    return arrange


def test_a_file_that_changes_while_it_is_sent(place: Place, key: Path, once_verified: Any) -> None:
    once_verified(lambda: flip(key / SHARD, 500))
    with pytest.raises(HubError, match=r"00000\.parquet changed"):
        place.open().publish(key)
    assert not [path for path in place.files() if path.endswith("manifest.yaml")]
    flip(key / SHARD, 500)
    place.open().publish(key)
    assert place.read() == {"1.0.0 shapes": 3}


@pytest.mark.parametrize("left", [b"cut", "as long"])
def test_what_a_killed_push_of_other_content_left_is_in_nobodys_way(
    place: Place, key: Path, left: Any
) -> None:
    whole = (key / SHARD).read_bytes()
    place.put(PUBLISHED, left if left == b"cut" else bytes([whole[0] ^ 1]) + whole[1:])
    place.open().publish(key)
    assert place.read() == {"1.0.0 shapes": 3}


@pytest.mark.parametrize("first", [True, False])
def test_another_publishes_meanwhile(
    place: Place, key: Path, tmp_path: Path, once_verified: Any, first: bool
) -> None:
    """Both versions are there; of the same version with other content the first one stays."""
    if not first:
        key_folder(tmp_path / "zero", version="0.1.0")
        place.open().publish(tmp_path / "zero")
    key_folder(tmp_path / "two", maps=maps_of("sal", ["a"]), version="2.0.0", target="voc12")
    once_verified(lambda: place.open().publish(tmp_path / "two"))
    place.open().publish(key)
    both = {"1.0.0 shapes": 3, "2.0.0 voc12": 1} | ({} if first else {"0.1.0 shapes": 3})
    assert place.read() == both
    key_folder(tmp_path / "mine", version="3.0.0")
    key_folder(tmp_path / "theirs", maps=maps_of("sal", ["b"]), version="3.0.0")
    once_verified(lambda: place.open().publish(tmp_path / "theirs"))
    with pytest.raises(HubError, match="other content"):
        place.open().publish(tmp_path / "mine")
    assert place.read() == both | {"3.0.0 shapes": 1}


def test_several_processes_publish_at_once(place: Place, tmp_path: Path) -> None:
    if place.address.startswith(("memory", "plain")):
        pytest.skip("the publishers of one process take turns there; see url/test_races.py")
    for number in range(4):
        maps = maps_of("sal", IDS[: 1 + number % 3])
        key_folder(tmp_path / str(number), maps=maps, version=f"1.{number}.0")
    pushes = [
        in_child(lambda n=n: place.open().publish(tmp_path / str(n))) for n in (0, 1, 2, 3, 3)
    ]
    assert [exit_code(pid) for pid in pushes] == [0] * 5
    assert list(place.read().values()) == [1, 2, 3, 1]


# Reading.


@pytest.fixture(params=["folder", "memory", "plain", "bucket", "google", "hub", "web", "several"])
def stocked(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A registry with sal/one and sal/test, and three that are only read."""
    root = Place(str(tmp_path / "stock"))
    for name in ("one", "test"):
        key_folder(tmp_path / name, name=name)
        root.open().publish(tmp_path / name)
    if request.param == "several":
        (tmp_path / "empty").mkdir()
        yield Place(f"{tmp_path / 'empty'},{root.address}")
        return
    if request.param == "web":
        server = RangeServer.of_folder(Path(root.address)).start()
        yield Place(server.url())
        server.stop()
        return
    if request.param == "hub":
        request.getfixturevalue("token")
        place = Place("hf:alice", request.getfixturevalue("hub"))
    else:
        place = Place(
            str(tmp_path / "made")
            if request.param == "folder"
            else request.getfixturevalue(request.param)
        )
    for name in ("one", "test"):
        place.open().publish(tmp_path / name)
    yield place


def test_keys_and_manifests(stocked: Place, tmp_path: Path) -> None:
    registry = open_registry(stocked.address)
    assert str(registry) == stocked.address
    assert list(map(str, registry.keys())) == ["sal/one", "sal/test"]
    assert [manifest.key for manifest in registry.manifests()] == ["sal/one", "sal/test"]
    manifest = registry.find(Key.parse("sal/test@1.0.0"))
    assert manifest.dump() == (tmp_path / "test/manifest.yaml").read_text()


def test_what_is_not_there(stocked: Place) -> None:
    with pytest.raises(UsageError, match=r"no sal/onne in .*Did you mean 'sal/one'"):
        pull("sal/onne@1.0.0", registry=stocked.address)
    with pytest.raises(UsageError, match=r"no cam/zzz in .*It has 2 keys"):
        pull("cam/zzz", registry=stocked.address)
    with pytest.raises(UsageError, match=r"sal/test has no version 7\.0\.0"):
        pull("sal/test@7.0.0", registry=stocked.address)


@pytest.mark.parametrize("have", [0, 1, 100])
def test_what_a_file_lacks_is_written(stocked: Place, tmp_path: Path, have: int) -> None:
    registry, data = open_registry(stocked.address), (tmp_path / "test" / SHARD).read_bytes()
    (file,) = registry.find(KEY).entry("1.0.0", "shapes").files
    out = io.BytesIO()
    out.write(data[:have])
    registry.fetch(KEY, file, out)
    assert out.getvalue() == data


@pytest.mark.parametrize("have", [b"", b"wrong", 100, None])
def test_an_interrupted_pull_goes_on(stocked: Place, tmp_path: Path, have: Any) -> None:
    """None is one that was interrupted after its last byte."""
    (file,) = open_registry(stocked.address).find(KEY).entry("1.0.0", "shapes").files
    blob = Store().blob(file)
    blob.parent.mkdir(parents=True)
    data = (tmp_path / "test" / SHARD).read_bytes()
    blob.with_name(f"{blob.name}.partial").write_bytes(
        have if isinstance(have, bytes) else data[:have]
    )
    assert verify_folder(pull("sal/test", registry=stocked.address))
    assert not leftovers(tmp_path / "cache")


# What others, who may be anybody, have put there.


@pytest.mark.parametrize("trouble", ["flipped", "cut", "longer"])
def test_wrong_bytes_are_not_kept(place: Place, key: Path, tmp_path: Path, trouble: str) -> None:
    place.open().publish(key)
    data = (key / SHARD).read_bytes()
    wrong = {"flipped": data[:40] + bytes([data[40] ^ 4]) + data[41:]}
    wrong |= {"cut": data[:300], "longer": data + b"x"}
    place.put(PUBLISHED, wrong[trouble])
    with pytest.raises(HubError, match=rf"{SHARD}: wrong bytes|{SHARD} is cut short: 300 of|416"):
        pull("sal/test", registry=place.address, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    blobs = [path for path in (tmp_path / "cache/blobs").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in blobs] == ([data[:300]] if trouble == "cut" else [])
    place.put(PUBLISHED, data)
    assert verify_folder(pull("sal/test", registry=place.address))
    assert not leftovers(tmp_path / "cache")


HOSTILE = {
    "of another key": (lambda text: text.replace("sal/test", "sal/other"), "speaks of sal/other"),
    "no manifest": (lambda text: "colour: blue", "is not a valid manifest"),
    "no text": (lambda text: "\0", "is not YAML"),
    "a path outside": (lambda text: text.replace(SHARD, "../../../x"), "not a plain relative"),
    "an absolute path": (lambda text: text.replace(SHARD, "/etc/passwd"), "not a plain relative"),
    "aliases": (lambda text: f"a: &a [x]\nb: [*a, *a]\n{text}", "aliases are not allowed"),
    "an object": (lambda text: text + "licence: !!python/object:os.system x\n", "not YAML"),
    "too long": (
        lambda text: text + "#" * MAX_BYTES,
        "too much for a manifest|more than 4,194,304",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_manifests(place: Place, key: Path, what: str) -> None:
    change, message = HOSTILE[what]
    place.open().publish(key)
    place.put(f"{AT}/manifest.yaml", change((key / "manifest.yaml").read_text()).encode())
    for ask in (
        lambda: open_registry(place.address).find(KEY),
        lambda: list(open_registry(place.address).manifests()),
        lambda: pull("sal/test", registry=place.address),
        lambda: place.open().publish(key),
    ):
        with pytest.raises(HubError, match=message) as error:
            ask()
        assert "sal-test/manifest.yaml" in str(error.value)


def test_what_else_lies_there_is_passed_over(place: Place, key: Path) -> None:
    place.open().publish(key)
    if place.hub is None:
        place.put("wsssbed/README.md", b"x")
    for path in ("sal-Not_a_key/manifest.yaml", "notes/x.txt", f"sal-unfinished/{SHARD}"):
        place.put(f"wsssbed/{path}", b"x")
    assert list(map(str, open_registry(place.address).keys())) == ["sal/test"]


def test_a_missing_file_is_named(stocked: Place) -> None:
    registry = open_registry(stocked.address)
    (file,) = registry.find(KEY).entry("1.0.0", "shapes").files
    gone = file.model_copy(update={"path": "shapes/1.0.0/00009.parquet"})
    with pytest.raises(HubError, match=r"00009\.parquet"):
        registry.fetch(KEY, gone, io.BytesIO())


# Those that are only read.


def test_what_is_only_read_is_not_published_to(key: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (index / "sal").mkdir(parents=True)
    (index / "sal/test.yaml").write_text((key / "manifest.yaml").read_text())
    registry: Registry = IndexRegistry(index)
    (file,) = registry.find(KEY).entry("1.0.0", "shapes").files
    with pytest.raises(HubError, match="holds manifests only"):
        registry.fetch(KEY, file, io.BytesIO())
    with pytest.raises(UsageError, match="changes by pull request only"):
        registry.publish(key)
    with pytest.raises(UsageError, match=r"https://example\.org is read only.*s3://"):
        open_registry("https://example.org", create=True).publish(key)
    first = Place(str(tmp_path / "first"))
    Registries([first.open(), registry]).publish(key)
    assert first.read() == {"1.0.0 shapes": 3}
