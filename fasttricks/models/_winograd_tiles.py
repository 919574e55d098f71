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

from fasttricks.models._winograd_transforms import Transform, Way, make_transform

# A polynomial is told by its leading coefficient and its values at these points, m + 1 of them for
# tiles of m. Of those tried they leave the smallest errors, as shares of the output's norm. With
# matrices in bf16 as well as images: 1.7 % for m = 4, where 0, 1, -1, 2, -2 of the paper have 3 %.
# With matrices in fp32, which only the native transforms have: 0.8, 1.3, 3.3 and 6.6 % for m = 3,
# 4, 5, 6, which no training has been seen to mind.
# All in fp32: 1e-6 for m = 4 and 7e-5 for m = 8, which is under TF32's rounding.
_FEW_BITS = {3: (0.0, 1.0, -1.0, 2.0), 4: (0.0, 2 / 3, -2 / 3, 1.5, -1.5)}
_FEW_BITS_OF_IMAGES = {
    2: (0.0, 1.0, -1.0),
    3: (0.4, -0.4, 4 / 3, -4 / 3),
    4: (0.0, 2 / 3, -2 / 3, 1.5, -1.5),
    5: (0.3, -0.3, 0.8, -0.8, 1.7, -1.7),
    6: (0.0, 0.55, -0.55, 1.0, -1.0, 2.0, -2.0),
}
_MANY_BITS = {
    2: (0.0, 1.0, -1.0),
    3: (0.4, -0.4, 4 / 3, -4 / 3),
    4: (0.0, 0.6, -0.6, 1.5, -1.5),
    5: (0.25, -0.25, 0.8, -0.8, 4 / 3, -4 / 3),
    6: (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5),
    7: (0.25, -0.25, 0.6, -0.6, 1.0, -1.0, 4 / 3, -4 / 3),
    8: (0.0, 0.4, -0.4, 0.75, -0.75, 1.0, -1.0, 4 / 3, -4 / 3),
}

# A transform's matrix grows with the width, a dense one (that of a whole strip) with its square.
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
    if columns > (_WIDEST_DENSE if way.is_dense else _WIDEST):
        return None
    costs = {
        m: -(-columns // m) * (m + 2) * sum(height + 2 for _, height in _heights(rows, m))
        for m in points_for(way)
    }
    m = min(costs, key=costs.__getitem__)
    return m if costs[m] < 0.5 * 9 * read[0] * read[1] else None


@lru_cache
def winograd_matrices(
    points: tuple[float, ...], outputs: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return A [k, n], G [n, 3], B [n, n] with conv(x, w) = A [(G w) * (B x)], in float64.

    k is m, or fewer outputs, which take the first n = k + 2 of all points and rows of G. The rows
    of the whole B are brought to norm 1, and G's to its reciprocal, which keeps what is rounded in
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

    ``b`` makes [points * tiles, M] of the pixels read, and ``a`` makes those written of that. The
    pieces are ordered by the point in rows and columns first, then by the tile. A strip of fewer
    rows than m takes the first of all n * n points.
    """

    points: int
    read: slice
    written: slice
    a: Transform
    b: Transform


@lru_cache
def strips(m: int, read: Size, written: Size, way: Way) -> tuple[Strip, ...]:
    """Cut a map into rows of tiles; pixels outside are zero, so that no matrix has them.

    Args:
        m: Side of an output tile.
        read: Rows and columns of the input.
        written: Those of the output, from the first on; at most as many.
        way: How to compute.
    """
    points, n = points_for(way)[m], m + 2
    a, _, b = winograd_matrices(points)
    across = -(-written[1] // m)
    to_columns = _zeros(written[1], n, across)
    from_columns = _zeros(n, across, read[1])
    for tile in range(across):
        start, stop = tile * m, min(written[1], (tile + 1) * m)
        to_columns[start:stop, :, tile] = a[: stop - start]
        inside, cut = _reach(start, m, read[1])
        from_columns[:, tile, inside] = b[:, cut]
    to_columns, from_columns = to_columns.flatten(1), from_columns.flatten(0, 1)
    found = []
    for start, height in _heights(written[0], m):
        a, _, b = winograd_matrices(points, height)
        inside, cut = _reach(start, height, read[0])
        found.append(
            Strip(
                (height + 2) * n,
                slice(inside.start * read[1], inside.stop * read[1]),
                slice(start * written[1], (start + height) * written[1]),
                a=make_transform(a, to_columns, way),
                b=make_transform(b[:, cut], from_columns, way),
            )
        )
    return tuple(found)


def _heights(rows: int, m: int) -> list[tuple[int, int]]:
    """Start and height of as few strips as m rows at most allow, as even as can be."""
    starts = [rows * strip // -(-rows // m) for strip in range(-(-rows // m) + 1)]
    return [(start, stop - start) for start, stop in pairwise(starts)]


def _reach(start: int, m: int, size: int) -> tuple[slice, slice]:
    """The pixels of a line that m outputs need, and which of the m + 2 they are."""
    first, stop = start - 1, start + m + 1
    inside = slice(max(0, first), min(size, stop))
    return inside, slice(inside.start - first, inside.stop - first)


def _values(points: tuple[float, ...], length: int, count: int | None = None) -> Tensor:
    """[count, length]: a polynomial's leading coefficient and values, from its coefficients."""
    at = torch.tensor(points, dtype=torch.float64, device="cpu")[:, None]
    leading = _zeros(1, length)
    leading[0, -1] = 1
    return torch.cat([leading, at ** torch.arange(length, device="cpu")])[: count or length]


def _zeros(*shape: int) -> Tensor:
    """On the CPU, whatever the default device is."""
    return torch.zeros(shape, dtype=torch.float64, device="cpu")
