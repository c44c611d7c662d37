"""Making an artifact again: the command that is run, and how the result is compared.

The engine is a small program that "runs" a stage by writing a key folder where /artifacts is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import maps_of

from wsssbed_hub.artifacts.key_folder import complete
from wsssbed_hub.artifacts.keys import Key
from wsssbed_hub.artifacts.manifest import Environment, Ingredient, MethodCitation, Provenance
from wsssbed_hub.artifacts.shard_writer import write_maps
from wsssbed_hub.containers.reproduce import (
    Published,
    find_published,
    locate_image,
    stage_arguments,
)
from wsssbed_hub.registry.pull import open_registry
from wsssbed_hub.utils.errors import HubError

IMAGE = "sha256:" + "ab" * 32
DIGEST = "sha256:" + "cd" * 32


def artifact(
    folder: Path,
    maps: dict[str, Any],
    *,
    kind: str = "sal",
    command: tuple[str, ...] = ("--data", "shapes", "--target", "shapes"),
    **provenance: Any,
) -> Path:
    """A key folder that `sod-test` says to have made in an image."""
    stage = "sod-test"
    settings: dict[str, Any] = {
        "stage": stage,
        "command": ["python", "-m", "stages", stage, *command],
        "project_version": "0.1.0",
        "image": f"wsssbed/{stage}:0.1.0",
        "image_digest": IMAGE,
        "date": "2026-01-02T00:00:00Z",
        "environment": Environment(python="3.11", torch="2.14.1", deterministic=True),
    }
    complete(
        folder,
        write_maps(folder, kind, list(maps), maps.__getitem__, settings={}),
        key=f"{kind}/test",
        target="shapes",
        version="1.0.0",
        title="Maps for a test",
        method=MethodCitation(name="Test"),
        provenance=Provenance(**(settings | provenance)),
    )
    return folder


# The command


def published(tmp_path: Path, command: tuple[str, ...], *made_from: Ingredient) -> Published:
    provenance = Provenance(
        stage="cam-test",
        command=["python", "-m", "stages", "cam-test", *command],
        project_version="0.1.0",
        date="2026-01-02T00:00:00Z",  # type: ignore[arg-type]
        environment=Environment(python="3.11"),
        made_from=list(made_from),
    )
    folder = artifact(tmp_path / "key", maps_of("sal"))
    found = find_published_in(folder, tmp_path)
    return Published(Key.parse("cam/test"), folder, found.chosen, provenance)


def find_published_in(folder: Path, tmp_path: Path) -> Published:
    place = tmp_path / "place"
    open_registry(place, create=True).publish(folder)
    return find_published("sal/test", None, place)


def test_the_command_is_the_published_one_with_inputs_as_they_are_here(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"weights")
    sha = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    command = (
        *("--target", "shapes", "--sal=/artifacts/sal/x", "--init", "/inputs/2/net.pth"),
        *("--out", "/artifacts", "--data-root=/data", "--fresh", "--seed", "3"),
    )
    found = published(
        tmp_path,
        command,
        Ingredient(role="sal", key="sal/x@1.2.0", digest=DIGEST),
        Ingredient(role="initial-weights", file="net.pth", digest=sha),
    )
    assert stage_arguments(found, tmp_path) == [
        *("--target", "shapes", "--sal", "sal/x@1.2.0"),
        *("--init", str(tmp_path / "net.pth"), "--seed", "3"),
    ]


def test_words_that_are_no_files_stay(tmp_path: Path) -> None:
    timm = Ingredient(role="initial-weights", file="timm", digest=DIGEST)
    command = ("--init", "timm", "--labels", "ground-truth")
    assert tuple(stage_arguments(published(tmp_path, command, timm), None)) == command


def test_files_that_are_missing_or_others_are_errors(tmp_path: Path) -> None:
    given = Ingredient(role="weights", file="net.pth", digest=DIGEST)
    found = published(tmp_path, ("--weights", "/inputs/1/net.pth"), given)
    with pytest.raises(HubError, match=r"net\.pth.*--inputs"):
        stage_arguments(found, None)
    (tmp_path / "net.pth").write_bytes(b"another")
    with pytest.raises(HubError, match=f"another net.pth than the {DIGEST}"):
        stage_arguments(found, tmp_path)


# The whole

ENGINE = """#!{python}
import json, shutil, sys
arguments = sys.argv[1:]
if arguments[:2] == ["image", "inspect"]:
    if arguments[2] != {here!r}:
        sys.exit("Error: No such image")
    print(json.dumps([{{"Id": {here!r}, "RepoDigests": []}}]))
elif arguments[0] == "pull":
    sys.exit("Error: no such host")
elif arguments[0] == "run":
    mounts = [word for word in arguments if word.endswith("target=/artifacts")]
    out = mounts[0].split("source=")[1].split(",")[0]
    shutil.copytree({made!r}, out + "/sal/test")
    print(json.dumps(arguments), file=open({log!r}, "w"))
    sys.exit({code})
"""


@pytest.fixture
def reproduce(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(
        before: dict[str, Any],
        after: dict[str, Any],
        *options: str,
        here: str = IMAGE,
        code: int = 0,
    ) -> subprocess.CompletedProcess[str]:
        place = tmp_path / "place"
        open_registry(place, create=True).publish(artifact(tmp_path / "before", before))
        made = artifact(tmp_path / "after", after)
        (tmp_path / "bin").mkdir()
        (tmp_path / "data").mkdir()
        engine = tmp_path / "bin" / "docker"
        log = str(tmp_path / "log")
        engine.write_text(
            ENGINE.format(python=sys.executable, here=here, made=str(made), log=log, code=code)
        )
        engine.chmod(0o755)
        program = "import sys; from wsssbed_hub.cli.app import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "reproduce", "sal/test", *options]
        command += ["--registry", str(place), "--data-root", str(tmp_path / "data")]
        environment = os.environ | {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return call


def test_the_same_result_is_equal(
    reproduce: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    maps = maps_of("sal")
    done = reproduce(maps, maps)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("equal: sha256:")
    called = json.loads((tmp_path / "log").read_text())
    assert called[called.index(IMAGE) :] == [IMAGE, "--data", "shapes", "--target", "shapes"]
    assert f"WSSSBED_IMAGE_DIGEST={IMAGE}" in called


def test_another_result_is_different_with_the_figures(
    reproduce: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    maps = maps_of("sal", height=10, width=10)
    after = dict(maps)
    first = min(maps)
    after[first] = maps[first] ^ 0x80  # every pixel of one image by 128 levels
    done = reproduce(maps, after, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["verdict"] == "different"
    assert found["share"] == pytest.approx(1 / 3)
    assert found["worst"] == [{"name": first, "numbers": 100, "differing": 100, "largest": 128.0}]
    assert "was not reproduced" in done.stderr


def test_a_few_pixels_are_within_tolerance(
    reproduce: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    maps = maps_of("sal", height=10, width=10)
    after = {image_id: map_.copy() for image_id, map_ in maps.items()}
    after[min(maps)][0, 0] ^= 0x80
    done = reproduce(maps, after, "--tolerance", "0.01")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("within tolerance: 0.3333% of the pixels differ")


def test_an_image_that_is_nowhere_is_named(
    reproduce: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = reproduce(maps_of("sal"), maps_of("sal"), here="sha256:other")
    assert done.returncode == 1
    assert f"wsssbed/sod-test@{IMAGE} is neither here nor" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_container_that_fails_is_said(
    reproduce: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = reproduce(maps_of("sal"), maps_of("sal"), code=3)
    assert done.returncode == 1
    assert "exit code 3" in done.stderr


def test_what_no_image_made_says_how_it_was_made(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "key", maps_of("sal"), image=None, image_digest=None)
    found = find_published_in(folder, tmp_path)
    with pytest.raises(HubError, match="python -m stages sod-test --data shapes"):
        locate_image(found, "docker", None)


def test_what_no_stage_made_is_said(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "key", maps_of("sal"))
    text = (folder / "manifest.yaml").read_text().replace("- stages\n", "- others\n")
    (folder / "manifest.yaml").write_text(text)
    with pytest.raises(HubError, match="not made by a stage but by `python -m others"):
        find_published_in(folder, tmp_path)
