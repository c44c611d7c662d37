"""No file of ``stages`` calls what torch computes slowly or differently from run to run on a GPU.

Known from ``torch.use_deterministic_algorithms`` and from torch's CUDA sources: gradients (or, for
losses and counts, values) are sums by atomic additions; or, in the deterministic mode, detours.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stages

SUBSTITUTES = {"resizing.py"}  # in stages/ops
ROOT = Path(stages.__file__).parent
INSTEAD = "use stages.ops.resizing, or write a substitute there and test it against torch's"
RESIZING = {"interpolate", "upsample", "upsample_bilinear", "Upsample", "UpsamplingBilinear2d"}
POOLING = {
    *(f"adaptive_{kind}_pool{d}d" for kind in ("avg", "max") for d in (1, 2, 3)),
    *(f"Adaptive{kind}Pool{d}d" for kind in ("Avg", "Max") for d in (1, 2, 3)),
    *("avg_pool3d", "AvgPool3d", "fractional_max_pool2d", "FractionalMaxPool2d"),
    *("max_unpool2d", "MaxUnpool2d"),
}
PADDING = {f"{kind}Pad{d}d" for kind in ("Reflection", "Replication") for d in (1, 2, 3)}
OWN = POOLING | {"roi_align"}  # names of ops' substitutes
LOSSES = {"CrossEntropyLoss", "NLLLoss", "CTCLoss", "ctc_loss"}
ADDING = {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce"}
ADDING |= {
    "scatter_reduce_",
    "index_reduce",
    "index_reduce_",
    "put_",
    "histc",
    "grid_sample",
    "roi_align",
}
# With warnings for errors, the mode of a stage without --deterministic, its gradient is not fixed.
ATTENTION = {"scaled_dot_product_attention", "MultiheadAttention"}
# On a CPU they are MKL's: near the true value by steps that each maker's processor has of its own.
APPROXIMATE = {"sqrt", "sqrt_", "atan", "atan_", "arctan"}
EXACT = {"math", "np"}
FORBIDDEN = RESIZING | POOLING | PADDING | LOSSES | ADDING | ATTENTION


def called(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each call that must not be."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", None) or getattr(function, "id", "")
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        own = isinstance(function, ast.Name)  # imported by name: such as ops' adaptive_avg_pool2d
        exact = own or ast.unparse(function).split(".")[0] in EXACT
        refused = name in FORBIDDEN and not (own and name in OWN)
        if refused or (name in APPROXIMATE and not exact):
            yield node.lineno, name
        elif name in ("cross_entropy", "nll_loss") and not own:
            if given.get("reduction") != "'none'":
                yield node.lineno, f"{name} with a reduction"
        elif name == "pad" and given.get("mode", "'constant'") != "'constant'":
            yield node.lineno, f"pad with mode={given['mode']}"
        elif name == "bincount" and (len(node.args) > 1 or "weights" in given):
            yield node.lineno, "bincount with weights"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_stages_call_only_what_is_deterministic_and_fast(path: Path) -> None:
    if path.parent.name == "ops" and path.name in SUBSTITUTES:
        return
    source = path.read_text("utf-8")
    assert not list(called(source)), INSTEAD
    for node in ast.walk(ast.parse(source)):  # nor under a name of their own
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found = {name.name for name in node.names} & (FORBIDDEN | {"cross_entropy"})
            assert not found, INSTEAD


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("F.interpolate(x, 3)", ["interpolate"]),
        ("nn.AdaptiveAvgPool2d(1)", ["AdaptiveAvgPool2d"]),
        ("torch.nn.functional.adaptive_max_pool2d(x, 1)", ["adaptive_max_pool2d"]),
        ("adaptive_max_pool2d(x, 1)", []),
        ("torchvision.ops.roi_align(x, b, 3)", ["roi_align"]),
        ("roi_align(x, b, 3, 1)", []),
        ("x.index_add_(0, i, y)", ["index_add_"]),
        ("torch.sqrt(x) + (x + 1).sqrt()", ["sqrt", "sqrt"]),
        ("math.sqrt(2) * np.sqrt(x) * x.rsqrt()", []),
        ("F.cross_entropy(x, y)", ["cross_entropy with a reduction"]),
        ("F.cross_entropy(x, y, reduction='none')", []),
        ("cross_entropy(x, y)", []),
        ("F.pad(x, p, mode='reflect')", ["pad with mode='reflect'"]),
        ("F.pad(x, p)", []),
        ("np.bincount(x, weights=w)", ["bincount with weights"]),
        ("np.bincount(x, minlength=2)", []),
    ],
)
def test_the_rule_sees_what_it_should(source: str, found: list[str]) -> None:
    assert [name for _, name in called(source)] == found
