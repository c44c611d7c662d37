"""What goes wrong while the Hub is read, and what is then said: each fault was provoked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from hubserver import HubServer
from huggingface_hub import CommitOperationAdd, HfApi, constants
from samples import IDS, key_folder, maps_of, noise

from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cache.store import Store
from wsssbed_hub.registry.hub.registry import HubRegistry
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.utils.errors import HubError, UsageError

NAME = "alice/sal-test"
KEY = Key.parse("sal/test")
SHARD = "shapes/1.0.0/00000.parquet"


def big(tmp_path: Path) -> Path:
    """A key folder of about 3 MB in one file."""
    key_folder(tmp_path / "big", maps={f"a{n}": noise(n, 1000, 1000) for n in range(3)})
    return tmp_path / "big"


def test_a_download_goes_on_where_it_was_cut(
    tmp_path: Path, hub: HubServer, registry: HubRegistry, waits: list[float]
) -> None:
    registry.publish(big(tmp_path))
    hub.fail("/storage/", drop_after=1_000_000, times=2)
    place = pull("sal/test", registry=registry)
    assert verify_folder(place)
    ranges = [r.range for r in hub.requests if r.path.startswith("/storage/")]
    assert ranges == [None, "bytes=1000000-", "bytes=2000000-"]
    assert not any(r.token for r in hub.requests if r.path.startswith("/storage/"))


def test_an_interrupted_pull_goes_on_with_a_range(
    tmp_path: Path, hub: HubServer, registry: HubRegistry, waits: list[float]
) -> None:
    registry.publish(big(tmp_path))
    hub.fail("/storage/", drop_after=1_000_000)
    hub.fail("/storage/", drop_after=0, times=50)
    with pytest.raises(HubError, match=r"alice/sal-test: .* connection was cut"):
        pull("sal/test", registry=registry)
    assert hub.count("/storage/") < 20
    hub.faults.clear()
    hub.requests.clear()
    hub.fail("/storage/", ignore_range=True)  # the whole file comes although a part was asked for
    assert verify_folder(pull("sal/test", registry=registry))
    assert [r.range for r in hub.requests if "/storage/" in r.path] == ["bytes=1000000-"]


def test_files_come_through_xet(
    tmp_path: Path, hub: HubServer, registry: HubRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(big(tmp_path))
    hub.offer_xet(NAME, SHARD)
    file = registry.find(KEY).entry("1.0.0", "shapes").files[0]
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.requests.clear()
    blob = Store().blob(file)
    blob.parent.mkdir(parents=True)
    begun = (tmp_path / "big" / SHARD).read_bytes()[:1_000_000]
    blob.with_name(f"{blob.name}.partial").write_bytes(begun)
    steps: list[tuple[int, int]] = []
    place = pull("sal/test", registry=registry, progress=lambda done, of: steps.append((done, of)))
    assert verify_folder(place)
    assert steps[0] == (1_000_000, file.size)
    assert steps[-1] == (file.size, file.size)
    assert hub.count("/storage/") == 0
    assert hub.count("/xet-read-token/") == 1


def test_files_are_read_at_the_commit_of_the_manifest(
    tmp_path: Path, hub: HubServer, published: HubRegistry
) -> None:
    file = published.find(KEY).entry("1.0.0", "shapes").files[0]
    pinned = hub.repository(NAME).refs["refs/heads/main"]
    changed = [CommitOperationAdd(SHARD, b"somebody else's bytes")]
    HfApi().create_commit(NAME, changed, commit_message="x", repo_type="dataset")
    out = io.BytesIO()
    published.fetch(KEY, file, out)
    assert out.getvalue() == (tmp_path / "key" / SHARD).read_bytes()
    assert hub.requests[-2].path == f"/datasets/{NAME}/resolve/{pinned}/{SHARD}"
    with pytest.raises(HubError, match=r"00000\.parquet.*(cut short|wrong bytes)"):
        pull("sal/test", registry=HubRegistry("alice"))


def test_a_manifest_elsewhere_points_to_a_commit(
    tmp_path: Path, hub: HubServer, published: HubRegistry
) -> None:
    data = yaml.safe_load((tmp_path / "key/manifest.yaml").read_text())
    commit = hub.repository(NAME).refs["refs/heads/main"]
    data["versions"]["1.0.0"]["shapes"]["source"] = {"repo": NAME, "commit": commit}
    place = tmp_path / "index/wsssbed/sal-test"
    place.mkdir(parents=True)
    (place / "manifest.yaml").write_text(yaml.safe_dump(data))
    changed = [CommitOperationAdd(SHARD, b"other bytes")]
    HfApi().create_commit(NAME, changed, commit_message="x", repo_type="dataset")
    assert verify_folder(pull("sal/test", registry=tmp_path / "index"))


def test_patience(hub: HubServer, published: HubRegistry, waits: list[float]) -> None:
    hub.fail("/revision/", status=429, headers={"Retry-After": "7"})
    hub.fail("/revision/", status=503)
    hub.fail("manifest.yaml", status=429, headers={"ratelimit": '"resolvers";r=0;t=3'})
    assert published.find(KEY)
    assert waits == [7, 2, 4]  # the client adds one where it waits by itself


@pytest.mark.parametrize("path", ["/resolve/", "/storage/"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_patience_with_the_files(
    hub: HubServer, published: HubRegistry, waits: list[float], path: str, status: int
) -> None:
    hub.fail(f"{path}.*parquet", status=status, headers={"Retry-After": "7"}, times=2)
    assert verify_folder(pull("sal/test", registry=published))
    assert waits == ([8, 8] if status == 429 else [7, 7])  # the client adds one, where it waits


@pytest.mark.parametrize(
    ("trouble", "message", "waited"),
    [
        ({"status": 429, "headers": {"Retry-After": "9"}}, r"too many.*in 9 seconds", [9] * 4),
        ({"status": 429, "headers": {"Retry-After": "3600"}}, r"in 3600 seconds", []),
        ({"status": 500}, r"trouble of its own \(500\)", [1, 2, 4, 8]),
        ({"status": 503}, r"trouble of its own \(503\)", [1, 2, 4, 8]),
        ({"lose_answer": True}, r"connection was cut", [1, 2, 4, 8]),
        ({"status": 418}, r"refused this with 418", []),
    ],
)
def test_patience_ends(
    hub: HubServer,
    published: HubRegistry,
    waits: list[float],
    trouble: dict[str, Any],
    message: str,
    waited: list[float],
) -> None:
    hub.fail("/revision/", times=99, **trouble)
    with pytest.raises(HubError, match=f"alice/sal-test: .*{message}"):
        published.find(KEY)
    assert waits == waited


SENDING = ["/create", "/preupload/", "/objects/batch", "/upload/", "/lfs/verify", "/commit/"]
AN_HOUR = {"Retry-After": "3600"}


@pytest.mark.parametrize("path", SENDING)
@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (429, AN_HOUR, r"too many requests \(429\)\. Run it again in 3600 seconds, it goes on"),
        (429, {"ratelimit": '"api";r=0;t=3600'}, r"in 3600 seconds"),
        (503, AN_HOUR, r"trouble of its own \(503\)\. Run it again in 3600 seconds"),
    ],
)
def test_a_push_that_is_told_to_come_back_in_an_hour_says_so_at_once(
    tmp_path: Path,
    hub: HubServer,
    registry: HubRegistry,
    waits: list[float],
    path: str,
    status: int,
    headers: dict[str, str],
    message: str,
) -> None:
    key_folder(tmp_path / "key")
    hub.fail(path, method="PUT" if path == "/upload/" else "POST", status=status, headers=headers)
    with pytest.raises(HubError, match=f"alice/sal-test: .*{message}"):
        registry.publish(tmp_path / "key")
    assert waits == []
    registry.publish(tmp_path / "key")
    assert verify_folder(pull("sal/test", registry=registry))


def test_a_push_that_is_told_to_wait_a_little_waits(
    tmp_path: Path, hub: HubServer, registry: HubRegistry, waits: list[float]
) -> None:
    key_folder(tmp_path / "key")
    hub.fail("/upload/", method="PUT", status=429, headers={"Retry-After": "9"}, times=2)
    registry.publish(tmp_path / "key")
    assert len(waits) == 2
    assert all(9 <= seconds <= 10 for seconds in waits)
    key_folder(tmp_path / "key", version="1.1.0", maps=maps_of("sal", IDS[:2]))
    hub.fail("/upload/", method="PUT", status=429, headers={"Retry-After": "9"}, times=99)
    before = len(waits)
    with pytest.raises(HubError, match=r"too many requests.*in 9 seconds"):
        registry.publish(tmp_path / "key")
    assert sum(waits[before:]) <= 60  # six tries of the client's own


def test_who_may_not(
    hub: HubServer, published: HubRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trouble(message: str, kind: type[HubError] = HubError) -> None:
        with pytest.raises(kind, match=message):
            pull("sal/test", registry=HubRegistry("alice"))

    hub.repository(NAME).gated = True
    for user in ("", hub.user("bob")):
        monkeypatch.setenv("HF_TOKEN", user)
        trouble(rf"is gated.*Ask at {hub.endpoint}/datasets/alice/sal-test and sign in")
    hub.repository(NAME).granted.add("bob")
    assert pull("sal/test", registry="hf:alice")
    hub.repository(NAME).private = True
    trouble(r"no alice/sal-test on .*if it is private, the signed-in user may not", UsageError)
    monkeypatch.setenv("HF_TOKEN", "")
    trouble(r"if it is private, sign in first: `hf auth login`", UsageError)
    monkeypatch.setenv("HF_TOKEN", "hf_thisisnotatoken")
    trouble(r"does not accept your token. Sign in again")


def test_who_publishes_signs_in(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_folder(tmp_path / "key")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(
        HubError, match="to publish there sign in first: `hf auth login`"
    ) as refused:
        HubRegistry("alice").publish(tmp_path / "key")
    assert refused.value.exit_code == 1
    assert NAME not in hub.state.repositories


def test_what_is_not_there(tmp_path: Path, published: HubRegistry) -> None:
    with pytest.raises(UsageError, match=r"no sal/tset in hf:alice\..*Did you mean 'sal/test'"):
        published.find(Key.parse("sal/tset"))
    with pytest.raises(UsageError, match="has no such branch, tag or commit"):
        pull("hf:alice/sal-test@nothing")
    with pytest.raises(UsageError, match=r"has no version 9\.0\.0"):
        pull("hf:alice/sal-test@9.0.0")
    HfApi().create_repo("alice/sal-empty", repo_type="dataset")
    with pytest.raises(UsageError, match=r"has no manifest\.yaml"):
        pull("hf:alice/sal-empty")
    with pytest.raises(UsageError, match="is empty"):
        published.find(Key.parse("sal/empty"))
    for wrong in ("hf:alice", "hf:", "hf:alice/../x", "hf:a/b/c", "hf:alice/x@"):
        with pytest.raises(UsageError, match="write hf:NAMESPACE/REPOSITORY"):
            pull(wrong)
    for wrong in ("alice/sal-test", "", "../x"):
        with pytest.raises(UsageError, match="a registry on the Hub is hf:NAMESPACE"):
            pull("sal/test", registry=f"hf:{wrong}")


def test_offline(
    hub: HubServer, published: HubRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = pull("sal/test", registry="hf:alice")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert pull("sal/test", registry="hf:alice") == place
    assert pull("hf:alice/sal-test@1.0.0") == place
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*Unset it"):
        pull("hf:alice/sal-test@refs/pr/1")
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set"):
        published.publish(tmp_path / "key")
    for blob in (path for path in (Store().root / "blobs").rglob("*") if path.is_file()):
        blob.unlink()
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set"):
        pull("sal/test", registry="hf:alice")
    monkeypatch.setenv("WSSSBED_CACHE", str(tmp_path / "other"))
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set"):
        pull("sal/test", registry="hf:alice")
    assert hub.requests == []


def test_the_token_never_gets_out(
    hub: HubServer, published: HubRegistry, token: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fail("/revision/", status=400, headers={"X-Error-Message": f"bad token {token}"})
    with pytest.raises(HubError, match=r"refused this with 400") as error:
        published.find(KEY)
    assert token not in str(error.value)
    assert token not in "".join(capfd.readouterr())
