"""The matrices that transform pixels for Winograd's algorithm, and how they are multiplied.

Pixels are [h * w, M], M the channels of all images. A transform is a matrix for the rows and one
for the columns, and its whole matrix is their Kronecker product.
"""

from __future__ import annotations

from ctypes import CDLL
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks.models._kernels import KERNEL_DTYPES, kernels


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


class Transform(Protocol):
    """A matrix for pixels."""

    @property
    def T(self) -> Transform:  # noqa: N802, as of a tensor
        """The transposed matrix."""

    def __call__(self, x: Tensor, *, out: Tensor | None = None, add: bool = False) -> Tensor:
        """Return the product with x [h * w, M]; put it in ``out`` where given, or ``add`` it."""


def make_transform(rows: Tensor, columns: Tensor, way: Way) -> Transform:
    """Return the transform of rows and columns, both in float64, as ``way`` computes it."""
    library = kernels() if way.native else None
    if library is not None:
        return NativeTransform(library, rows.float().contiguous(), columns.float())
    if way.is_dense:
        return TorchTransform(torch.kron(rows.contiguous(), columns).to(way.dtype))
    return TorchTransform(rows.to(way.dtype), columns.to(way.dtype))


@dataclass(frozen=True)
class TorchTransform(Transform):
    """By torch's products: of the whole matrix, or of that for the columns and then the rows'."""

    rows: Tensor
    columns: Tensor | None = None

    @cached_property
    @override
    def T(self) -> TorchTransform:
        return TorchTransform(self.rows.T, None if self.columns is None else self.columns.T)

    @override
    def __call__(self, x: Tensor, *, out: Tensor | None = None, add: bool = False) -> Tensor:
        size = x.shape[1]
        if self.columns is not None:
            x = torch.matmul(self.columns, x.view(self.rows.shape[1], -1, size))
            x = x.view(len(x), -1)
        if out is None:
            return torch.mm(self.rows, x).view(-1, size)
        flat = out.view(len(self.rows), -1)
        if add:
            flat.addmm_(self.rows, x)
        else:
            torch.mm(self.rows, x, out=flat)
        return out


@dataclass(frozen=True)
class NativeTransform(Transform):
    """By one pass of our own, in fp32 whatever the pixels are; both matrices are in fp32."""

    library: CDLL
    rows: Tensor
    columns: Tensor

    @cached_property
    @override
    def T(self) -> NativeTransform:
        return NativeTransform(self.library, self.rows.T.contiguous(), self.columns.T)

    @override
    def __call__(self, x: Tensor, *, out: Tensor | None = None, add: bool = False) -> Tensor:
        (up, height), (across, width) = self.rows.shape, self.columns.shape
        x, lanes = x.contiguous(), x.shape[1]
        if out is None:
            out = x.new_empty(up * across, lanes)
        if not (
            x.shape == (height * width, lanes)
            and out.shape == (up * across, lanes)
            and out.is_contiguous()
            and x.dtype == out.dtype in KERNEL_DTYPES
            and x.device.type == out.device.type == "cpu"
        ):  # C++ would not notice
            raise RuntimeError(f"no transform of {x.dtype}{x.shape} to {out.dtype}{out.shape}")
        starts, index, value = self._sparse
        failed = self.library.fasttricks_winograd(
            x.dtype == torch.bfloat16,
            add,
            *(self.rows.data_ptr(), up, height),
            *(starts.data_ptr(), index.data_ptr(), value.data_ptr(), across, width),
            *(x.data_ptr(), out.data_ptr(), lanes),
        )
        if failed == 1:
            raise MemoryError("no memory for a few pixels of Winograd's transform")
        if failed:
            raise RuntimeError(f"no transform of {height} rows of pixels")
        return out

    @cached_property
    def _sparse(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each row of ``columns`` starts, which columns it has, and their values."""
        rows, index = self.columns.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(self.columns))
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return starts.int(), index.int(), self.columns[rows, index]
