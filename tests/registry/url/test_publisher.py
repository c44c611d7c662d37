"""Publishing at URLs: S3 (moto's server through s3fs), Google Cloud Storage (gcsfs against a server
on loopback), in memory, and files through a driver that knows of no conditions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import s3server
from gcsserver import GcsServer
from places import KEY, SHARD, everything, put, read
from s3server import S3Server
from samples import key_folder, maps_of, noise, provenance

from wsssbed_hub.artifacts.key_folder import complete, verify_folder
from wsssbed_hub.artifacts.manifest import MethodCitation
from wsssbed_hub.artifacts.weights import write_weights
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import open_registry, pull
from wsssbed_hub.utils.errors import HubError


def test_the_same_again_sends_nothing(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    open_registry(bucket).publish(tmp_path / "key")
    s3.requests.clear()
    open_registry(bucket).publish(tmp_path / "key")
    assert {method for method, _ in s3.requests} <= {"GET", "HEAD"}


def test_the_order_of_the_shards_stays(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the files of another push they have other names, and the images their order."""
    monkeypatch.setattr("wsssbed_hub.artifacts.shard_writer.SHARD_BYTES", 1)
    monkeypatch.setattr("wsssbed_hub.artifacts.shard_writer.PART", 4)
    ids = [f"a{number:02}" for number in range(12)]
    key_folder(tmp_path / "key", maps=maps_of("sal", ids))
    left = "wsssbed/sal-test/shapes/1.0.0/00001.parquet"
    put(bucket, left, b"something else")
    open_registry(bucket).publish(tmp_path / "key")
    files = open_registry(bucket).find(KEY).entry("1.0.0", "shapes").files
    endings = ["-00000.parquet", "-00001.parquet", "-00002.parquet"]
    assert [file.name[12:] for file in files] == endings
    assert everything(bucket)[left] == b"something else"
    assert list(open_artifact("sal/test", registry=bucket).image_ids) == ids


def test_files_that_have_arrived_are_not_sent_again(
    bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    key_folder(tmp_path / "key", target="shapes")
    key_folder(tmp_path / "key", target="voc12")
    put(bucket, f"wsssbed/sal-test/{SHARD}", (tmp_path / "key" / SHARD).read_bytes())
    s3.requests.clear()
    open_registry(bucket).publish(tmp_path / "key")
    assert [path.partition("sal-test/")[2] for path in s3.sent()] == [
        "voc12/1.0.0/00000.parquet",
        "manifest.yaml",
    ]
    assert read(bucket) == {"1.0.0 shapes": 3, "1.0.0 voc12": 3}


def test_big_files_go_in_parts(
    bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "wsssbed_hub.registry.url.drivers.BLOCK", 5 << 20
    )  # the least that S3 allows
    key_folder(tmp_path / "key", maps={f"a{n}": noise(n, 2000, 2000) for n in range(3)})
    open_registry(bucket).publish(tmp_path / "key")
    assert len(s3.sent("00000.parquet")) >= 2
    assert read(bucket) == {"1.0.0 shapes": 3}


def test_big_files_at_google_and_another_push(
    google: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gs: GcsServer
) -> None:
    monkeypatch.setattr("wsssbed_hub.registry.url.drivers.BLOCK", 5 << 20)
    key_folder(tmp_path / "key", maps={f"a{n}": noise(n, 2000, 2000) for n in range(3)})
    key_folder(tmp_path / "other")
    posts = iter(range(3))

    def before(method: str, path: str) -> None:
        if method == "POST" and next(posts, None) == 2:  # the second part
            open_registry(google).publish(tmp_path / "other")

    gs.before = before
    with pytest.raises(HubError, match="other content"):
        open_registry(google).publish(tmp_path / "key")
    assert read(google) == {"1.0.0 shapes": 3}
    open_registry(google).publish(tmp_path / "key", version="2.0.0")
    assert read(google) == {"1.0.0 shapes": 3, "2.0.0 shapes": 3}


def test_weights(bucket: str, tmp_path: Path) -> None:
    """Their names are fixed: what lies under them is not gone around, and not written over."""
    tensors = {"w": np.arange(4, dtype=np.float32)}
    written = write_weights(tmp_path / "key", tensors, {"classes": 3}, settings={})
    complete(
        tmp_path / "key",
        written,
        key="weights/test",
        target="shapes",
        version="1.0.0",
        title="Weights",
        method=MethodCitation(name="Test"),
        provenance=provenance(),
    )
    left = "wsssbed/weights-test/shapes/1.0.0/model.safetensors"
    put(bucket, left, b"of another push")
    with pytest.raises(
        HubError, match=r"in weights-test/shapes/1\.0\.0 lie other files.*--version"
    ):
        open_registry(bucket).publish(tmp_path / "key")
    assert everything(bucket) == {left: b"of another push"}
    open_registry(bucket).publish(tmp_path / "key", version="1.0.1")
    assert verify_folder(pull("weights/test", registry=bucket))


def test_no_such_bucket(s3: S3Server, tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    registry = open_registry("s3://nothing-here/a")
    for ask in (
        registry.keys,
        lambda: registry.find(KEY),
        lambda: registry.publish(tmp_path / "key"),
    ):
        with pytest.raises(HubError, match=r"^s3://nothing-here/a: there is no such bucket"):
            ask()


def test_wrong_credentials(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    s3.tell("reset-auth", b"0")
    registry = open_registry(bucket)
    for ask in (registry.keys, lambda: registry.publish(tmp_path / "key")):
        with pytest.raises(HubError, match=r"access is refused.*AWS_PROFILE") as error:
            ask()
        assert s3server.SECRET not in str(error.value)


def test_reading_only(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    """A bucket that one may read and not write to."""
    key_folder(tmp_path / "key")
    s3.before = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(HubError, match=rf"{SHARD} cannot be written, access is refused"):
        open_registry(bucket).publish(tmp_path / "key")
    s3.before = lambda method, path: None
    assert everything(bucket) == {}


def test_a_store_without_conditions_is_not_trusted(
    bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    key_folder(tmp_path / "key")
    s3.before = lambda method, path: 501 if method == "PUT" else None
    with pytest.raises(HubError, match=r"00000\.parquet cannot be written"):
        open_registry(bucket).publish(tmp_path / "key")


def test_a_server_that_fails_for_a_moment(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    key_folder(tmp_path / "key")
    failures = iter([503, 503])
    s3.before = lambda method, path: next(failures, None) if method == "PUT" else None
    open_registry(bucket).publish(tmp_path / "key")
    assert read(bucket) == {"1.0.0 shapes": 3}


@pytest.mark.slow
def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_folder(tmp_path / "key")
    s3server.use("http://127.0.0.1:9", monkeypatch)
    start = time.monotonic()
    with pytest.raises(HubError, match=r"s3://maps/made: .*Could not connect to the endpoint"):
        open_registry("s3://maps/made").publish(tmp_path / "key")
    assert time.monotonic() - start < 30
    s3server.forget()


@pytest.mark.slow
def test_the_command_line(bucket: str, s3: S3Server, tmp_path: Path) -> None:
    """No secrets and no traceback in what is printed, whatever happens."""
    key_folder(tmp_path / "key")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wsssbed_hub", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert s3server.SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    pushed = run("push", str(tmp_path / "key"), "--to", bucket)
    assert (pushed.returncode, pushed.stdout) == (0, f"sal/test@1.0.0 is in {bucket}\n")
    listed = run("list", "--registry", bucket, "--json")
    assert [row["key"] for row in json.loads(listed.stdout)] == ["sal/test"]
    pulled = run("pull", "sal/test", "--registry", bucket, "--to", str(tmp_path / "to"))
    assert pulled.returncode == 0
    assert verify_folder(tmp_path / "to")
    s3.tell("reset-auth", b"0")
    refused = run("push", str(tmp_path / "key"), "--to", bucket)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "access is refused" in refused.stderr
