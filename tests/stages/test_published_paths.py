"""Nothing that ``push`` publishes of what stages made names a folder of the person's machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_stages import BASES, TOY, enter, run_words

from stages.runtime.catalogue import all_stages
from wsssbed_hub.artifacts.key_folder import read_manifest
from wsssbed_hub.artifacts.manifest import Manifest
from wsssbed_hub.artifacts.png_layout import write_pngs
from wsssbed_hub.registry.open_artifact import open_artifact
from wsssbed_hub.registry.pull import open_registry

GIVEN = (  # what a stage is given as a path, in every spelling
    f"sod-toy --data shapes-small {TOY.replace('--init random', '')} --init HOME/made/trunk.pt "
    "--maps hand=HOME/made/hand",
    f"sod-toy --data shapes {TOY.replace('--init random', '')} --weights ./made/sod.safetensors",
    f"cam-sal {TOY} --sal HOME/made/sal/toy-shapes-small",
    f"seg-toy {TOY} --labels made/label/made",
    BASES["pseudo"].replace("made/sal/toy-shapes-small", "HOME/pngs"),
    f"seg-toy {TOY} --labels HOME/out/label/toy-pngs --version 2.0.0",
)


@pytest.fixture(scope="module")
def published(made: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with all of that, and with what further runs make of it."""
    home = tmp_path_factory.mktemp("home") / "alice"
    home.mkdir()
    (home / "made").symlink_to(made)
    write_pngs(open_artifact(made / "sal/toy-shapes-small"), home / "pngs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOME", str(home))
        enter(home, patched)
        for words in GIVEN:
            assert run_words(words.replace("HOME", str(home)), shapes) == 0, words
    place = tmp_path_factory.mktemp("place")
    registry = open_registry(place, create=True)
    folders = [*made.glob("*/*/manifest.yaml"), *home.glob("out/*/*/manifest.yaml")]
    for number, manifest in enumerate(sorted(folders)):
        if len(read_manifest(manifest.parent).versions) == 1:
            registry.publish(manifest.parent, version=f"1.0.{number}")
        else:
            registry.publish(manifest.parent)
    return place


def manifests(place: Path) -> list[Manifest]:
    return [*open_registry(place).manifests()]


def test_every_family_and_kind_is_among_it(published: Path) -> None:
    made = {
        entry.provenance.stage.split("-")[0]
        for manifest in manifests(published)
        for _, _, entry in manifest.entries()
        if entry.provenance
    }
    assert made == {stage.name.split("-")[0] for stage in all_stages().values()}
    assert {manifest.kind for manifest in manifests(published)} == {
        "sal",
        "cam",
        "label",
        "weights",
    }


def test_no_file_names_a_folder(published: Path, made: Path, shapes: Path) -> None:
    private = {b"/alice", bytes(Path.home()), bytes(made), bytes(shapes), b"/tmp/"} - {b"/"}
    for path in published.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in private if word in data], path


def test_the_commands_say_where_things_are_in_a_container(published: Path) -> None:
    commands = {
        " ".join(entry.provenance.command)
        for manifest in manifests(published)
        for _, _, entry in manifest.entries()
        if entry.provenance
    }
    shared = "--target shapes --recipe shapes --device cpu --workers 0"
    start = "python -m stages"
    assert {
        f"{start} sod-toy --data shapes-small {shared} --init /inputs/1/trunk.pt "
        "--maps hand=/inputs/2/hand",
        f"{start} sod-toy --data shapes {shared} --weights /inputs/1/sod.safetensors",
        f"{start} cam-sal {shared} --init random --sal /inputs/1/toy-shapes-small",
        f"{start} seg-toy {shared} --init random --labels /inputs/1/made",
        f"{start} seg-toy {shared} --init random --labels /artifacts/label/toy-pngs "
        "--version 2.0.0",
    } <= commands
