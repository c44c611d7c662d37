"""What lies in the cache, what goes, and what stays."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cached import SHARD, busy, everything_below, fetch, fill, names, publish
from killing import deaths, exit_code, in_child

from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cache.prune import FETCHING, IN_USE, MIXED, Selection, plan, prune
from wsssbed_hub.cache.scan import scan
from wsssbed_hub.cache.store import Store
from wsssbed_hub.cache.verify import verify_cache
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.utils.errors import UsageError
from wsssbed_hub.utils.files import exclusive

EVERYTHING = Selection(everything=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return fill(tmp_path)


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def age_artifact(name: str, days: float) -> None:
    for artifact in scan().artifacts:
        if str(artifact.key).startswith(name):
            for folder in artifact.folders:
                age(folder, days)


def test_what_is_there(cache: Path) -> None:
    contents = scan()
    assert names(contents) == ["sal/one@1.0.0", "sal/one@1.1.0", "sal/same@1.0.0", "sal/two@1.0.0"]
    assert contents.unused == contents.leftovers == []
    distinct = {(s.st_ino, s.st_size) for s in (p.stat() for p in cache.rglob("*") if p.is_file())}
    assert contents.total == sum(size for _, size in distinct)
    # The two with the same maps share the blob, and each has its size.
    assert contents.total < sum(map(contents.size_of, contents.artifacts))
    assert abs(time.time() - contents.artifacts[0].used.timestamp()) < 60


def test_last_use_is_the_last_pull(cache: Path) -> None:
    age_artifact("sal/", 30)
    fetch("sal/two")
    ages = {str(one.key): time.time() - one.used.timestamp() for one in scan().artifacts}
    assert ages.pop("sal/two@1.0.0") < 3600
    assert min(ages.values()) > 29 * 86400


def test_a_key_or_a_version(cache: Path) -> None:
    prune(Selection(keys=(Key.parse("sal/one@1.0.0"),)))
    assert names(scan()) == ["sal/one@1.1.0", "sal/same@1.0.0", "sal/two@1.0.0"]
    prune(Selection(keys=(Key.parse("sal/one"),)))
    contents = scan()
    assert names(contents) == ["sal/same@1.0.0", "sal/two@1.0.0"]
    assert len(contents.blobs) == 1
    assert verify_cache().damaged == []
    with pytest.raises(UsageError, match=r"no sal/one in the cache"):
        prune(Selection(keys=(Key.parse("sal/one"),)))


def test_what_others_share_stays(cache: Path) -> None:
    before = scan()
    selection = Selection(keys=(Key.parse("sal/two"),))
    going, frees = plan(before, selection)
    assert going.unused == []
    pruned = prune(selection)
    after = scan()
    assert after.blobs == before.blobs
    assert pruned.freed == before.total - after.total == frees
    assert verify_cache().damaged == []
    both = prune(Selection(keys=(Key.parse("sal/same"),)))
    assert len(scan().blobs) == len(before.blobs) - 1
    assert both.freed > pruned.freed  # the blob as well


def test_by_age(cache: Path) -> None:
    age_artifact("sal/one", 10)
    assert prune(Selection(older_than=11)).removed == []
    gone = prune(Selection(older_than=9)).removed
    assert gone == ["sal/one@1.0.0 over shapes", "sal/one@1.1.0 over shapes"]
    key = (Key.parse("sal/two"),)
    assert prune(Selection(keys=key, older_than=9)).removed == []
    with pytest.raises(UsageError, match="one or the other"):
        prune(Selection(everything=True, older_than=9))


def test_everything(cache: Path) -> None:
    pruned = prune(EVERYTHING)
    assert everything_below(cache) == set()
    assert pruned.kept == []
    assert pruned.freed > 0
    fetch("sal/two")
    assert verify_folder(next((cache / "artifacts/sal-two").iterdir()))


def test_folders_of_yours_stay_whole(cache: Path, tmp_path: Path) -> None:
    publish(tmp_path, "mine", 9)
    fetch("sal/mine", to=tmp_path / "mine")
    assert (tmp_path / "mine" / SHARD).stat().st_nlink == 2
    # No artifact of the cache has the blob, but it takes no room while the folder is there.
    assert prune(Selection()).removed == []
    assert len(scan().unused) == 1
    prune(EVERYTHING)
    assert everything_below(cache) == set()
    assert verify_folder(tmp_path / "mine")
    fetch("sal/mine")
    shutil.rmtree(tmp_path / "mine")
    fetch("sal/two")
    prune(Selection(keys=(Key.parse("sal/mine"),)))
    assert len(scan().blobs) == 1


def test_partials(cache: Path) -> None:
    blob = cache / "blobs/aa" / f"{'a' * 64}.partial"
    blob.parent.mkdir()
    blob.write_bytes(b"x" * 1000)
    download = cache / "downloads" / ("b" * 32 + ".partial")
    download.parent.mkdir()
    download.write_bytes(b"y" * 500)
    download.with_suffix(".json").write_text("{}")
    folder = cache / "artifacts/sal-two/.shapes-1.0.0-0123456789abcdef.partial"
    (folder / "shapes").mkdir(parents=True)
    (folder / "shapes/x.parquet").write_bytes(b"z" * 50)
    conversion = cache / "releases/sal-move/voc12-1.0.0/.partial"
    conversion.mkdir(parents=True)
    (conversion / "00000.parquet").write_bytes(b"z" * 60)
    assert {one.what for one in scan().leftovers} == {"file", "download", "folder", "conversion"}
    for path in (blob, folder, folder / "shapes/x.parquet"):
        age(path, 5)
    recent = Selection(leftovers=True, older_than=1)
    artifacts = names(scan())
    assert len(prune(Selection(leftovers=True, older_than=9)).removed) == 0
    assert len(plan(scan(), recent)[0].leftovers) == 2
    with exclusive(blob):
        pruned = prune(Selection(leftovers=True))
        assert pruned.kept == [(f"file {'a' * 64}", IN_USE)]
    assert [one.what for one in scan().leftovers] == ["file"]
    assert names(scan()) == artifacts
    assert prune(Selection(leftovers=True)).freed == 1000
    assert scan().leftovers == []


def test_what_a_process_uses_stays(cache: Path) -> None:
    def use(hold: Callable[[], None]) -> None:
        pull("sal/two")
        hold()

    with busy(use):
        pruned = prune(EVERYTHING)
        assert ("sal/two@1.0.0 over shapes", IN_USE) in pruned.kept
        assert names(scan()) == ["sal/two@1.0.0"]
        assert verify_cache().damaged == []
    prune(EVERYTHING)
    assert everything_below(cache) == set()


def test_a_pull_that_is_under_way_finds_its_files(cache: Path, tmp_path: Path) -> None:
    """It has found the blob good and not yet linked it, when everything is pruned."""

    def slow(hold: Callable[[], None]) -> None:
        whole = Store._view

        def view(*arguments: object) -> Path:
            hold()
            return whole(*arguments)  # type: ignore[arg-type]

        Store._view = view  # type: ignore[method-assign,assignment]
        assert verify_folder(pull("sal/two"))

    with busy(slow):
        pruned = prune(EVERYTHING)
        assert ("files that no artifact has", FETCHING) in pruned.kept
    contents = scan()
    assert names(contents) == ["sal/two@1.0.0"]
    prune(Selection())
    assert len(scan().blobs) == 1


def test_what_is_not_the_caches_stays(cache: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    folder = next((cache / "artifacts/sal-two").iterdir())
    mine = [
        cache / "notes.txt",
        cache / "blobs/notes.txt",
        cache / "blobs/ab/notes.txt",
        cache / "blobs" / ("c" * 64),  # not in the folder of its first digits
        cache / "artifacts/sal-one/notes.txt",
        cache / "artifacts/what-ever/x",
        cache / "downloads/film.mp4",
        folder / "shapes/1.0.0/notes.txt",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    links = [
        cache / "artifacts/sal-three",
        cache / "artifacts/sal-one/shapes-9.0.0-0123456789abcdef",
        cache / "blobs/ab" / ("ab" + "0" * 62),
        cache / "releases",
    ]
    for link in links:
        link.symlink_to(outside if "blobs" not in str(link) else outside / "precious")
    pruned = prune(EVERYTHING)
    assert all(path.read_text() == "mine" for path in mine)
    assert all(link.is_symlink() for link in links)
    assert (outside / "precious").read_text() == "mine"
    assert ("sal/two@1.0.0 over shapes", MIXED) in pruned.kept
    assert verify_folder(folder)
    assert names(scan()) == ["sal/two@1.0.0"]


def test_hostile_manifests_decide_nothing(cache: Path, tmp_path: Path) -> None:
    """One that is damaged, and one that claims a file elsewhere."""
    outside = tmp_path / "outside.parquet"
    outside.write_bytes(b"mine")
    folder = next((cache / "artifacts/sal-two").iterdir())
    (folder / "manifest.yaml").unlink()
    (folder / "manifest.yaml").write_text("key: ../../..\nfiles: [/etc/passwd]\n")
    (damaged,) = {one.artifact for one in verify_cache().damaged}
    assert damaged == "sal/two@1.0.0 over shapes"
    assert len(scan().unused) == 0  # a link to the blob is there
    prune(Selection(keys=(Key.parse("sal/two"),)))
    assert "sal/two@1.0.0" not in names(scan())
    assert outside.exists()


def test_a_pipe_in_place_of_a_manifest(cache: Path) -> None:
    folder = next((cache / "artifacts/sal-two").iterdir())
    (folder / "manifest.yaml").unlink()
    os.mkfifo(folder / "manifest.yaml")
    assert [one.artifact for one in verify_cache().damaged] == ["sal/two@1.0.0 over shapes"]


def test_a_release_goes_with_its_record(cache: Path) -> None:
    """Its record is what says that the blobs need not be made again."""
    home = cache / "releases/sal-two/shapes-1.0.0"
    home.mkdir(parents=True)
    folder = next((cache / "artifacts/sal-two").iterdir())
    shutil.copy(folder / "manifest.yaml", home)
    guard = home.with_name(f".{home.name}.lock")
    guard.touch()
    prune(Selection(keys=(Key.parse("sal/same"),)))
    assert len(scan().blobs) == 3
    with exclusive(guard):
        pruned = prune(Selection(keys=(Key.parse("sal/two"),)))
        assert [why for _, why in pruned.kept] == [IN_USE]
        assert len(scan().blobs) == 3
    prune(Selection(keys=(Key.parse("sal/two"),)))
    assert not home.exists()
    assert len(scan().blobs) == 2


def test_what_datasets_keeps(cache: Path) -> None:
    place = cache / "datasets/parquet"
    place.mkdir(parents=True)
    (place / "x.arrow").write_bytes(b"x" * 3000)
    (place / "x.lock").touch()
    (cache / "stages").mkdir()
    (cache / "stages/weights.bin").write_bytes(b"w" * 10)
    with exclusive(place / "x.lock"):
        assert (str(cache / "datasets"), IN_USE) in prune(EVERYTHING).kept
    pruned = prune(EVERYTHING)
    assert pruned.freed == 3000
    assert [name for name, _ in pruned.kept] == [str(cache / "stages")]
    assert (cache / "stages/weights.bin").exists()


def test_killed_while_pruning(tmp_path: Path) -> None:
    """At each change of the disk: what is left is whole, and the next run ends the work."""
    publish(tmp_path, "one", 1)
    publish(tmp_path, "two", 2)
    fetch("sal/one", "sal/two")
    number = 0
    for number in deaths(lambda: prune(EVERYTHING)):  # noqa: B007
        for artifact in scan().artifacts:
            for folder in artifact.folders:
                assert verify_folder(folder)
    assert number > 8
    assert everything_below(tmp_path / "cache") == set()
    fetch("sal/one")


def test_pulls_and_prunes_at_once(cache: Path) -> None:
    def prunes() -> None:
        for _ in range(20):
            prune(EVERYTHING)

    def pulls() -> None:
        for number in range(10):
            assert verify_folder(pull(("sal/one", "sal/two", "sal/same")[number % 3]))

    assert [exit_code(pid) for pid in map(in_child, (pulls, prunes, pulls, prunes))] == [0] * 4
    assert verify_cache().damaged == []
