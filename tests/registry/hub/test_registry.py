"""The registry on the Hub, against a Hub on loopback and through the real client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hubserver import HubServer
from huggingface_hub import snapshot_download
from samples import IDS, key_folder, maps_of, same
from typer.testing import CliRunner

from wsssbed_hub.artifacts.key_folder import verify_folder
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.cli.app import app
from wsssbed_hub.registry.hub.registry import HubRegistry
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import pull
from wsssbed_hub.utils.errors import HubError, UsageError

NAME = "alice/sal-test"
KEY = Key.parse("sal/test")
SHARD = "shapes/1.0.0/00000.parquet"


def test_what_a_repository_holds(
    tmp_path: Path, hub: HubServer, registry: HubRegistry, token: str
) -> None:
    key_folder(tmp_path / "key")
    steps: list[tuple[int, int]] = []
    keys = registry.publish(tmp_path / "key", progress=lambda done, of: steps.append((done, of)))
    assert [str(key) for key in keys] == ["sal/test@1.0.0"]
    files = hub.files(NAME)
    assert sorted(files) == [".gitattributes", "README.md", "manifest.yaml", SHARD]
    for path in ("manifest.yaml", SHARD):
        assert files[path] == (tmp_path / "key" / path).read_bytes()
    repository = hub.repository(NAME)
    assert repository.refs["refs/tags/1.0.0"] == repository.refs["refs/heads/main"]
    assert len(repository.commits) == 2  # the Hub's own first one, and this
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert not any(token.encode() in data for data in files.values())


def test_pulled_by_key_and_by_address(tmp_path: Path, published: HubRegistry) -> None:
    assert list(map(str, published.keys())) == ["sal/test"]
    assert [manifest.key for manifest in published.manifests()] == ["sal/test"]
    places = [
        pull("sal/test", registry="hf:alice"),
        pull("hf:alice/sal-test@1.0.0"),
        pull("hf:alice/sal-test@main", to=tmp_path / "mine"),
    ]
    for place in places:
        assert verify_folder(place)
        for image_id, maps in maps_of("sal").items():
            assert same(open_artifact(place).read(image_id), maps)


def test_others_read_it(tmp_path: Path, hub: HubServer, registry: HubRegistry) -> None:
    """``datasets.load_dataset`` by config and by tag, and ``snapshot_download``, without us."""
    for number, (target, version) in enumerate(
        [("shapes", "1.0.0"), ("voc12", "1.0.0"), ("shapes", "1.1.0")]
    ):
        maps = maps_of("sal", IDS[: number + 1])
        key_folder(tmp_path / str(number), maps=maps, target=target, version=version)
        registry.publish(tmp_path / str(number))
    place = Path(snapshot_download(NAME, repo_type="dataset", revision="1.1.0"))
    assert len(verify_folder(place)) == 3
    program = """if True:
        import datasets, json
        def read(config, **options):
            rows = datasets.load_dataset("alice/sal-test", config, split="train", **options)
            return [[row["image_id"], *row["saliency"].size, row["saliency"].getpixel((0, 0))]
                for row in rows]
        print(json.dumps([read("shapes"), read("voc12"), read("shapes", revision="1.0.0")]))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def rows(count: int) -> list[Any]:
        maps = maps_of("sal", IDS[:count])
        return [[i, m.shape[1], m.shape[0], int(m[0, 0])] for i, m in maps.items()]

    assert json.loads(done.stdout) == [rows(3), rows(2), rows(1)]


def test_the_tag_of_a_version_has_all_of_its_targets(
    tmp_path: Path, hub: HubServer, published: HubRegistry
) -> None:
    key_folder(tmp_path / "voc", target="voc12")
    published.publish(tmp_path / "voc")
    tagged = yaml.safe_load(hub.files(NAME, "1.0.0")["manifest.yaml"])
    assert sorted(tagged["versions"]["1.0.0"]) == ["shapes", "voc12"]
    before = hub.repository(NAME).refs["refs/tags/1.0.0"]
    key_folder(tmp_path / "new", version="2.0.0")
    published.publish(tmp_path / "new")
    assert hub.repository(NAME).refs["refs/tags/1.0.0"] == before


def test_two_pushes_at_once_lose_nothing(
    tmp_path: Path, hub: HubServer, registry: HubRegistry
) -> None:
    for number in range(3):
        key_folder(tmp_path / str(number), version=f"1.{number}.0")
    registry.publish(tmp_path / "0")
    hub.fail(
        "/commit/", first=lambda: HubRegistry("alice").publish(tmp_path / "1")
    )  # after the push has read the state, and before its commit
    registry.publish(tmp_path / "2")
    assert list(registry.find(KEY).versions) == ["1.0.0", "1.1.0", "1.2.0"]
    assert hub.count("/commit/main", "POST") == 4
    assert {"refs/tags/1.1.0", "refs/tags/1.2.0"} <= set(hub.repository(NAME).refs)


def test_a_push_that_was_cut_goes_on(
    tmp_path: Path, hub: HubServer, registry: HubRegistry, waits: list[float]
) -> None:
    key_folder(tmp_path / "key")
    key_folder(tmp_path / "key", version="1.1.0", maps=maps_of("sal", IDS[:2]))
    hub.fail("/upload/", method="PUT", times=1)
    hub.fail("/upload/", drop_after=10, times=6)  # the client tries six times
    with pytest.raises(HubError, match=r"alice/sal-test: .*connection was cut.*it goes on"):
        registry.publish(tmp_path / "key")
    assert sorted(hub.files(NAME)) == [".gitattributes"]
    sent = hub.count("/upload/", "PUT")
    registry.publish(tmp_path / "key")
    assert hub.count("/upload/", "PUT") == sent + 1  # the first of the two is there
    assert len(verify_folder(Path(snapshot_download(NAME, repo_type="dataset")))) == 2


def test_the_answer_to_a_commit_is_lost(
    tmp_path: Path, hub: HubServer, registry: HubRegistry, waits: list[float]
) -> None:
    key_folder(tmp_path / "key")
    hub.fail("/commit/", lose_answer=True)
    registry.publish(tmp_path / "key")
    assert hub.count("/commit/", "POST") == 1
    assert "refs/tags/1.0.0" in hub.repository(NAME).refs
    key_folder(tmp_path / "new", version="1.1.0")
    hub.fail("/commit/", status=503, times=2)
    registry.publish(tmp_path / "new")
    assert waits == [1, 1, 2]
    assert len(hub.repository(NAME).commits) == 3


def test_pull_requests(
    tmp_path: Path, hub: HubServer, published: HubRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.user("bob"))
    key_folder(tmp_path / "new", version="1.1.0")
    with pytest.raises(HubError, match=r"your token does not allow this"):
        published.publish(tmp_path / "new")
    url = f"{hub.endpoint}/datasets/{NAME}/discussions/1"
    assert published.propose(tmp_path / "new") == (url, False)
    assert published.propose(tmp_path / "new") == (url, True)  # it is not opened again
    assert list(published.find(KEY).versions) == ["1.0.0"]
    assert verify_folder(pull("hf:alice/sal-test@refs/pr/1"))
    hub.merge(NAME, 1)
    monkeypatch.setenv("HF_TOKEN", hub.user("alice"))
    published.publish(tmp_path / "new")  # what is left to do is the tag
    assert "refs/tags/1.1.0" in hub.repository(NAME).refs
    assert pull("sal/test@1.1.0", registry=published)
    with pytest.raises(UsageError, match="holds all of"):
        published.propose(tmp_path / "new")
    with pytest.raises(UsageError, match="There is no carol/sal-test on"):
        HubRegistry("carol").propose(tmp_path / "new")


def test_the_commands(
    tmp_path: Path, hub: HubServer, token: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, arguments)
        if isinstance(done.exception, HubError):
            assert done.exception.exit_code == code
            return str(done.exception)
        assert done.exit_code == code, done.output
        return done.output

    key_folder(tmp_path / "key")
    assert run("push", str(tmp_path / "key"), "--to", "hf:alice") == (
        "sal/test@1.0.0 is in hf:alice\n"
    )
    assert "".join(capfd.readouterr()) == ""  # nothing of the client's own bars and warnings
    assert "sal/test" in run("list", "--registry", "hf:alice")
    assert "version 1.0.0" in run("show", "hf:alice/sal-test")
    run("pull", "hf:alice/sal-test@1.0.0", "--as", "png", "--to", str(tmp_path / "png"))
    assert sorted(path.stem for path in (tmp_path / "png").glob("*.png")) == IDS
    assert "ok  sal/test@1.0.0" in run("verify", "hf:alice/sal-test")
    key_folder(tmp_path / "key", version="1.1.0")
    url = f"{hub.endpoint}/datasets/{NAME}/discussions/1\n"
    assert run("push", str(tmp_path / "key"), "--to", "hf:alice", "--pr") == url
    elsewhere = run("push", str(tmp_path / "key"), "--to", str(tmp_path / "x"), "--pr", code=2)
    assert "--pr opens a pull request on the Hub" in elsewhere
