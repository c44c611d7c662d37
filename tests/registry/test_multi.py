"""Several registries in order, and the user's own list of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killing import exit_code, in_child
from samples import Hub, key_folder, maps_of, noise, same
from typer.testing import CliRunner

from wsssbed_hub.cli.app import app
from wsssbed_hub.registry import multi as registries
from wsssbed_hub.registry.folder import FolderRegistry
from wsssbed_hub.registry.index import IndexRegistry
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import open_registry, pull, registries_in_use
from wsssbed_hub.utils.errors import HubError, UsageError
from wsssbed_hub.utils.settings import registry_list


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("WSSSBED_REGISTRY")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Both have sal/both, with other maps; each has a key of its own."""
    places = (tmp_path / "a", tmp_path / "b")
    for number, place in enumerate(places):
        maps = {"x": noise(number)}
        for name in ("both", f"only{number}"):
            key_folder(tmp_path / f"{name}{number}", maps=maps, name=name)
            FolderRegistry(place).publish(tmp_path / f"{name}{number}")
    return places


def read(key: str, registry: str | None = None) -> int:
    """Which of the two registries a key came from."""
    maps = open_artifact(key, registry=registry).read("x")
    return next(number for number in (0, 1) if same(maps, noise(number)))


def test_the_first_that_has_it(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    assert [read("sal/both", f"{a},{b}"), read("sal/both", f" {b} , {a},")] == [0, 1]
    assert [read("sal/only0", f"{a},{b}"), read("sal/only1", f"{a},{b}")] == [0, 1]
    place = open_registry(f"{a},{b}")
    assert list(map(str, place.keys())) == ["sal/both", "sal/only0", "sal/only1"]
    assert [m.key for m in place.manifests()] == ["sal/both", "sal/only0", "sal/only1"]
    with pytest.raises(UsageError, match=rf"no sal/none in {a}\..*\n.*no sal/none in {b}\."):
        pull("sal/none", registry=f"{a},{b}")
    key_folder(tmp_path / "new", name="new", maps=maps_of("sal"))
    place.publish(tmp_path / "new")
    assert (a / "wsssbed/sal-new").exists()
    assert not (b / "wsssbed/sal-new").exists()


def test_one_that_cannot_be_read_is_not_passed_over(two: tuple[Path, Path]) -> None:
    a, b = two
    (a / "wsssbed/sal-both/manifest.yaml").write_text("colour: blue")
    with pytest.raises(HubError, match="not a valid manifest"):
        read("sal/both", f"{a},{b}")
    with pytest.raises(UsageError, match=r"no registry at .*missing"):
        read("sal/both", f"{a},{a / 'missing'}")


def test_what_is_in_use(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = map(str, two)
    own = (str(tmp_path / "data/wsssbed-hub/registry"), "your own folder")
    assert registries_in_use() == [own]
    registries.add(b)
    registries.add(a)
    listed = str(registry_list())
    assert registries_in_use() == [own, (b, listed), (a, listed)]
    assert read("sal/both") == 1
    monkeypatch.setenv("WSSSBED_REGISTRY", f"{a},{b}")
    assert registries_in_use() == [(a, "WSSSBED_REGISTRY"), (b, "WSSSBED_REGISTRY")]
    assert read("sal/both") == 0
    monkeypatch.setenv("WSSSBED_REGISTRY", " , ")
    assert registries_in_use()[0] == own


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexRegistry:
    """An index of record with one key that a registry has too, over another target, and one that
    only it has."""
    root = tmp_path / "index"
    (root / "sal").mkdir(parents=True)
    for name in ("both", "only-here"):
        manifest = key_folder(tmp_path / "indexed" / name, name=name, target="voc12")
        path = root / "sal" / f"{name}.yaml"
        path.write_text(manifest.dump())
    monkeypatch.setattr("wsssbed_hub.registry.index.INDEX", root)
    monkeypatch.setattr(IndexRegistry.__init__, "__defaults__", (root,))
    return IndexRegistry()


@pytest.mark.parametrize("named", [True, False])
def test_the_index_comes_last(
    two: tuple[Path, Path],
    index: IndexRegistry,
    named: bool,
    monkeypatch: pytest.MonkeyPatch,
    command: Hub,
) -> None:
    """Behind WSSSBED_REGISTRY as behind the list, and not behind what --registry names."""
    a, b = map(str, two)
    if named:
        monkeypatch.setenv("WSSSBED_REGISTRY", f"{a},{b}")
    else:
        registries.add(a)
        registries.add(b)

    def keys(*words: str) -> list[tuple[str, str]]:
        rows = json.loads(command("list", "--json", *words).out)
        return [(row["key"], row["target"]) for row in rows]

    assert sorted(keys()) == [
        ("sal/both", "shapes"),
        ("sal/both", "voc12"),
        ("sal/only-here", "voc12"),
        ("sal/only0", "shapes"),
        ("sal/only1", "shapes"),
    ]
    assert sorted(keys("--registry", a)) == [("sal/both", "shapes"), ("sal/only0", "shapes")]
    assert same(open_artifact("sal/both", "shapes").read("x"), noise(0))
    assert command("show", "sal/only-here").code == 0
    refused = command("show", "sal/only-here", "--registry", a)
    assert refused.code == 2
    assert "There is no sal/only-here" in refused.err
    missing = command("show", "sal/only-her")
    assert missing.code == 2
    assert f"the index of wsssbed-hub ({index.root}). Did you mean 'sal/only-here'" in missing.err
    nothing = command("list", "--kind", "weights").err
    assert nothing.startswith("No artifacts with --kind weights in ")
    assert f"{a},{b} and the index of wsssbed-hub" in nothing
    rows = json.loads(command("registry", "list", "--json").out)
    assert rows[-1] == {"registry": str(index), "from": "wsssbed-hub"}
    assert [row["registry"] for row in rows[-3:-1]] == [a, b]


def test_a_key_is_asked_of_no_more_registries_than_it_takes(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are keys that look alike looked for where the next one has the key."""
    a, b = two
    with monkeypatch.context() as patch:
        patch.delattr(FolderRegistry, "keys")
        patch.setattr(FolderRegistry, "__abstractmethods__", frozenset())
        assert read("sal/only1", f"{a},{b}") == 1
    (b / "wsssbed/sal-both/manifest.yaml").write_text("colour: blue")
    assert read("sal/both", f"{a},{b}") == 0


def test_push_goes_to_the_first(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Hub
) -> None:
    a, b = two
    key_folder(tmp_path / "new", name="new")
    monkeypatch.setenv("WSSSBED_REGISTRY", f"{b},{a}")
    assert command("push", tmp_path / "new").out == f"sal/new@1.0.0 is in {b}\n"
    assert (b / "wsssbed/sal-new").exists()
    assert not (a / "wsssbed/sal-new").exists()


def test_push_goes_to_one(two: tuple[Path, Path], tmp_path: Path, command: Hub) -> None:
    a, b = two
    key_folder(tmp_path / "new", name="new")
    refused = command("push", tmp_path / "new", "--to", f"{a},{b}")
    assert (refused.code, "one registry at a time" in refused.err) == (2, True)
    assert not (a / "wsssbed/sal-new").exists()


def test_help_says_where(command: Hub) -> None:
    def said(name: str) -> str:
        return "".join(command(name, "--help").out.split())  # lines end anywhere

    for name in ("list", "pull", "verify"):
        assert "`wsssbed-hubregistrylist`" in said(name)
        assert "envvar:WSSSBED_REGISTRY" not in said(name)
    assert "thefirstofWSSSBED_REGISTRY,elseyourownfolder" in said("push")


def test_the_list_is_kept(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["registry", *arguments])
        if isinstance(done.exception, HubError):
            assert done.exception.exit_code == code
            return str(done.exception)
        assert done.exit_code == code, done.output
        return done.output

    a, b = two
    monkeypatch.chdir(a.parent)
    run("add", "a")  # the whole path is written down
    path = registry_list()
    assert path.read_text() == f"{a}\n"
    path.write_text(f"# mine\n{a}\n")
    run("add", "hf:wsssbed")
    run("add", str(b))
    listed = [row["registry"] for row in json.loads(run("list", "--json"))]
    assert listed[1:-1] == [str(a), "hf:wsssbed", str(b)]
    run("remove", "hf:wsssbed")
    assert path.read_text() == f"# mine\n{a}\n{b}\n"
    assert "already" in run("add", str(a), code=2)
    assert "is not in" in run("remove", "hf:other", code=2)
    for wrong in ("hf:a/b", "nothing-here", "xyz://a", f"{a},{b}"):
        run("add", wrong, code=2)
    said = run("add", "https://me:secret@example.org/maps", code=2)
    assert said.startswith("https://example.org/maps: a password is not written down")
    assert path.read_text() == f"# mine\n{a}\n{b}\n"


def test_several_change_the_list_at_once() -> None:
    adds = [in_child(lambda n=n: registries.add(f"hf:name{n}")) for n in range(6)]
    assert [exit_code(pid) for pid in adds] == [0] * 6
    assert sorted(registries.configured()) == [f"hf:name{n}" for n in range(6)]
