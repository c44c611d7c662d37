"""A full /dev/shm is said, not waited for."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np, torch
from stages.runtime.method import Source
from stages.runtime.loader import SampleRow, batches
from wsssbed_hub.utils.errors import HubError

class Large:
    def __len__(self): return 4
    def sample(self, index, rng): return {"image": np.zeros((4 << 20,), np.uint8)}

row = SampleRow((0, "phase", "large"), Source(Large(), 2))
stream = batches(
    {"large": row}, first=0, end=4, passes=1, workers=1, device=torch.device("cpu")
)
try:
    print(sum(batch["large"]["image"].numel() for batch in stream))
except HubError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("size", "says"), [("1m", "too small: a batch of 8.4 MB"), ("1g", "33554432")]
)
def test_shared_memory_that_is_too_small_is_named(size: str, says: str) -> None:
    mounted = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "sh", "-c", mounted, sys.executable, PROGRAM]
    probe = subprocess.run([*command[:4], "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("no mount namespace can be made here (not root?)")
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert says in done.stdout, done.stderr
