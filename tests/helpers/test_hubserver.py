"""The Hub on loopback speaks with the real client, and does wrong what it is told to do wrong."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import httpx2
import pytest
from hubserver import HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LARGE = bytes(range(256)) * 4096
NAME = "alice/things"


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    """The client of alice, who has a repository of two files."""
    api = HfApi(token=hub.user("alice"))
    api.create_repo(NAME, repo_type="dataset")
    commit(api, {"README.md": b"---\ntags: [a, b]\n---\nwords", "x/1.parquet": LARGE})
    return api


def commit(api: HfApi, files: dict[str, bytes], **options: object) -> str:
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    info = api.create_commit(
        NAME, operations, commit_message="some files", repo_type="dataset", **options
    )
    return info.oid


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_what_is_committed_is_read(api: HfApi, hub: HubServer, tmp_path: Path) -> None:
    place = Path(snapshot_download(NAME, repo_type="dataset", cache_dir=tmp_path / "c"))
    assert (place / "x/1.parquet").read_bytes() == LARGE
    assert (place / "README.md").read_bytes().endswith(b"words")
    info = api.dataset_info(NAME)
    assert info.sha == place.name
    assert info.tags == ["a", "b"]
    assert sorted(s.rfilename for s in info.siblings or []) == sorted(hub.files(NAME))
    files = [f for f in api.list_repo_tree(NAME, recursive=True, repo_type="dataset")]
    sizes = {f.path: f.size for f in files if isinstance(f, RepoFile)}
    assert sizes["x/1.parquet"] == len(LARGE)
    (found,) = api.get_paths_info(NAME, ["x/1.parquet", "none"], repo_type="dataset")
    assert found.lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert [d.id for d in api.list_datasets(author="alice", filter="a")] == [NAME]
    assert [d.id for d in api.list_datasets(author="alice", filter="c")] == []


def test_large_files_lie_elsewhere_and_are_sent_once(api: HfApi, hub: HubServer) -> None:
    commit(api, {"y/2.parquet": LARGE})
    assert hub.count("/upload/") == 1
    hf_hub_download(NAME, "y/2.parquet", repo_type="dataset", token=api.token)
    (stored,) = [r for r in hub.requests if r.path.startswith("/storage/")]
    assert not stored.token


def test_ranges(api: HfApi, hub: HubServer) -> None:
    url = f"{hub.endpoint}/datasets/{NAME}/resolve/main/x/1.parquet"
    with httpx2.Client(follow_redirects=True) as client:
        for header, expected in [("5-9", LARGE[5:10]), ("100-", LARGE[100:]), ("-7", LARGE[-7:])]:
            answer = client.get(url, headers={"Range": f"bytes={header}"})
            assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["Content-Range"] == f"bytes {len(LARGE) - 7}-{len(LARGE) - 1}/1048576"
        beyond = client.get(url, headers={"Range": f"bytes={len(LARGE)}-"})
        assert beyond.status_code == 416
        head = client.head(url, follow_redirects=False)
    assert head.headers["X-Linked-Size"] == str(len(LARGE))
    assert head.headers["X-Linked-ETag"] == f'"{hashlib.sha256(LARGE).hexdigest()}"'
    assert head.headers["X-Repo-Commit"] == api.dataset_info(NAME).sha


def test_a_commit_on_another_parent(api: HfApi, hub: HubServer) -> None:
    before = api.dataset_info(NAME).sha
    commit(api, {"one": b"1"}, parent_commit=before)
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, {"two": b"2"}, parent_commit=before)
    assert status_of(error) == 412
    assert "two" not in hub.files(NAME)
    api.create_commit(
        NAME, [CommitOperationDelete("x/")], commit_message="less", repo_type="dataset"
    )
    assert "x/1.parquet" not in hub.files(NAME)


def test_pull_requests_and_references(api: HfApi, hub: HubServer) -> None:
    oid = commit(api, {"one": b"1"}, create_pr=True)
    assert "one" not in hub.files(NAME)
    assert hub.files(NAME, "refs/pr/1")["one"] == b"1"
    api.create_tag(NAME, tag="v1", repo_type="dataset")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(NAME, tag="v1", repo_type="dataset")
    assert status_of(error) == 409
    refs = api.list_repo_refs(NAME, repo_type="dataset", include_pull_requests=True)
    assert [pr.target_commit for pr in refs.pull_requests or []] == [oid]
    assert [tag.name for tag in refs.tags] == ["v1"]
    hub.merge(NAME, 1)
    assert hub.files(NAME)["one"] == b"1"
    assert "one" not in hub.files(NAME, "v1")


def test_who_may_what(api: HfApi, hub: HubServer) -> None:
    bob = HfApi(token=hub.user("bob"))
    assert bob.whoami()["name"] == "bob"
    with pytest.raises(HfHubHTTPError) as error:
        commit(bob, {"one": b"1"})
    assert status_of(error) == 403
    commit(bob, {"one": b"1"}, create_pr=True)
    hub.repository(NAME).gated = True
    with pytest.raises(GatedRepoError):
        bob.hf_hub_download(NAME, "README.md", repo_type="dataset")
    hub.repository(NAME).private = True
    with pytest.raises(RepositoryNotFoundError):
        bob.dataset_info(NAME)
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token=False).dataset_info(NAME)
    assert status_of(error) == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(token="hf_wrong").dataset_info(NAME)
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(NAME, revision="none")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(NAME, "none", repo_type="dataset")


def test_faults(
    api: HfApi, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hub.fail("/preupload/", status=429, headers={"Retry-After": "7"})
    hub.fail("/upload/", drop_after=1000)
    hub.fail("/upload/", status=503)
    commit(api, {"z.parquet": LARGE[1:]})
    assert waits[0] == 8  # the client adds a second to what it is told
    assert hub.count("/upload/", "PUT") == 4
    url = f"{hub.storage}/storage/{hashlib.sha256(LARGE).hexdigest()}"
    with httpx2.Client() as client:
        hub.fail("/storage/", drop_after=1000)
        with pytest.raises(httpx2.RemoteProtocolError):
            client.get(url)
        hub.fail("/storage/", flip=3)
        assert [a ^ b for a, b in zip(client.get(url).content, LARGE, strict=True)][:5] == [
            *[0, 0, 0, 1, 0]
        ]
        hub.fail("/storage/", ignore_range=True)
        assert client.get(url, headers={"Range": "bytes=9-"}).status_code == 200
    hub.fail("/commit/", lose_answer=True)
    with pytest.raises(httpx2.RemoteProtocolError):
        commit(api, {"lost": b"1"})
    assert hub.files(NAME)["lost"] == b"1"


def test_pull_requests_are_listed_with_what_became_of_them(api: HfApi, hub: HubServer) -> None:
    for number in (1, 2, 3):
        commit(api, {"README.md": b"words %d" % number}, create_pr=True)
    hub.close(NAME, 1)
    hub.merge(NAME, 2)
    listed = api.get_repo_discussions(NAME, repo_type="dataset", discussion_type="pull_request")
    assert [(one.num, one.status) for one in listed] == [(1, "closed"), (2, "merged"), (3, "open")]


def test_a_long_history_comes_in_pages(api: HfApi) -> None:
    oids = [commit(api, {"x": b"%d" % number}) for number in range(7)]
    listed = [one.commit_id for one in api.list_repo_commits(NAME, repo_type="dataset")]
    assert listed[:7] == oids[::-1]
    assert len(listed) == 9  # and the first two
