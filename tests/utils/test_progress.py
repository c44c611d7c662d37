"""Progress bars, as a terminal gets them and as a file does."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from wsssbed_hub.utils.progress import rate

PROGRAM = """if True:
    import time
    from wsssbed_hub.utils.progress import progress_bar
    with progress_bar("pull [sal/x]") as show:
        for done in range(0, 41):
            show(done * 1_000_000, 80_000_000)
            if done == 20:
                with progress_bar("look", unit="images") as inside:
                    for image in range(30):
                        inside(image, 1234)
                        time.sleep(0.02)
            time.sleep(0.02)
"""


def on_a_terminal() -> str:
    """What the program wrote to its standard error, a terminal 120 columns wide."""
    ours, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while data := os.read(ours, 1 << 16):
            said += data
    except OSError:  # how a terminal ends
        pass
    os.close(ours)
    assert child.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


def test_amount_rate_and_time_left() -> None:
    lines = on_a_terminal().splitlines()
    outside = [line for line in lines if line.startswith("pull [sal/x]")]
    assert any(re.search(r" 20\.0 MB/80\.0 MB +[1-9]\S* MB/s +0:00:0[1-9]", o) for o in outside)
    inside = [line for line in lines if line.startswith("look")]
    assert any(re.search(r" 2\d/1,234 +[1-9]\S* images/s +0:00:\d\d", line) for line in inside)
    assert "40.0 MB/80.0 MB" in lines[-1] or "40.0 MB/80.0 MB" in lines[-2]
    assert not any("look" in line for line in lines[-2:])  # it was left


def test_nothing_where_stderr_is_a_file() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("speed", "text"),
    [(0.0, "0.0 images/s"), (0.25, "4.0 s/image"), (12.34, "12.3 images/s")],
)
def test_rates_in_words(speed: float, text: str) -> None:
    assert rate(speed, "images") == text
