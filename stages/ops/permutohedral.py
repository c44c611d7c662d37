"""Gaussian filtering of scattered points on the permutohedral lattice.

Paper: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010. For points with features f_i in d dimensions the filter approximates

    K(v)_i = sum over j of exp(-|f_i - f_j|^2 / 2) v_j,    j = i included,

in time linear in the number of points. The features are mapped to the hyperplane of d + 1
coordinates whose sum is zero; there every point lies in a simplex of d + 1 lattice vertices. Its
value is *splatted* onto them by barycentric weights, the vertices are *blurred* along the d + 1
axes of the lattice one after the other, and the points are *sliced* out by the same weights.

As in Krähenbühl's implementation only vertices touched by some point exist, and a missing
neighbour counts as zero. The blur is [1/2, 1, 1/2] per axis and the result is divided by
1 + 2^-d, which does not make the kernel's sum that of the exact Gaussian: whoever needs weights
that sum to a given value normalises with K(1).

Every step is a sparse matrix in rows, applied by ``embedding_bag``: each output row sums its own
entries in a fixed order, so there are no atomic additions, and the same input gives the same
bytes on CPU (whatever the number of threads) and on CUDA.

The lattice itself is the same bit for bit on every device: whether a vertex exists hangs on the
last bit of a coordinate, and a mean field of ten iterations makes a percent of it. So all that
leads to it are single operations that IEEE 754 rounds correctly: no division by a Python number
(CUDA multiplies by the reciprocal), no ``alpha`` (fused or not, as the device likes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wsssbed_hub.utils.errors import HubError

# float32 places a point between vertices to 1/16 of their distance at this coordinate; beyond it
# the barycentric weights would be noise.
_FARTHEST = 2**20
_LARGEST = 40 << 20  # two such arrays are in memory at a time


class Rows(NamedTuple):
    """A sparse matrix: row i has the entries offsets[i]..offsets[i + 1] of the other two."""

    columns: Tensor  # int32[E]
    offsets: Tensor  # int32[R + 1]
    weights: Tensor  # float32[E]

    def times(self, values: Tensor) -> Tensor:
        """The product with float32[columns, C]: float32[R, C]."""
        columns, offsets, weights = self
        return torch.embedding_bag(values, columns, offsets, False, 0, False, weights, True)[0]

    def split(self, longest: int) -> list[Rows]:
        """The same as a product of matrices, the first to apply first, without longer rows."""
        counts = self.offsets.diff()
        if int(counts.amax()) <= longest:
            return [self]
        pieces = (counts + (longest - 1)) // longest
        firsts = torch.cat([pieces.new_zeros(1), pieces.cumsum(0, dtype=pieces.dtype)])
        row = torch.arange(len(counts), device=counts.device).repeat_interleave(pieces.long())
        piece = torch.arange(len(row), device=counts.device, dtype=pieces.dtype)
        starts = self.offsets[row] + (piece - firsts[row]) * longest
        into = self._replace(offsets=torch.cat([starts, self.offsets[-1:]]))
        return [
            into,
            *Rows(piece, firsts, torch.ones_like(piece, dtype=torch.float32)).split(longest),
        ]


@dataclass(frozen=True)
class Lattice:
    """The filter for one set of points, as the product of sparse matrices.

    Behind the vertices' rows there is one of zeros, the neighbour of those that have none.
    """

    splat: tuple[Rows, ...]  # vertices from points; more than one where rows were split
    blur: tuple[Rows, ...]  # vertices from vertices, once per axis
    slicing: Rows  # points from vertices, "slice" in the paper

    def filter(self, values: Tensor) -> Tensor:
        """K(v), column by column: contiguous float32[P, C] to float32[P, C].

        So many columns at a time that their numbers at all vertices take ``_LARGEST`` bytes: of
        noise there are several times as many vertices as points.
        """
        vertices = self.blur[0].offsets.numel() - 1
        parts = math.ceil(vertices * values.shape[1] * 4 / _LARGEST)
        if parts > 1 and values.shape[1] > 1:
            columns = values.tensor_split(min(parts, values.shape[1]), 1)
            return torch.cat([self.filter(part.contiguous()) for part in columns], 1)
        for rows in (*self.splat, *self.blur, self.slicing):
            values = rows.times(values)
        return values

    def scaled(self, before: Tensor, after: Tensor) -> Lattice:
        """The filter v -> after * K(before * v), with factors float32[P] per point."""
        (splat, *sums), slicing = self.splat, self.slicing
        entries = slicing.weights.view(after.numel(), -1) * after[:, None]
        return Lattice(
            (splat._replace(weights=splat.weights * before.index_select(0, splat.columns)), *sums),
            self.blur,
            slicing._replace(weights=entries.flatten()),
        )


def build_lattice(features: Tensor, groups: int = 1) -> Lattice:
    """The lattice of float32[d, P] features, scaled so that the kernel's deviation is 1.

    With ``groups`` the P points are that many blocks of equal size (the images of a batch), each
    filtered by itself. Raises HubError if the features are spread so widely, in units of the
    deviation, that float32 or 64-bit codes of the vertices cannot resolve them.
    """
    simplices = _enclosing_simplices(features)
    codes, moves = _vertex_codes(simplices, groups)
    vertices, corners = codes.shape[0], codes.numel()
    ordered, order = torch.sort(codes.flatten(), stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    numbers = torch.cumsum(first, 0, dtype=torch.int32) - 1
    starts = first.nonzero().flatten()
    keys = ordered.index_select(0, starts)
    points = features.shape[1]
    splat = Rows(
        order.int() % points,
        torch.cat([starts, starts.new_tensor([corners, corners])]).int(),
        simplices.weights.flatten().index_select(0, order),
    )
    number = torch.empty_like(numbers).scatter_(0, order, numbers).view(vertices, points)
    height = 1 / (1 + 2.0 ** -features.shape[0])
    slicing = Rows(
        number.t().reshape(-1),
        _regular_offsets(points, vertices, keys.device),
        (simplices.weights * height).t().reshape(-1),
    )
    splats = splat.split(_longest_row(features.device))
    return Lattice(tuple(splats), tuple(_blur(keys, moves)), slicing)


def _longest_row(device: torch.device) -> int:
    """Entries that are added up one after the other. In a flat image thousands of pixels touch one
    vertex; a GPU would wait for that row, a processor has other rows to go on with."""
    return 2**31 if device.type == "cpu" else 32


def _regular_offsets(rows: int, entries: int, device: torch.device) -> Tensor:
    return torch.arange(0, rows * entries + 1, entries, dtype=torch.int32, device=device)


class _Simplices(NamedTuple):
    """Where the points lie. n = d + 1 coordinates; corner m of a simplex has all coordinates
    congruent to m modulo n."""

    cells: Tensor  # int32[n, P]: corner 0, in units of n
    position: Tensor  # int64[n, P]: a permutation of 0..d; the order in which, on the way from
    # corner 0 through the others, the coordinates step back by n (while all grow by one)
    weights: Tensor  # float32[n, P]: barycentric, of corners 0..d


def _enclosing_simplices(features: Tensor) -> _Simplices:
    """Adams et al., section 3: elevate the points, round them, rank what is left over."""
    n = features.shape[0] + 1
    elevated = _elevate(features)
    if not bool(elevated.abs().amax() < _FARTHEST):  # not: also for NaN
        raise HubError(
            "the features of a lattice must be finite and within about "
            f"{_FARTHEST // n} deviations: choose larger standard deviations"
        )
    size = elevated.new_tensor(n)
    cells = torch.round(elevated / size)
    rest = elevated - cells * n
    # int8: a byte per comparison; the largest number here is 2 d.
    rank = torch.zeros(rest.shape, dtype=torch.int8, device=rest.device)
    for i in range(n):
        for j in range(i + 1, n):
            smaller = (rest[i] < rest[j]).to(torch.int8)
            rank[i] += smaller
            rank[j] += 1 - smaller
    # The rounded coordinates need not sum to zero; the nearest point of the lattice is found by
    # moving those that were rounded farthest (Conway and Sloane's algorithm).
    cells = cells.int()
    rank += cells.sum(0).to(torch.int8)
    wrap = (rank < 0).to(torch.int8) - (rank >= n).to(torch.int8)
    rank += wrap * n
    cells += wrap
    rest -= wrap * float(n)
    position = (n - 1 - rank).long()
    descending = torch.empty_like(rest).scatter_(0, position, rest / size)
    weights = torch.empty_like(rest)
    torch.sub(descending[1:], descending[:-1], out=weights[1:])
    weights[0] = descending[0] + 1 - descending[-1]
    return _Simplices(cells, position, weights)


def _elevate(features: Tensor) -> Tensor:
    """float32[d, P] to [d + 1, P] coordinates that sum to zero; deviation 1 becomes that of the
    blur, the vertices of a unit being n = d + 1 apart (Adams et al., section 3.1)."""
    d, points = features.shape
    n = d + 1
    elevated = features.new_empty(n, points)
    total = features.new_zeros(points)
    for j in range(d, 0, -1):
        scaled = features[j - 1] * (n * math.sqrt(2 / 3) / math.sqrt(j * (j + 1)))
        torch.sub(total, scaled * j, out=elevated[j])
        total += scaled
    elevated[0] = total
    return elevated


class _Moves(NamedTuple):
    """How codes change from a vertex to its neighbour: coordinate j up by d, all others down
    by 1. Corner 0 becomes a corner d one cell lower, corner m > 0 a corner m - 1."""

    block: int  # codes of one corner; a vertex's corner number is code // block
    strides: list[int]  # of the coordinates' cells in the code; 0 for coordinate 0


def _vertex_codes(simplices: _Simplices, groups: int) -> tuple[Tensor, _Moves]:
    """One integer per corner, [n, P], the same for the same vertex, and no other's neighbour.

    Most significant is the corner's number m, then the group, then the cells of coordinates
    d, d - 1, .. 1 (coordinate 0 follows from their sum). Coordinate d depends on the last feature
    alone, coordinate d - 1 on the last two, so that in an image's x, y the vertices are in the
    order of its rows, and what is near in the image is near in memory.
    """
    cells, position, _ = simplices
    n, points = cells.shape
    low = cells.amin(1) - 2  # corners reach 1 below, neighbours 1 farther and 1 above
    spans = (cells.amax(1) + 2 - low).tolist()
    strides, volume = [0] * n, 1
    for j in range(1, n):
        strides[j] = volume
        volume *= spans[j]
    block = volume * groups
    if n * block >= 2**62:
        raise HubError(
            f"a lattice of {n - 1} dimensions over {' x '.join(map(str, spans[1:]))} cells is "
            "beyond 64-bit codes: choose larger standard deviations"
        )
    dtype = torch.int32 if n * block < 2**31 else torch.int64  # half the time to sort
    stride = torch.tensor(strides, dtype=dtype, device=cells.device)[:, None]
    codes = torch.empty(n, points, dtype=dtype, device=cells.device)
    torch.sum((cells - low[:, None]).to(dtype) * stride, 0, dtype=dtype, out=codes[0])
    group = torch.arange(groups, dtype=dtype, device=cells.device) * volume
    codes[0] += group.repeat_interleave(points // groups)
    steps = torch.empty_like(codes).scatter_(0, position, (block - stride).expand(n, points))
    codes[1:] = steps[:-1]
    return codes.cumsum(0, dtype=dtype), _Moves(block, strides)


def _blur(keys: Tensor, moves: _Moves) -> list[Rows]:
    """new = old + (one neighbour + the other) / 2 along each axis, for vertices in code order."""
    n, count = len(moves.strides), keys.numel()
    corner_zero = int(torch.searchsorted(keys, moves.block))
    moved = keys - moves.block
    moved[:corner_zero] += n * moves.block - sum(moves.strides)
    own = torch.arange(count + 1, dtype=torch.int32, device=keys.device)
    offsets = _regular_offsets(count + 1, 3, keys.device)
    weights = torch.tensor([1, 0.5, 0.5], device=keys.device).repeat(count + 1)
    axes = []
    for stride in moves.strides:
        wanted = moved + stride
        place = torch.searchsorted(keys, wanted, out_int32=True)
        found = keys.index_select(0, place.clamp(max=count - 1)) == wanted
        # A vertex is its lower neighbour's upper neighbour.
        above = found.nonzero().flatten()
        below = place.index_select(0, above)
        down, up = torch.full((2, count + 1), count, dtype=torch.int32, device=keys.device)
        torch.where(found, place, down[:count], out=down[:count])
        up.scatter_(0, below.long(), above.int())
        axes.append(Rows(torch.stack([own, down, up], 1).flatten(), offsets, weights))
    return axes
