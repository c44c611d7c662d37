"""The stage ``ssnet`` stopped in any of its parts, and in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import deaths, exit_code, in_child
from ssnet_bench import MADE, Bench

from stages.runtime.errors import Interruption, signals_raise
from stages.ssnet.ssnet import Method


def mortal(name: str, count: int, number: signal.Signals) -> type[Method]:
    """A method whose process gets a signal when ``name`` is called for the n-th time."""
    calls = [0]

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), number)
        return getattr(Method, name)(self, *arguments, **options)

    return type("Mortal", (Method,), {name: called})


# In M's second step, M's labels, MM's training, the two measurements, the saliency maps. A step
# has two losses.
PARTS = [
    ("_loss", 3),
    ("pseudo_label", 4),
    ("_loss", 7),
    ("segmentation", 3),
    ("saliencies", 2),
    ("saliency", 4),
]


@pytest.mark.parametrize(("name", "count"), PARTS)
def test_killed_in_any_part_the_command_goes_on_to_the_same_content(
    mm: Bench, bench: Bench, name: str, count: int
) -> None:
    method = mortal(name, count, signal.SIGKILL)
    child = in_child(lambda: bench.run(method=method, checkpoint_every=0))
    assert exit_code(child) == -signal.SIGKILL
    assert MADE[2] not in bench.made()
    bench.run()
    assert bench.contents() == mm.contents()
    assert not list(bench.out.rglob(".partial"))


@pytest.mark.parametrize(("name", "count"), [("_loss", 7), ("saliency", 4)])
def test_asked_to_end_it_goes_on_to_the_same_content(
    mm: Bench, bench: Bench, name: str, count: int
) -> None:
    with signals_raise(), pytest.raises(Interruption):
        bench.run(method=mortal(name, count, signal.SIGTERM))
    assert MADE[2] not in bench.made()
    bench.run()
    assert bench.contents() == mm.contents()


@pytest.mark.slow
def test_killed_at_many_changes_of_the_disk(mm: Bench, bench: Bench) -> None:
    killed = list(deaths(lambda: bench.run(checkpoint_every=0), step=23))
    assert len(killed) >= 5
    assert bench.contents() == mm.contents()


@pytest.mark.slow
def test_killed_tables_go_on_to_the_same_tables(bench: Bench, tmp_path: Path) -> None:
    bench.run("all", seeds="0,1")
    other = Bench(bench.data_root, tmp_path / "other")
    counts: Iterator[int] = iter((5, 9, 13))
    for count in counts:
        method = mortal("_loss", count, signal.SIGKILL)
        child = in_child(lambda method=method: other.run("all", method=method, seeds="0,1"))
        assert exit_code(child) == -signal.SIGKILL
    other.run("all", seeds="0,1")
    for name in ("tables.json", "tables.md"):
        one, two = (b.out / "runs/ssnet-shapes-shapes" / name for b in (bench, other))
        assert one.read_bytes() == two.read_bytes()


def words(options: dict[str, Any]) -> list[str]:
    """Options as a command line has them."""
    found = ["ssnet"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                found += ["--" + name.replace("_", "-"), str(one)]
    return found


@pytest.mark.slow
def test_two_processes_make_the_same_of_given_weights(mm: Bench, bench: Bench) -> None:
    options = bench.options("MM", weights=mm.training("MM") / "weights.safetensors")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "stages", *words(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for key in MADE[1:]:
        assert bench.entry(key).content == mm.entry(key).content
    one, two = mm.entry(MADE[2]).results, bench.entry(MADE[2]).results
    # The sum of two processes' sums is another order of adding: the last bits differ.
    assert [r.value for r in two] == pytest.approx([r.value for r in one], rel=1e-12)
    assert [r.images for r in two] == [r.images for r in one]


@pytest.mark.slow
def test_two_processes_train_and_make_the_tables(bench: Bench) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "stages", *words(bench.options("all"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Table 5") == 1
    tables = json.loads((bench.out / "runs/ssnet-shapes-shapes/tables.json").read_text())
    assert tables["settings"]["processes"] == 2
    assert all(row["miou"]["mean"] is not None for row in tables["table5"])
