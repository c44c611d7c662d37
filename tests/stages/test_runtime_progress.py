"""What people see while they wait."""

from __future__ import annotations

import sys

import pytest

from stages.runtime import progress as module
from stages.runtime.progress import duration, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3600, "1 h 00 min"),
        (4000, "1 h 06 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_come_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("train", 40, "step", done=10) as show:
        for step in range(11, 41):
            now[0] += 4.0
            show(step, "loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    # One step takes 4 s, a line is due after 10 s: steps 13, 16, … 40.
    assert len(lines) == 10
    assert lines[0] == "train: step 13 of 40, loss 1.5, 4.0 s/step, 1 min 48 s left"
    assert lines[-1] == "train: step 40 of 40, loss 1.5, 4.0 s/step"


def test_nothing_to_do_shows_nothing(capsys: pytest.CaptureFixture) -> None:
    with progress("train", 0, "step"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("train", 2, "step") as show:
        show(2, "loss 1.5")
    said = capsys.readouterr().err
    assert "2/2" in said
    assert "loss 1.5" in said
