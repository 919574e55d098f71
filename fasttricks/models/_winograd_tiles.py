"""How Winograd's algorithm cuts a map into tiles, and the matrices that transform them.

Legend: m the side of an output tile, n = m + 2 that of the input tile it needs. Tiles are worked
off a row of them at a time, a strip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from fasttricks.models._winograd_transforms import Axis, Transform, Way, make_transform

# A polynomial is told by its values at these points, m + 1 of them for tiles of m, and by its
# leading coefficient, its value at infinity. The native transforms want pairs of a and -a, and 0
# last. Of those tried these leave the smallest errors, as shares of the output's norm. With
# matrices in bf16 as well as images: 1.7 % for m = 4, where 0, 1, -1, 2, -2 of the paper have 3 %.
# With matrices in fp32, which only the native transforms have: 0.8, 1.2, 2.4 and 5.4 % for m = 3,
# 4, 5, 6, which no training has been seen to mind.
# All in fp32: 1e-6 for m = 4 and 9e-5 for m = 8, which is under TF32's rounding.
_FEW_BITS = {3: (1.0, -1.0, 0.0, 2.0), 4: (2 / 3, -2 / 3, 1.5, -1.5, 0.0)}
_FEW_BITS_OF_IMAGES = {
    2: (1.0, -1.0, 0.0),
    3: (0.4, -0.4, 4 / 3, -4 / 3),
    4: (2 / 3, -2 / 3, 1.5, -1.5, 0.0),
    5: (0.3, -0.3, 0.8, -0.8, 1.7, -1.7),
    6: (0.55, -0.55, 1.0, -1.0, 2.0, -2.0, 0.0),
}
_MANY_BITS = {
    2: (1.0, -1.0, 0.0),
    3: (0.4, -0.4, 4 / 3, -4 / 3),
    4: (0.6, -0.6, 1.5, -1.5, 0.0),
    5: (0.25, -0.25, 0.8, -0.8, 4 / 3, -4 / 3),
    6: (0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 0.0),
    7: (0.25, -0.25, 0.6, -0.6, 1.0, -1.0, 4 / 3, -4 / 3),
    8: (0.4, -0.4, 0.75, -0.75, 1.0, -1.0, 4 / 3, -4 / 3, 0.0),
}

# For torch's products, whose matrix grows with the width, a dense one (of a strip) with its square.
_WIDEST, _WIDEST_DENSE = 32, 16

Size = tuple[int, int]


def points_for(way: Way) -> dict[int, tuple[float, ...]]:
    """The points of each side of a tile that ``way`` is exact enough for."""
    if way.dtype != torch.bfloat16:
        return _MANY_BITS
    return _FEW_BITS_OF_IMAGES if way.native else _FEW_BITS


@lru_cache
def best_tile(read: Size, written: Size, way: Way) -> int | None:
    """Return the side of the tiles that multiplies least, or None if it does not halve the work.

    Args:
        read: Rows and columns of the input, which are those of the direct convolution's output.
        written: Those of the output that is asked for.
        way: How to compute.
    """
    rows, columns = written
    if not way.native and columns > (_WIDEST_DENSE if way.is_dense else _WIDEST):
        return None
    costs = {}
    for m in points_for(way):
        points = sum(max(height, m - 1) + 2 for _, height in _heights(rows, m))
        costs[m] = -(-columns // m) * (m + 2) * points
    m = min(costs, key=costs.__getitem__)
    return m if costs[m] < 0.5 * 9 * read[0] * read[1] else None


@lru_cache
def winograd_matrices(
    points: tuple[float, ...], outputs: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return A [k, n], G [n, 3], B [n, n] with conv(x, w) = A [(G w) * (B x)], in float64.

    k is m, or m - 1, which takes the same points but infinity, and the first rows of G. The rows of
    the whole B are brought to norm 1, and G's to its reciprocal, which keeps what is rounded in
    range.
    """
    m = len(points) - 1
    k = m if outputs is None else outputs
    inverse = torch.linalg.inv(_values(points, m + 2)).T
    norms = inverse.norm(dim=1, keepdim=True)[: k + 2]
    inverse = torch.linalg.inv(_values(points, k + 2)).T
    return _values(points, k, k + 2).T, _values(points, 3, k + 2) * norms, inverse / norms


@dataclass(frozen=True)
class Strip:
    """A row of tiles: the pixels that it reads and writes, of all H * W, and its transforms.

    ``inputs`` makes [points * tiles, M] of the pixels read; ``outputs`` would make such of those
    written, but the algorithm takes it the other way. A strip of fewer rows than m takes the first
    of all n * n points. ``shared`` of the rows that it reads are those of the strip before as well.
    Where the output is halved, its windows are ``halved``, of all (H // 2) * (W // 2); if it is
    ``odd`` the first ones began in the strip before.
    """

    points: int
    read: slice
    written: slice
    halved: slice
    odd: bool
    shared: int
    inputs: Transform
    outputs: Transform


@lru_cache
def strips(m: int, read: Size, written: Size, way: Way) -> tuple[Strip, ...]:
    """Cut a map into rows of tiles; pixels outside are zero, so that no matrix has them.

    Args:
        m: Side of an output tile.
        read: Rows and columns of the input.
        written: Those of the output, from the first on; at most as many, and no more than one less.
        way: How to compute.
    """
    points, n = points_for(way)[m], m + 2
    a, _, b = winograd_matrices(points)
    tiles = {"tiles": -(-written[1] // m), "step": m}
    from_columns = Axis(b, singles(m, n), read[1], first=-1, **tiles)
    to_columns = Axis(a.T, singles(m, n), written[1], **tiles)
    found: list[Strip] = []
    half = written[1] // 2
    for start, height in _heights(written[0], m):
        a, _, b = winograd_matrices(points, max(height, m - 1))
        single = singles(m, len(b))
        first, stop = max(0, start - 1), min(read[0], start + height + 1)
        found.append(
            Strip(
                len(b) * n,
                read=slice(first * read[1], stop * read[1]),
                written=slice(start * written[1], (start + height) * written[1]),
                halved=slice(start // 2 * half, -(-(start + height) // 2) * half),
                odd=start % 2 == 1,
                shared=2 if found else 0,
                inputs=make_transform(
                    Axis(b, single, stop - first, start - 1 - first), from_columns, way
                ),
                outputs=make_transform(Axis(a.T, single, height), to_columns, way),
            )
        )
    return tuple(found)


def singles(m: int, count: int) -> int:
    """How many of the first m + 1 or m + 2 points are 0 or infinity, and no pair."""
    return (m + 1) % 2 + (count - m - 1)


def _heights(rows: int, m: int) -> list[tuple[int, int]]:
    """Start and height of as few strips as m rows at most allow, as even as can be."""
    starts = [rows * strip // -(-rows // m) for strip in range(-(-rows // m) + 1)]
    return [(start, stop - start) for start, stop in pairwise(starts)]


def _values(points: tuple[float, ...], length: int, count: int | None = None) -> Tensor:
    """[count, length]: a polynomial's values and leading coefficient, from its coefficients."""
    at = torch.tensor(points, dtype=torch.float64, device="cpu")[:, None]
    leading = torch.zeros(1, length, dtype=torch.float64, device="cpu")
    leading[0, -1] = 1
    return torch.cat([at ** torch.arange(length, device="cpu"), leading])[: count or length]
