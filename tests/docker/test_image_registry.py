"""A registry of images on loopback: push, pull by digest, run, reproduce."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_under_test import ENGINE, image_of

from stages.runtime.catalogue import find_stage
from stages.small_runs import Made, made_in, small_run
from wsssbed_hub.artifacts.manifest import Entry
from wsssbed_hub.containers.engines import find_image

ADDRESS = "127.0.0.1:5055"
NAME = f"{ADDRESS}/wsssbed/pseudo"
BLOBS = Path("build/registry").resolve()  # kept: the base takes minutes to push
CONFIGURATION = """version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {blobs}}}, delete: {{enabled: true}}}}
http: {{addr: {address}}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    configuration = tmp_path_factory.mktemp("registry") / "config.yml"
    configuration.write_text(CONFIGURATION.format(blobs=BLOBS, address=ADDRESS))
    with open(configuration.with_name("log"), "w") as log:
        command = ["docker-registry", "serve", str(configuration)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{ADDRESS}/v2/", timeout=1)
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def pulled(registry: None) -> str:
    """The image of ``pseudo``, pushed, forgotten, and pulled by its digest."""
    engine("tag", image_of("pseudo"), f"{NAME}:pushed")
    engine("push", f"{NAME}:pushed")
    image = find_image(ENGINE, f"{NAME}:pushed")
    assert image is not None
    assert image.published
    engine("rmi", f"{NAME}:pushed")  # and with the last tag the digest
    assert find_image(ENGINE, image.reference) is None
    engine("pull", image.reference)
    return image.reference


def engine(*arguments: str) -> None:
    done = subprocess.run([ENGINE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def hub(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "import sys; from wsssbed_hub.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_a_pulled_image_made_can_be_reproduced(
    pulled: str,
    outside_runs: tuple[Made, dict[str, dict[str, Entry]]],
    data_root: Path,
    tmp_path: Path,
) -> None:
    made, expected = outside_runs
    (key, wanted) = next(iter(expected["pseudo"].items()))
    place = tmp_path / "registry"
    for kind in ("cam", "sal"):
        assert hub("push", made[kind], "--registry", place).returncode == 0
    run = small_run(find_stage("pseudo"), {"cam": Path("CAM"), "sal": Path("SAL")})
    keys = {
        f"{kind.upper()}": next(k for k in keys_in(expected) if k.startswith(f"{kind}/"))
        for kind in ("cam", "sal")
    }
    arguments = [keys.get(word, word) for word in run.arguments]

    roots = ["--data-root", data_root, "--out", tmp_path / "out"]
    ran = hub("run", "--offline", "--image", pulled, "--registry", place, "pseudo", *arguments,
              *roots)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    entry = made_in(tmp_path / "out")[key]
    assert entry.content == wanted.content
    assert entry.provenance is not None
    assert entry.provenance.image_digest == pulled.partition("@")[2]

    assert hub("push", tmp_path / "out" / key, "--registry", place).returncode == 0
    again = hub("reproduce", key, "--registry", place, "--repository", f"{ADDRESS}/wsssbed",
                "--data-root", data_root, "--to", tmp_path / "again", "--offline")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert f"equal: {entry.content}" in again.stdout


def keys_in(expected: dict[str, dict[str, Entry]]) -> list[str]:
    return [key for entries in expected.values() for key in entries]
