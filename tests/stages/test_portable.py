"""``--deterministic`` gives the same bytes on another processor: one that qemu plays.

A Haswell differs from the machines that this runs on in its maker or in its instruction sets, and
emulated it has the exact reciprocal roots that no hardware has: what still depended on any of these
would show. Twenty times slower than the real thing, so a few steps of small networks.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wsssbed_hub.artifacts.key_folder import read_manifest

QEMU = shutil.which("qemu-x86_64")
STAGES = {
    # Adam; saliency maps
    "sod-poolnet": ("--data", "shapes-small", "--recipe", "shapes", "--batch-size", "2"),
    # SGD with momentum; the digest of weights shows every bit
    "seg-deeplabv2": ("--labels", "ground-truth", "--recipe", "shapes", "--batch-size", "2"),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64 (Debian's qemu-user)"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="qemu plays an x86-64"),
]


def contents(out: Path) -> dict[str, str]:
    """The content digests of all that a stage made, by key and target."""
    found = {}
    for path in sorted(out.glob("*/*/manifest.yaml")):
        manifest = read_manifest(path.parent)
        for targets in manifest.versions.values():
            found |= {f"{manifest.key} {name}": str(e.content) for name, e in targets.items()}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_another_processor_computes_the_same_bytes(
    stage: str, shapes: Path, tmp_path: Path
) -> None:
    given = ("--target", "shapes", "--data-root", str(shapes), "--init", "random", "--workers", "0")
    given += ("--steps", "2", "--limit", "3", "--deterministic", *STAGES[stage])
    made = []
    for name, processor in {"here": (), "haswell": (str(QEMU), "-cpu", "Haswell")}.items():
        command = [*processor, sys.executable, "-m", "stages", stage, *given]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / name)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        made.append(contents(tmp_path / name))
    assert made[0] == made[1] != {}
