"""Every stage in its image under the run contract: no network, a read-only root file system, no
capabilities, a user id that the image does not know."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from engine_under_test import ENGINE, USER, image_of

from stages.runtime.catalogue import find_stage
from stages.small_runs import Made, SmallRun, contained, container_job, in_order, made_in, small_run
from wsssbed_hub.artifacts.manifest import Entry
from wsssbed_hub.containers.command import engine_command
from wsssbed_hub.containers.engines import find_image

STAGES = [stage.name for stage in in_order()]
Outside = tuple[Made, dict[str, dict[str, Entry]]]


def inspect(image: str) -> dict:
    command = [ENGINE, "image", "inspect", image]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]


@pytest.mark.parametrize("name", STAGES)
def test_the_same_command_makes_the_same_bytes_in_a_container(
    name: str, outside_runs: Outside, data_root: Path, tmp_path: Path
) -> None:
    made, expected = outside_runs
    run = small_run(find_stage(name), made)
    tmp_path.chmod(0o755)
    contained(ENGINE, data_root, tmp_path / "cache", user=USER)(run, tmp_path / "out")
    entries = made_in(tmp_path / "out")
    assert {key: entry.content for key, entry in entries.items()} == {
        key: entry.content for key, entry in expected[name].items()
    }
    image = find_image(ENGINE, image_of(name))
    assert image is not None
    for key, entry in entries.items():
        assert entry.files == expected[name][key].files
        assert entry.provenance is not None
        assert entry.provenance.image == image_of(name)
        assert entry.provenance.image_digest == image.digest
        assert entry.provenance.command[:4] == ["python", "-m", "stages", name]
        assert str(tmp_path) not in " ".join(entry.provenance.command)
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in (tmp_path / "out").rglob("*")}
    assert owners == {USER}


@pytest.mark.parametrize("name", STAGES)
def test_images_say_what_they_are(name: str) -> None:
    config = inspect(image_of(name))["Config"]
    labels = config["Labels"]
    assert labels["wsssbed.stage"] == name
    assert labels["org.opencontainers.image.version"] == version("wsssbed-hub")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.source"].startswith("https://")
    assert {"org.opencontainers.image.revision", "org.opencontainers.image.title"} <= set(labels)
    assert config["Entrypoint"] == ["stage"]


@pytest.mark.parametrize("name", STAGES)
def test_the_bare_name_means_this_version(name: str) -> None:
    """``docker run wsssbed/sod-vst``, which takes ``latest``."""
    assert inspect(f"wsssbed/{name}")["Id"] == inspect(image_of(name))["Id"]


@pytest.mark.parametrize("arguments", [[], ["--data", "duts"]])
def test_run_bare_it_gives_the_whole_command(arguments: list[str]) -> None:
    command = [ENGINE, "run", "--rm", "wsssbed/sod-vst", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Nothing is mounted at /data and /artifacts" in done.stderr
    assert "docker run --rm" in done.stderr
    assert '-v "$PWD/artifacts:/artifacts"' in done.stderr


def test_the_command_that_it_gives_works_and_pins_the_image(
    data_root: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    run = small_run(find_stage("sod-vst"), {})
    bare = [ENGINE, "run", "--rm", "wsssbed/sod-vst", *run.arguments]
    said = subprocess.run(bare, capture_output=True, text=True, check=False).stderr
    script = said[said.index("mkdir -p") : said.index("\n\n(")].replace("--gpus all ", "")
    (tmp_path / "data").symlink_to(data_root)
    done = subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (entry,) = made_in(tmp_path / "artifacts").values()
    image = find_image(ENGINE, image_of("sod-vst"))
    assert image is not None
    assert entry.provenance is not None
    assert entry.provenance.image_digest == image.digest


def test_stages_share_all_their_layers() -> None:
    layers = {tuple(inspect(image_of(name))["RootFS"]["Layers"]) for name in STAGES}
    shortest = min(layers, key=len)
    code = len(inspect(image_of("base"))["RootFS"]["Layers"])
    assert code < len(shortest)
    assert len({one[:-1] for one in layers}) == 1  # the last one is the trial run's, and empty


def test_a_gpu_that_is_not_there_is_an_error(data_root: Path, tmp_path: Path) -> None:
    run = small_run(find_stage("sod-poolnet"), {}, ["--device", "cuda"])
    tmp_path.chmod(0o755)
    job = container_job(ENGINE, run, data_root, tmp_path / "out", tmp_path / "cache", user=USER)
    done = subprocess.run(engine_command(ENGINE, job), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
    assert "--gpus all" in done.stderr


def test_too_little_shared_memory_is_named(data_root: Path, tmp_path: Path) -> None:
    run = small_run(find_stage("sod-poolnet"), {})
    tmp_path.chmod(0o755)
    job = container_job(ENGINE, run, data_root, tmp_path / "out", tmp_path / "cache", user=USER)
    job = replace(job, shm_size="64k")
    done = subprocess.run(engine_command(ENGINE, job), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_leaves_a_checkpoint_from_which_the_same_bytes_follow(
    data_root: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    run = SmallRun(
        "sod-poolnet",
        (*small_run(find_stage("sod-poolnet"), {}).arguments, "--steps", "8"),
    )
    outs = tmp_path / "stopped", tmp_path / "whole"
    jobs = [
        container_job(ENGINE, run, data_root, out, tmp_path / "cache", user=USER) for out in outs
    ]
    command = engine_command(ENGINE, jobs[0])
    named = [*command[:2], "--name", f"wsssbed-{tmp_path.name}", *command[2:]]
    process = subprocess.Popen(named, stderr=subprocess.PIPE, text=True)
    log = outs[0] / "runs" / "sod-poolnet-shapes-small"
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in log.glob("*.jsonl")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    subprocess.run([ENGINE, "stop", named[3]], check=True, capture_output=True)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert (log / "checkpoint.pt").is_file()
    for job in jobs:
        subprocess.run(engine_command(ENGINE, job), check=True, capture_output=True)
    contents = [made_in(out)["sal/poolnet-shapes-small"].content for out in outs]
    assert contents[0] == contents[1]
