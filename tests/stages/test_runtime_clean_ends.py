"""Every exception ends a stage within seconds: exit code, message, no process left, no damage."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from toys import started

from stages.runtime.checkpoint import Checkpoint

SECONDS = 60  # for the start of torch on a busy machine, not for the end; without a clean end: ever


def group_is_gone(pid: int) -> bool:
    """Whether no process of the session that was started is left, after those that die now."""
    for _ in range(100):
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("sample", "a bug in a sample"),
        ("loss", "a bug in the loss"),
        ("epoch_end", "a bug in epoch_end"),
        ("writer", "a bug in what makes maps"),
        ("worker", "error: first, step 1: A process that loads images died"),
    ],
)
def test_every_exception_ends_everything(tmp_path: Path, fail: str, said: str) -> None:
    plan = {"workers": 2, "fail": fail, "every": 0.0, "accumulate": 1}
    process = started(tmp_path / "run", plan)
    try:
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 1, output
        assert said in output
        assert ("Traceback" in output) == (fail != "worker")
        assert group_is_gone(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if fail == "epoch_end":
        checkpoint = Checkpoint.load(tmp_path / "run" / "checkpoint.pt")
        assert checkpoint is not None
        assert (checkpoint.step, checkpoint.epoch_due) == (3, True)


def test_a_signal_stops_the_end_of_an_epoch_which_is_then_done_again(tmp_path: Path) -> None:
    plan = {"workers": 2, "fail": "slow epoch_end", "every": 0.0}
    process = started(tmp_path / "run", plan)
    try:
        while (checkpoint := Checkpoint.load(tmp_path / "run" / "checkpoint.pt")) is None or (
            not checkpoint.epoch_due
        ):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)  # from the checkpoint into epoch_end
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 143
    assert "stopped: Stopped. Run the same command again" in output
    assert group_is_gone(process.pid)


@pytest.mark.slow
def test_an_exception_in_one_of_two_processes_ends_both(tmp_path: Path) -> None:
    process = started(tmp_path / "run", {"workers": 1, "fail": "one process"}, processes=2)
    try:
        output, _ = process.communicate(timeout=2 * SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 1
    assert "a bug in one process" in output
    assert group_is_gone(process.pid)
