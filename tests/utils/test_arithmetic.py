"""Settings that fix the arithmetic: which are set, and that a stage sets them in time."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from wsssbed_hub.utils import arithmetic
from wsssbed_hub.utils.errors import UsageError

PROGRAM = """
import json, os, sys
from stages.__main__ import main
early = sorted({"torch", "numpy"} & set(sys.modules))
code = main(["sod-poolnet", *sys.argv[1:], "--help"])
aten = os.environ.get("ATEN_CPU_CAPABILITY")
print("\\n" + json.dumps({"early": early, "code": code, "ATEN": aten}))
"""
X86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the settings are for x86-64"
)


@X86
def test_the_number_of_threads_is_the_callers_if_it_is_given() -> None:
    assert arithmetic.portable_settings({})["OMP_NUM_THREADS"] == "2"
    found = arithmetic.portable_settings({"OMP_NUM_THREADS": "7", "MKL_CBWR": "AVX512"})
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"]) == ("7", "7")
    assert found["MKL_CBWR"] == "COMPATIBLE"


def test_other_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert arithmetic.portable_settings({}) == {}


@X86
def test_a_processor_without_avx2_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_flags", lambda: frozenset({"sse2", "avx"}))
    with pytest.raises(UsageError, match=r"no AVX2\. Leave --deterministic out"):
        arithmetic.portable_settings({})


def test_what_is_at_work_is_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*arithmetic.SETTINGS, "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert arithmetic.settings_at_work() == {"MKL_CBWR": "COMPATIBLE"}


@X86
@pytest.mark.parametrize("words", [(), ("--deterministic",)])
def test_a_stage_sets_them_before_torch_and_numpy_are_imported(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", PROGRAM, *words]
    bare = {name: value for name, value in os.environ.items() if name not in arithmetic.SETTINGS}
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["early"] == []
    assert found["code"] == 0
    assert (found["ATEN"] == "avx2") is bool(words)
