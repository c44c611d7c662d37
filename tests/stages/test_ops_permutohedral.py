"""The permutohedral lattice against one made point by point (photographs: test_ops_densecrf)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from closeness import FLOAT32, assert_close_in_norm
from other_device import OtherDevice
from torch import Tensor

from stages.ops import permutohedral
from stages.ops.permutohedral import Rows, build_lattice
from wsssbed_hub.utils.errors import HubError

pytestmark = pytest.mark.numerical


def lattice_filter_by_hand(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The lattice point by point, in float64 with a dictionary: [d, P], [P, C] -> [P, C]."""
    d, points = features.shape
    corners, table = [], defaultdict(lambda: np.zeros(values.shape[1]))
    for i in range(points):
        g = [
            f * (d + 1) * np.sqrt(2 / 3) / np.sqrt((k + 1) * (k + 2))
            for k, f in enumerate(features[:, i])
        ]
        e = np.array([sum(g)] + [sum(g[j:]) - j * g[j - 1] for j in range(1, d + 1)])
        base = (d + 1) * np.round(e / (d + 1)).astype(int)
        while base.sum() != 0:  # move the coordinate that was rounded farthest the wrong way
            rest = e - base
            j = np.argmin(rest) if base.sum() > 0 else np.argmax(rest)
            base[j] -= np.sign(base.sum()) * (d + 1)
        falling = np.argsort(-(e - base))
        t = (e - base)[falling] / (d + 1)
        for m in range(d + 1):  # corner m: all up by m, the m with the smallest rest back
            vertex = base + m
            vertex[falling[d + 1 - m :]] -= d + 1
            weight = 1 - t[0] + t[d] if m == 0 else t[d - m] - t[d - m + 1]
            corners.append((i, tuple(vertex[:d]), weight))
            table[tuple(vertex[:d])] += weight * values[i]
    return _blur_and_slice(d, corners, table, values.shape)


def _blur_and_slice(d: int, corners: list, table: dict, shape: tuple[int, ...]) -> np.ndarray:
    zero = np.zeros(shape[1])
    for j in range(d + 1):
        move = np.full(d + 1, -1)
        move[j] = d
        table = {
            key: value
            + 0.5 * table.get(tuple(np.add(key, move[:d])), zero)
            + 0.5 * table.get(tuple(np.subtract(key, move[:d])), zero)
            for key, value in table.items()
        }
    result = np.zeros(shape)
    for i, key, weight in corners:
        result[i] += weight * table[key] / (1 + 2.0**-d)
    return result


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_lattice_equals_one_made_point_by_point(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    features = rng.normal(0, 1.5, (dimensions, 80)).astype(np.float32)
    values = rng.random((80, 3)).astype(np.float32)
    expected = lattice_filter_by_hand(features.astype(np.float64), values)
    filtered = build_lattice(torch.from_numpy(features)).filter(torch.from_numpy(values))
    # float32 against float64: some eighty additions, each with an error of 6e-8.
    assert_close_in_norm(filtered, expected, 1e-5)


@pytest.mark.parametrize("largest", [1, 900])
def test_columns_that_are_filtered_some_at_a_time_are_the_same(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lattice = build_lattice(torch.randn(3, 100, generator=torch.Generator().manual_seed(2)))
    values = torch.rand(100, 5, generator=torch.Generator().manual_seed(3))
    expected = lattice.filter(values)
    widths = []
    times = Rows.times

    def watched(rows: Rows, part: torch.Tensor) -> torch.Tensor:
        widths.append(part.shape[1])
        return times(rows, part)

    monkeypatch.setattr(permutohedral, "_LARGEST", largest)
    monkeypatch.setattr(Rows, "times", watched)
    assert_close_in_norm(lattice.filter(values), expected, FLOAT32)
    assert max(widths) < 5


@pytest.mark.parametrize("longest", [2, 7])
def test_rows_that_are_split_have_the_same_sums(longest: int) -> None:
    generator = torch.Generator().manual_seed(4)
    counts = torch.tensor([0, 1, 50, 0, 7, 2, 8, 0])
    offsets = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
    columns = torch.randint(0, 9, (68,), generator=generator).int()
    rows = Rows(columns, offsets, torch.rand(68, generator=generator))
    values = torch.rand(9, 3, generator=generator)
    found, parts = values, rows.split(longest)
    for part in parts:
        assert part.offsets.diff().max() <= longest
        found = part.times(found)
    assert len(parts) > 1
    assert_close_in_norm(found, rows.times(values), FLOAT32)
    assert rows.split(50) == [rows]


def test_a_lattice_with_split_rows_is_the_same_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(3, 400, generator=torch.Generator().manual_seed(2)) * 0.3
    values = torch.rand(400, 2, generator=torch.Generator().manual_seed(3))
    before, after = torch.rand(2, 400, generator=torch.Generator().manual_seed(4))
    expected = build_lattice(features).scaled(before, after).filter(values)
    monkeypatch.setattr(permutohedral, "_longest_row", lambda device: 8)  # as on a GPU
    split = build_lattice(features).scaled(before, after)
    assert len(split.splat) > 1
    assert_close_in_norm(split.filter(values), expected, FLOAT32)


@pytest.mark.parametrize("deviation", [0.3, 30.0])
def test_a_lattice_is_the_same_to_the_bit_on_a_device_that_rounds_otherwise(
    deviation: float,
) -> None:
    """Multiples of a small step, as pixels have them: many lie exactly between vertices."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randint(0, 256, (5, 3000), generator=generator) / 255 * deviation
    here = build_lattice(features)
    with OtherDevice() as device:
        there = build_lattice(features)
    assert device.seen > 100
    for mine, theirs in zip(
        (*here.splat, *here.blur, here.slicing),
        (*there.splat, *there.blur, there.slicing),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_the_other_device_does_round_otherwise() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(6))
    with OtherDevice():
        divided, added = x / 3, torch.sub(x, x * 0.3, alpha=7)
    assert not torch.equal(divided, x / 3)
    assert not torch.equal(added, x - x * 0.3 * 7)


def test_groups_of_the_same_points_do_not_mix() -> None:
    features = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    values = torch.rand(80, 2, generator=torch.Generator().manual_seed(3))
    both = build_lattice(features.repeat(1, 2), groups=2).filter(values)
    alone = build_lattice(features)
    assert torch.equal(both, torch.cat([alone.filter(values[:40]), alone.filter(values[40:])]))


@pytest.mark.parametrize(
    "features",
    [
        torch.full((2, 5), float("nan")),
        torch.linspace(0, 1e7, 5).repeat(2, 1),  # beyond float32
        torch.rand(5, 50, generator=torch.Generator().manual_seed(0)) * 3e4,  # beyond the codes
    ],
)
def test_features_too_wide_for_a_lattice_are_refused(features: Tensor) -> None:
    with pytest.raises(HubError, match="larger standard deviations"):
        build_lattice(features)
