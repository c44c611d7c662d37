"""The container command lines, and what `wsssbed-hub run` does with them: against engines that are
small programs which write down how they were called."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest

from wsssbed_hub.containers.command import (
    Job,
    Mount,
    apptainer_command,
    default_image,
    engine_command,
    shell,
    without_tag,
)
from wsssbed_hub.utils.errors import UsageError

IMAGE = f"wsssbed/sod-poolnet:{version('wsssbed-hub')}"
ID = "sha256:" + "ab" * 32
PUSHED = "sha256:" + "cd" * 32


def job(**changes: object) -> Job:
    mounts = (Mount(Path("/d"), "/data"), Mount(Path("/a"), "/artifacts", read_only=False))
    settings: dict[str, object] = {
        "stage": "sod-poolnet",
        "image": f"wsssbed/sod-poolnet@{PUSHED}",
        "digest": PUSHED,
        "arguments": ("--data", "duts"),
        "mounts": mounts,
        "user": (1000, 100),
    }
    return Job(**(settings | changes))  # type: ignore[arg-type]


def follows(command: list[str], option: str, value: str) -> bool:
    return (option, value) in pairwise(command)


def test_a_container_has_no_privileges_and_writes_nowhere_else() -> None:
    command = engine_command("docker", job())
    assert command[:2] == ["docker", "run"]
    assert "--read-only" in command
    assert "--init" in command
    assert follows(command, "--cap-drop", "ALL")
    assert follows(command, "--security-opt", "no-new-privileges")
    assert follows(command, "--user", "1000:100")
    assert follows(command, "--mount", "type=bind,source=/d,target=/data,readonly")
    assert follows(command, "--mount", "type=bind,source=/a,target=/artifacts")
    assert command[-3:] == [f"wsssbed/sod-poolnet@{PUSHED}", "--data", "duts"]


def test_the_image_digest_goes_into_the_provenance() -> None:
    assert follows(engine_command("docker", job()), "--env", f"WSSSBED_IMAGE_DIGEST={PUSHED}")
    assert "WSSSBED_IMAGE_DIGEST" not in " ".join(engine_command("docker", job(digest=None)))


def test_podman_keeps_the_callers_id_and_takes_gpus_by_cdi() -> None:
    command = engine_command("podman", job(gpus=("0", "2")))
    assert follows(command, "--userns", "keep-id")
    assert follows(command, "--device", "nvidia.com/gpu=0")
    assert follows(command, "--device", "nvidia.com/gpu=2")
    assert "--userns" not in engine_command("podman", job(user=(0, 0)))


@pytest.mark.parametrize(
    ("gpus", "words"), [((), None), (("all",), "all"), (("0", "2"), '"device=0,2"')]
)
def test_docker_takes_gpus_as_csv(gpus: tuple[str, ...], words: str | None) -> None:
    command = engine_command("docker", job(gpus=gpus))
    assert ("--gpus" in command) == (words is not None)
    assert words is None or follows(command, "--gpus", words)


def test_offline_means_no_network_at_all() -> None:
    assert "--network" not in engine_command("docker", job())
    command = engine_command("docker", job(offline=True))
    assert follows(command, "--network", "none")
    assert follows(command, "--env", "HF_HUB_OFFLINE=1")
    assert follows(apptainer_command(job(offline=True)), "--network", "none")


def test_several_processes_are_started_by_torchrun_in_the_container() -> None:
    command = engine_command("docker", job(processes=4))
    image = command.index(f"wsssbed/sod-poolnet@{PUSHED}")
    assert follows(command, "--entrypoint", "torchrun")
    assert follows(command[image:], "--nproc-per-node", "4")
    assert command[-5:] == ["-m", "stages", "sod-poolnet", "--data", "duts"]


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a b", "a=b", "ä$(x)"])
def test_odd_folder_names_survive_the_mount_option_and_the_shell(name: str) -> None:
    import csv

    command = engine_command("docker", job(mounts=(Mount(Path("/m") / name, "/data"),)))
    (fields,) = csv.reader([command[command.index("--mount") + 1]])  # how docker reads it
    assert f"source=/m/{name}" in fields
    assert shlex.split(shell(command).replace("\\\n", " ")) == command


def test_what_is_printed_is_one_option_a_line() -> None:
    text = shell(engine_command("docker", job()))
    assert text.startswith("docker run \\\n  --rm \\\n  --init \\\n")
    assert "\n  --cap-drop ALL \\\n" in text


def test_apptainer_binds_the_cache_as_home_and_takes_the_image_by_digest() -> None:
    mounts = (Mount(Path("/d"), "/data"), Mount(Path("/c"), "/cache", read_only=False))
    command = apptainer_command(job(mounts=mounts, gpus=("1",)))
    assert command[:2] == ["apptainer", "run"]
    for option in ("--containall", "--writable-tmpfs", "--nv"):
        assert option in command
    assert follows(command, "--bind", "/d:/data:ro")
    assert follows(command, "--home", "/c:/cache")
    assert follows(command, "--env", "CUDA_VISIBLE_DEVICES=1")
    assert command[-3:] == [f"docker://wsssbed/sod-poolnet@{PUSHED}", "--data", "duts"]
    assert apptainer_command(job(image="poolnet.sif"))[-3] == "poolnet.sif"


def test_apptainer_cannot_bind_every_path() -> None:
    with pytest.raises(UsageError, match="colon"):
        apptainer_command(job(mounts=(Mount(Path("/a:b"), "/data"),)))


def test_the_page_on_running_images_shows_what_is_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "running-images.md").read_text()
    block = next(b for b in page.split("```\n") if b.startswith("docker run \\\n  --rm"))
    mounts = (
        Mount(Path("/home/me/data"), "/data"),
        Mount(Path("/home/me/artifacts"), "/artifacts", read_only=False),
        Mount(Path("/home/me/.cache/wsssbed-hub/stages"), "/cache", read_only=False),
        Mount(Path("/home/me/resnet50_caffe.pth"), "/inputs/1/resnet50_caffe.pth"),
    )
    shown = job(
        image="wsssbed/sod-poolnet@sha256:…",
        digest="sha256:…",
        user=(1000, 1000),
        gpus=("all",),
        mounts=mounts,
        arguments=("--data", "duts", "--init", "/inputs/1/resnet50_caffe.pth"),
    )
    assert shlex.split(block.replace("\\\n", " ")) == engine_command("docker", shown)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("wsssbed/x:1.0", "wsssbed/x"),
        ("host:5000/wsssbed/x", "host:5000/wsssbed/x"),
        ("host:5000/wsssbed/x:1.0", "host:5000/wsssbed/x"),
        (f"wsssbed/x@{ID}", "wsssbed/x"),
        (f"host:5000/x:1@{ID}", "host:5000/x"),
    ],
)
def test_names_without_tags(image: str, name: str) -> None:
    assert without_tag(image) == name


def test_a_stage_is_not_an_option_or_a_path() -> None:
    assert default_image("sod-poolnet", "h:5000/w/", "1.2.3") == "h:5000/w/sod-poolnet:1.2.3"
    for wrong in ("../x", "--help", "Sod", "sod_poolnet", ""):
        with pytest.raises(UsageError, match="not a stage"):
            default_image(wrong, "wsssbed", "1.0.0")


# The command line

ENGINE = """#!{python}
import json, sys
arguments = sys.argv[1:]
images = {images}
if arguments[:2] == ["image", "inspect"]:
    if arguments[2] not in images:
        sys.exit("Error: No such image: " + arguments[2])
    print(json.dumps([images[arguments[2]]]))
elif arguments[:2] == ["image", "ls"]:
    print("wsssbed/sod-poolnet")
elif arguments[0] == "ps":
    sys.exit({ps!r} or 0)
elif arguments[0] == "run":
    print(json.dumps(arguments))
    sys.exit({code})
"""


class Machine:
    """A PATH with the engines that a test wants, and folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.programs = root / "bin"
        for name in ("bin", "data", "cache"):
            (root / name).mkdir()

    def install(
        self,
        name: str = "docker",
        *,
        images: Mapping[str, object] | None = None,
        ps: str = "",
        code: int = 0,
    ) -> None:
        local = {IMAGE: {"Id": ID, "RepoDigests": []}}
        text = ENGINE.format(python=sys.executable, images=images or local, ps=ps, code=code)
        self.script(name, text)

    def script(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.programs),
            "HOME": str(self.root),
            "WSSSBED_DATA": str(self.root / "data"),
            "WSSSBED_CACHE": str(self.root / "cache"),
        }
        program = "import sys; from wsssbed_hub.cli.app import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_run_prints_the_command_and_becomes_it(machine: Machine) -> None:
    machine.install(code=7)
    done = machine.call("run", "--offline", "sod-poolnet", "--data", "duts", "--seed=3")
    assert done.returncode == 7  # the container's own
    called = ["docker", *json.loads(done.stdout)]
    printed = done.stderr[done.stderr.index("docker run") :]
    assert shlex.split(printed.replace("\\\n", " ")) == called
    assert called[-5:] == [ID, "--data", "duts", "--seed", "3"]
    assert follows(called, "--user", f"{os.getuid()}:{os.getgid()}")
    assert follows(called, "--env", f"WSSSBED_IMAGE_DIGEST={ID}")
    folders = [machine.root / "artifacts", machine.root / "cache" / "stages"]
    for folder in folders:  # made by us: an engine would make them as root
        assert folder.stat().st_uid == os.getuid()


def test_print_only_prints(machine: Machine) -> None:
    machine.install()
    done = machine.call("run", "--print", "sod-poolnet", "--data", "duts")
    assert done.returncode == 0, done.stderr
    mkdir, docker = shlex.split(done.stdout.partition("\n")[0]), done.stdout.partition("\n")[2]
    assert mkdir[:2] == ["mkdir", "-p"]
    assert shlex.split(docker.replace("\\\n", " "))[:2] == ["docker", "run"]
    assert not (machine.root / "artifacts").exists()


def test_print_without_an_engine_says_that_nothing_pins_the_image(machine: Machine) -> None:
    done = machine.call("run", "--print", "sod-poolnet", "--data", "duts")
    assert done.returncode == 0, done.stderr
    assert f"{IMAGE} --data duts" in done.stdout.replace(" \\\n ", "")
    assert "no digest pins it" in done.stderr


def test_apptainer_of_a_pushed_image_takes_its_digest(machine: Machine) -> None:
    name = f"wsssbed/sod-poolnet@{PUSHED}"
    image = {"Id": ID, "RepoDigests": ["other/x@" + ID, name]}
    machine.install(images={IMAGE: image})
    done = machine.call("run", "--apptainer", "sod-poolnet", "--data", "duts")
    assert f"docker://{name}" in done.stdout
    assert f"WSSSBED_IMAGE_DIGEST={PUSHED}" in done.stdout
    assert "--nv" in done.stdout  # the node it will run on has GPUs, if this one has none


@pytest.mark.parametrize(
    ("names", "image"),
    [
        ([f"localhost/wsssbed/sod-poolnet@{PUSHED}"], ID),  # podman's own, known to nobody else
        ([f"docker.io/wsssbed/sod-poolnet@{PUSHED}"], f"docker.io/wsssbed/sod-poolnet@{PUSHED}"),
    ],
)
def test_podman_pins_what_was_in_a_registry(machine: Machine, names: list[str], image: str) -> None:
    found = {"Id": ID.removeprefix("sha256:"), "RepoDigests": names}
    machine.install("podman", images={IMAGE: found})
    called = json.loads(machine.call("run", "sod-poolnet", "--data", "duts").stdout)
    assert called[-3:] == [image, "--data", "duts"]


def test_apptainer_of_an_image_that_was_never_pushed_takes_it_from_docker(machine: Machine) -> None:
    machine.install()
    done = machine.call("run", "--apptainer", "sod-poolnet", "--data", "duts")
    assert f"docker-daemon:{IMAGE}" in done.stdout


def test_the_stages_help_is_the_stages(machine: Machine) -> None:
    machine.install()
    done = machine.call("run", "sod-poolnet", "--help")
    assert json.loads(done.stdout)[-1] == "--help"


def test_without_an_engine_it_says_what_to_install(machine: Machine) -> None:
    done = machine.call("run", "sod-poolnet", "--data", "duts")
    assert done.returncode == 1
    assert "Neither docker nor podman is installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_that_sleeps_is_named(machine: Machine) -> None:
    machine.install(ps="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    done = machine.call("run", "sod-poolnet", "--data", "duts")
    assert done.returncode == 1
    assert "systemctl start docker" in done.stderr


def test_a_user_outside_the_group_is_told_of_it(machine: Machine) -> None:
    machine.install(ps="permission denied while trying to connect to the Docker daemon socket")
    done = machine.call("run", "sod-poolnet", "--data", "duts")
    assert done.returncode == 1
    assert "usermod -aG docker" in done.stderr


def test_a_missing_image_says_how_to_get_it(machine: Machine) -> None:
    machine.install()
    done = machine.call("run", "sod-polnet", "--data", "duts")
    assert done.returncode == 1
    assert "make image-sod-polnet" in done.stderr
    assert f"docker pull wsssbed/sod-polnet:{version('wsssbed-hub')}" in done.stderr
    assert "Did you mean 'sod-poolnet'?" in done.stderr


def test_gpus_that_are_not_there_are_an_error(machine: Machine) -> None:
    machine.install()
    done = machine.call("run", "--gpus", "all", "sod-poolnet", "--data", "duts")
    assert done.returncode == 1
    assert "nvidia-smi lists 0 GPUs" in done.stderr


def test_gpus_that_are_there_are_given_unasked(machine: Machine) -> None:
    machine.install()
    machine.script("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA A'\necho 'GPU 1: NVIDIA A'\n")
    called = json.loads(machine.call("run", "sod-poolnet", "--data", "duts").stdout)
    assert follows(called, "--gpus", "all")
    called = json.loads(machine.call("run", "--gpus", "1", "sod-poolnet", "--data", "d").stdout)
    assert follows(called, "--gpus", '"device=1"')
    assert machine.call("run", "--gpus", "2", "sod-poolnet", "--data", "d").returncode == 1


def test_podman_without_cdi_is_told_of_it(machine: Machine) -> None:
    machine.install("podman")
    machine.script("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA A'\n")
    done = machine.call("run", "sod-poolnet", "--data", "duts")
    assert done.returncode == 1
    assert "nvidia-ctk cdi generate" in done.stderr


def test_an_engine_that_is_none_is_a_usage_error(machine: Machine) -> None:
    assert machine.call("run", "--engine", "rkt", "sod-poolnet", "--data", "d").returncode == 2
