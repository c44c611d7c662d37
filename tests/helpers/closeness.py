"""Numbers that are equal but for rounding, compared as a whole.

Processors add the terms of a sum in different orders and with other instructions, so that a single
element, above all one near zero, may be off by many times its own size. What holds everywhere is
the error's norm against the norm of what was expected. Where a property is meant to be exact the
computation is done in float64, whose rounding leaves seven digits between it and a wrong formula.
"""

from __future__ import annotations

from typing import Any

import conformance
import numpy as np

FLOAT32 = 1e-4
"""Of a network in float32, as in the reference cases: the deepest of them is 3e-6 away from itself
in float64, and a wrong layer is 1e-2 away."""
FLOAT64 = 1e-9
"""Of anything in float64: rounding is 1e-12 at most."""


def relative_error(got: Any, want: Any) -> float:
    """Norm of the difference over the norm of ``want``; infinite for another shape or a NaN.

    Tensors (tracked ones too), arrays, lists and numbers.
    """
    return conformance.compare(_array(got), _array(want))


def assert_close_in_norm(got: Any, want: Any, rtol: float, name: str = "it") -> None:
    """Fails, with the relative error, unless it is below ``rtol``."""
    error = relative_error(got, want)
    shapes = f"shapes {_array(got).shape} and {_array(want).shape}"
    assert error < rtol, f"{name} is {error:.2e} away in norm; {rtol:.0e} is allowed ({shapes})"


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
