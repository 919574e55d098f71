"""Winograd's transforms of pixels to points and back, and how they are computed.

Pixels are [h * w, M] and points [p * q, M], M the channels of all images: a row of tiles, whose
points are ordered by rows, columns, and tiles. A transform is a matrix for the rows of a tile and
one for its columns, and its whole matrix is a Kronecker product.
"""

from __future__ import annotations

from ctypes import CDLL
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks.models._kernels import KERNEL_DTYPES, HalvingC, Side, kernels


class Way(NamedTuple):
    """How to compute: the images' dtype, and whether by our own C++ or by torch's operations."""

    dtype: torch.dtype
    native: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether a transform is its whole matrix.

        In bf16 torch's products are so fast that one pass of many is better than two of few.
        """
        return self.dtype == torch.bfloat16 and not self.native


def way_for(dtype: torch.dtype) -> Way:
    """Return the fastest way that this process has; it is the same throughout."""
    return Way(dtype, dtype in KERNEL_DTYPES and kernels() is not None)


@dataclass(frozen=True)
class Axis:
    """Tiles along the rows or the columns of a map.

    Attributes:
        matrix: Of a tile's pixels to its points, float64 [points, pixels].
        singles: How many points, the last ones, are no pair of a and -a: 0 and infinity or less.
        size: Pixels of the map; those of a tile that are outside are 0, or dropped.
        first: Where the first tile's first pixel is, maybe before the map.
        tiles: How many tiles there are.
        step: Pixels from one tile to the next; the others of a tile are the next one's as well.
    """

    matrix: Tensor
    singles: int
    size: int
    first: int = 0
    tiles: int = 1
    step: int = 1

    def whole(self) -> Tensor:
        """The matrix of all pixels [points * tiles, size]."""
        points, pixels = self.matrix.shape
        found = self.matrix.new_zeros(points, self.tiles, self.size)
        for tile in range(self.tiles):
            start = self.first + tile * self.step
            inside = slice(max(0, start), min(self.size, start + pixels))
            found[:, tile, inside] = self.matrix[:, inside.start - start : inside.stop - start]
        return found.flatten(0, 1)


class Halving(NamedTuple):
    """How rows of pixels are halved, to the largest of 2 x 2, while they are written; and back.

    Attributes:
        which: Of each one that is left, which of the four it was, uint8.
        carry: One row of pixels, which rows that are not whole windows leave to the next ones.
        odd: Whether the first row is the second one of its windows.
    """

    which: Tensor
    carry: Tensor
    odd: bool


class Transform(Protocol):
    """Pixels to points, and points to pixels by the transposed matrix."""

    def to_points(
        self,
        pixels: Tensor,
        *,
        dtype: torch.dtype | None = None,
        halving: Halving | None = None,
    ) -> Tensor:
        """Return the points, in the pixels' dtype by default."""

    def to_pixels(
        self, points: Tensor, out: Tensor, *, added: int = 0, halving: Halving | None = None
    ) -> None:
        """Put the pixels in ``out``, or add them in its first ``added`` rows of pixels."""


def make_transform(rows: Axis, columns: Axis, way: Way) -> Transform:
    """Return the transform of a row of tiles, as ``way`` computes it."""
    library = kernels() if way.native else None
    if library is not None:
        return NativeTransform(library, rows, columns)
    if way.is_dense:
        return TorchTransform(torch.kron(rows.whole(), columns.whole()).to(way.dtype), rows.size)
    return TorchTransform(
        rows.whole().to(way.dtype), rows.size, columns=columns.whole().to(way.dtype)
    )


@dataclass(frozen=True)
class TorchTransform(Transform):
    """By torch's products: of the whole matrix, or of that for the columns and then the rows'."""

    matrix: Tensor
    rows: int
    columns: Tensor | None = None

    @override
    def to_points(
        self,
        pixels: Tensor,
        *,
        dtype: torch.dtype | None = None,
        halving: Halving | None = None,
    ) -> Tensor:
        _refuse(halving)
        x = self._across(pixels, self.columns, self.rows)
        return torch.mm(self.matrix, x).view(-1, pixels.shape[1]).to(dtype or pixels.dtype)

    @override
    def to_pixels(
        self, points: Tensor, out: Tensor, *, added: int = 0, halving: Halving | None = None
    ) -> None:
        _refuse(halving)
        columns = None if self.columns is None else self.columns.T
        x = self._across(points, columns, len(self.matrix))
        flat = out.view(self.matrix.shape[1], -1)
        added = added * len(flat) // self.rows
        matrix = self.matrix.T
        flat[:added].addmm_(matrix[:added], x)
        torch.mm(matrix[added:], x, out=flat[added:])

    @staticmethod
    def _across(x: Tensor, columns: Tensor | None, rows: int) -> Tensor:
        if columns is None:
            return x
        return torch.matmul(columns, x.view(rows, -1, x.shape[1])).flatten(1)


def _refuse(halving: Halving | None) -> None:
    if halving is not None:
        raise NotImplementedError("only our own pass halves pixels")


class NativeTransform(Transform):
    """By one pass of our own, in fp32 whatever the pixels and points are."""

    def __init__(self, library: CDLL, rows: Axis, columns: Axis) -> None:
        self.library, self.axes = library, (rows, columns)
        self._matrices = [axis.matrix.float().contiguous() for axis in self.axes]
        self._sides = [
            Side(
                *(matrix.data_ptr(), len(matrix), axis.singles, matrix.shape[1]),
                *(axis.first, axis.size),
            )
            for matrix, axis in zip(self._matrices, self.axes, strict=True)
        ]

    @override
    def to_points(
        self,
        pixels: Tensor,
        *,
        dtype: torch.dtype | None = None,
        halving: Halving | None = None,
    ) -> Tensor:
        pixels = pixels.contiguous()
        points = pixels.new_empty(self._points, pixels.shape[1], dtype=dtype)
        self._run(pixels, points, forth=True, halving=halving)
        return points

    @override
    def to_pixels(
        self, points: Tensor, out: Tensor, *, added: int = 0, halving: Halving | None = None
    ) -> None:
        self._run(out, points.contiguous(), forth=False, added=added, halving=halving)

    @cached_property
    def _points(self) -> int:
        rows, columns = self.axes
        return len(rows.matrix) * len(columns.matrix) * columns.tiles

    def _run(
        self,
        pixels: Tensor,
        points: Tensor,
        *,
        forth: bool,
        added: int = 0,
        halving: Halving | None = None,
    ) -> None:
        rows, columns = self.axes
        lanes = pixels.shape[1]
        count, halved = rows.size * columns.size, None
        if halving is not None:
            count = -(-(rows.size + halving.odd) // 2) * (columns.size // 2)
            halved = HalvingC(halving.which.data_ptr(), halving.carry.data_ptr(), halving.odd)
        if not (
            pixels.shape == (count, lanes)
            and points.shape == (self._points, lanes)
            and all(_is_plain(x, KERNEL_DTYPES) for x in (pixels, points))
            and (halving is None or _are_for(halving, pixels, 0 if forth else columns.size))
        ):  # C++ would not notice
            what = [f"{x.dtype}{list(x.shape)}" for x in (pixels, points)]
            raise RuntimeError(f"no transform of {what[0]} and {what[1]}")
        failed = self.library.fasttricks_winograd(
            forth,
            *self._sides,
            *(pixels.data_ptr(), pixels.dtype == torch.bfloat16),
            *(points.data_ptr(), points.dtype == torch.bfloat16),
            *(columns.tiles, columns.step, columns.matrix.shape[1] - columns.step),
            *(added, halved, lanes, torch.get_num_threads()),
        )
        if failed == 2:
            raise MemoryError("no memory for a few pixels of Winograd's transform")
        if failed:
            sizes = [list(axis.matrix.shape) for axis in self.axes]
            raise RuntimeError(f"no transform of {sizes[0]} and {sizes[1]}")


def _are_for(halving: Halving, pixels: Tensor, width: int) -> bool:
    """Whether C++ can use them; a carry is for pixels that are written."""
    which, carry = halving.which, halving.carry
    return (
        which.shape == pixels.shape
        and _is_plain(which, (torch.uint8,))
        and carry.shape == (width, pixels.shape[1])
        and _is_plain(carry, (pixels.dtype,))
    )


def _is_plain(x: Tensor, dtypes: tuple[torch.dtype, ...]) -> bool:
    return x.is_contiguous() and x.dtype in dtypes and x.device.type == "cpu"
