"""Every substitute against torch's own: values, gradients, gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from closeness import FLOAT64, assert_close_in_norm
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from stages.ops import resizing as ops

pytestmark = pytest.mark.numerical

# Height and width before and after: up, down, odd, even, one axis up and one down, one pixel,
# the same size, the same in one axis.
SIZES = [
    ((5, 8), (9, 15)),
    ((4, 6), (8, 12)),
    ((9, 7), (4, 3)),
    ((6, 10), (3, 20)),
    ((1, 1), (4, 3)),
    ((5, 4), (1, 1)),
    ((1, 7), (3, 1)),
    ((6, 5), (6, 5)),
    ((6, 5), (6, 9)),
]
RESIZINGS = [("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)]
# Sums of a few numbers in another order; bfloat16 has 8 bits.
ROUNDING = {torch.float64: FLOAT64, torch.float32: 1e-5, torch.bfloat16: 2**-7}

BOXES = [
    (0, 0, 0, 6, 8),
    (0, 2, 3, 7, 11),  # beyond the bottom
    (0, 1.3, 0.7, 9.1, 5.2),
    (0, 3, 3, 3.5, 3.5),  # smaller than a cell
    (0, -7, -5, 4, 3),  # some samples lie beyond, and count for nothing
]

Operation = Callable[[Tensor], Tensor]


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def derivatives(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value; the gradient of a sum that weighs every output; that of the gradient's square."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = operation(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=x.dtype).view_as(y).requires_grad_()
    (first,) = torch.autograd.grad((y * weights).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weights)
    return y.detach(), first.detach(), second


def assert_same(mine: Operation, theirs: Operation, x: Tensor) -> None:
    for found, expected in zip(derivatives(mine, x), derivatives(theirs, x), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert_close_in_norm(found.double(), expected.double(), ROUNDING[x.dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("mode", "corners"), RESIZINGS)
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_resizing_is_torchs(
    before: tuple[int, int], after: tuple[int, int], mode: Any, corners: bool, dtype: torch.dtype
) -> None:
    assert_same(
        lambda x: ops.resize(x, after, mode=mode, align_corners=corners),
        lambda x: F.interpolate(x, after, mode=mode, align_corners=corners),
        drawn(2, 3, *before, dtype=dtype),
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [0.5, 0.75, 2.0, 1.0, (1.3, 0.4), (28.1 / 28, 31.1 / 28)])
def test_a_factor_maps_the_coordinates_as_in_torch(factor: Any, mode: Any) -> None:
    x = drawn(2, 3, 7, 11)
    assert_same(
        lambda x: ops.resize(x, scale_factor=factor, mode=mode),
        lambda x: F.interpolate(x, scale_factor=factor, mode=mode),
        x,
    )


def test_a_factor_is_not_the_ratio_of_the_sizes() -> None:
    x = drawn(1, 1, 7, 11)
    by_factor = ops.resize(x, scale_factor=0.75)
    assert (by_factor - ops.resize(x, by_factor.shape[2:])).abs().max() > 1e-3


def test_size_or_factor_is_asked_for() -> None:
    for arguments in ({}, {"size": 3, "scale_factor": 2.0}):
        with pytest.raises(ValueError, match="a size or a scale_factor"):
            ops.resize(drawn(1, 1, 4, 4), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_average_pooling_is_torchs(
    before: tuple[int, int], after: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_same(
        lambda x: ops.adaptive_avg_pool2d(x, after),
        lambda x: F.adaptive_avg_pool2d(x, after),
        drawn(2, 3, *before, dtype=dtype),
    )


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: ops.resize(x, (7, 3)),
        lambda x: ops.resize(x, (7, 3), align_corners=True),
        lambda x: ops.resize(x, scale_factor=1.7, mode="bicubic"),
        lambda x: ops.adaptive_avg_pool2d(x, (3, 2)),
        lambda x: ops.adaptive_max_pool2d(x, (3, 2)),
        lambda x: ops.resize_nearest(x, (7, 3)),
        lambda x: ops.roi_align(x, BOXES, (3, 2), 0.5),
    ],
)
def test_derivatives_are_those_of_finite_differences(operation: Operation) -> None:
    x = drawn(1, 2, 5, 6).requires_grad_()
    assert gradcheck(operation, (x,))
    # Of the square, so that the gradient depends on x.
    assert gradgradcheck(lambda x: operation(x).square(), (x,))


@pytest.mark.parametrize(
    "operation",
    [lambda x: ops.resize(x, (9, 4)), lambda x: ops.adaptive_avg_pool2d(x, (3, 2))],
)
def test_channels_last_in_and_out(operation: Operation) -> None:
    x = drawn(2, 3, 5, 6)
    last = x.to(memory_format=torch.channels_last)
    for found, expected in zip(
        derivatives(operation, last), derivatives(operation, x), strict=True
    ):
        assert (found - expected).abs().max() < 1e-13
    last.requires_grad_()
    y = operation(last)
    y.backward(torch.ones_like(y))
    assert last.grad is not None
    for made in (y, last.grad):
        assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_a_large_gradient_change_nothing(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = drawn(4, 3, 5, 6).to(memory_format=layout)
    whole = derivatives(lambda x: ops.resize(x, (9, 4)), x)
    monkeypatch.setattr(ops, "_BLOCK", 9 * 4 * 2)
    for found, expected in zip(derivatives(lambda x: ops.resize(x, (9, 4)), x), whole, strict=True):
        assert (found - expected).abs().max() < 1e-13


def test_bfloat16_is_computed_in_float32_and_rounded_once() -> None:
    x = drawn(1, 2, 9, 7, dtype=torch.bfloat16).requires_grad_()
    weights = drawn(1, 2, 20, 15, dtype=torch.bfloat16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.resize(x, (20, 15))
    y.backward(weights)
    exact = x.detach().float().requires_grad_()
    expected = F.interpolate(exact, (20, 15), mode="bilinear")
    expected.backward(weights.float())
    assert x.grad is not None
    assert exact.grad is not None
    assert y.dtype == x.grad.dtype == torch.bfloat16
    # Half a unit of the last place, 2^-8 of the number, plus what float32 had rounded before.
    for found, number in ((y, expected), (x.grad, exact.grad)):
        assert ((found.float() - number).abs() <= 2**-8 * number.abs() + 1e-6).all()


def test_autocast_leaves_float32_alone() -> None:
    x = drawn(1, 2, 9, 7, dtype=torch.float32).requires_grad_()

    def gradient() -> Tensor:
        y = ops.resize(x, (20, 15))
        assert y.dtype == torch.float32
        return torch.autograd.grad(y.square().sum(), x)[0]

    expected = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(), expected)


def test_products_are_float32_though_tf32_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, seen, products = torch.backends.cuda.matmul, [], ops._products

    def watched(*arguments: Any) -> Tensor:
        seen.append(matmul.allow_tf32)
        return products(*arguments)

    monkeypatch.setattr(ops, "_products", watched)
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        ops.resize(drawn(1, 1, 3, 3).requires_grad_(), 5).sum().backward()
        assert seen == [False]
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_matrices_are_made_once_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = ops._Matrices()
    monkeypatch.setattr(ops, "_MATRICES", matrices)
    monkeypatch.setattr(ops, "_KEPT_BYTES", 3 * 8 * 10 * 10)
    like = torch.empty((), dtype=torch.float64)
    ten, five = (ops._Kernel("bilinear", (size, size)) for size in (10, 5))
    first = ten.matrix(0, 10, like)
    assert ten.matrix(0, 10, like) is first
    assert ten.matrix(0, 10, like.float()).dtype == torch.float32
    for length in range(11, 20):
        five.matrix(0, length, like)
        assert ten.matrix(0, 10, like) is first  # used last, so it stays
        assert matrices.bytes == sum(matrix.nbytes for matrix in matrices.kept.values())
        assert matrices.bytes <= 3 * 8 * 10 * 10


def test_no_more_memory_is_kept_for_the_gradient_than_by_torch() -> None:
    """Nothing but sizes goes from forward to backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.resize(drawn(1, 1, 4, 4).requires_grad_(), 9)
        ops.adaptive_avg_pool2d(drawn(1, 1, 4, 4).requires_grad_(), 3)
    assert not kept


@pytest.mark.parametrize("size", [1, 3, 5, (2, 7), (13, 17)])
def test_max_pooling_is_torchs(size: ops.Size) -> None:
    x = drawn(2, 3, 13, 17)
    assert_same(
        lambda x: ops.adaptive_max_pool2d(x, size), lambda x: F.adaptive_max_pool2d(x, size), x
    )


def test_max_pooling_gives_the_gradient_of_equal_numbers_to_the_first() -> None:
    x = torch.randint(0, 3, (2, 3, 8, 8), generator=torch.Generator().manual_seed(4)).double()
    assert_same(lambda x: ops.adaptive_max_pool2d(x, 2), lambda x: F.adaptive_max_pool2d(x, 2), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(3, 2), (1, 1), (9, 14)])
def test_boxes_are_those_of_torchvision(size: tuple[int, int], dtype: torch.dtype) -> None:
    boxes = [*BOXES, *((2, *box[1:]) for box in BOXES[:3])]  # and none in the second map
    as_tensor = torch.tensor(boxes, dtype=dtype)
    x = drawn(3, 2, 5, 6, dtype=dtype)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine = ops.roi_align(found, boxes, size, 0.5)
    theirs = torchvision.ops.roi_align(expected, as_tensor, size, 0.5)
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    assert_close_in_norm(mine.detach(), theirs.detach(), ROUNDING[dtype])
    weights = drawn(*theirs.shape, dtype=dtype, seed=1)
    mine.backward(weights)
    theirs.backward(weights)
    assert_close_in_norm(found.grad, expected.grad, ROUNDING[dtype])
    assert found.grad is not None
    assert not found.grad[1].any()


def test_boxes_on_whole_cells_are_read_half_a_cell_off() -> None:
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    found = ops.roi_align(x, [(0, 16, 16, 48, 48)], 4, 1 / 8)
    assert found[0, 0, 0].tolist() == [2.5, 3.5, 4.5, 5.5]


def test_nearest_is_torchs() -> None:
    assert_same(
        lambda x: ops.resize_nearest(x, (3, 20)),
        lambda x: F.interpolate(x, (3, 20), mode="nearest"),
        drawn(2, 3, 7, 11),
    )


def test_cross_entropy_is_torchs() -> None:
    chance = torch.Generator().manual_seed(5)
    target = torch.randint(0, 4, (2, 9, 11), generator=chance)
    target[:, :3] = 255
    assert_same(
        lambda x: ops.cross_entropy(x, target, ignore_index=255)[None],
        lambda x: F.cross_entropy(x, target, ignore_index=255, reduction="sum")[None],
        drawn(2, 4, 9, 11),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_gradients_are_deterministic_and_the_processors() -> None:
    x = drawn(2, 16, 37, 50, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)  # what torch would refuse is an error
    try:
        for operation in (
            lambda x: ops.resize(x, (75, 101), align_corners=True),
            lambda x: ops.resize(x, scale_factor=0.75, mode="bicubic"),
            lambda x: ops.resize_nearest(x, (75, 101)),
            lambda x: ops.adaptive_avg_pool2d(x, 5),
            lambda x: ops.adaptive_max_pool2d(x, 5),
            lambda x: ops.roi_align(x, BOXES, (7, 9), 2.0),
        ):
            once, again = (derivatives_on(operation, x.cuda()) for _ in range(2))
            for one, other, here in zip(once, again, derivatives(operation, x), strict=True):
                assert torch.equal(one, other)
                assert_close_in_norm(one, here, 1e-5)
    finally:
        torch.use_deterministic_algorithms(False)


def derivatives_on(operation: Operation, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    torch.set_default_device(x.device)
    try:
        return derivatives(operation, x)
    finally:
        torch.set_default_device(None)
