"""The same arithmetic on every x86-64 processor that has AVX2, for programs that are started.

torch, oneDNN, MKL, NumPy and OpenBLAS choose their code by the processor, its maker and the number
of threads, and sums in another order differ in their last bits. Each of them can be told what to
use, by an environment variable that it reads once, before its first computation: so these variables
are set for a process that starts, or before torch and NumPy are imported.

How it was found out, and what it costs, is in docs/same-bytes.md.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from wsssbed_hub.utils.errors import UsageError

THREADS = "OMP_NUM_THREADS"
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
SETTINGS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # MKL heeds its wider instruction sets on one maker's processors only.
    "MKL_CBWR": "COMPATIBLE",
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
    "OPENBLAS_CORETYPE": "Haswell",
    # NumPy computes exp, log and their like with other code where it has AVX-512.
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL",
    THREADS: "2",
}
"""Variables and values. The number of threads is a default: another gives other last bits."""


def portable_settings(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables to set beside ``given``; none where the processor is not x86-64.

    ``OMP_NUM_THREADS`` stays what it is if it is given. Raises UsageError if the processor has no
    AVX2.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    flags = _flags()
    if flags and "avx2" not in flags:
        raise UsageError(
            "--deterministic asks for the bytes that processors with AVX2 compute, and this one "
            "has no AVX2. Leave --deterministic out: runs then repeat on this machine alone."
        )
    threads = given.get(THREADS) or SETTINGS[THREADS]
    return {**SETTINGS, THREADS: threads, "OPENBLAS_NUM_THREADS": threads}


def settings_at_work() -> dict[str, str]:
    """Those of the variables that are set in this process, with their values."""
    names = (*SETTINGS, "OPENBLAS_NUM_THREADS")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def processor() -> str | None:
    """The processor's model as the system names it; None if it does not."""
    return _first_line("model name") or platform.processor() or None


@cache
def _flags() -> frozenset[str]:
    return frozenset((_first_line("flags") or "").split())


def _first_line(name: str) -> str | None:
    """The value of the first line ``name : value`` of Linux's list of processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2].strip() for line in lines if line.split("\t")[0] == name)
    return next(found, None)
