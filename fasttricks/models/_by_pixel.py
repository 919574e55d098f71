"""Images that lie in memory as [H, W, N, C]: pooling and batch norm that keep them so.

Winograd's convolution works on whole pixels of all images, and torch's own operations would copy
such images to a format of theirs, and back for the next convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fasttricks.models._kernels import KERNEL_DTYPES, are_plain_images, kernels


class ForCPU:
    """A block that can be told by ``use_winograd_`` to do what is quicker on a CPU."""

    made_for_cpu = False
    made_for_evaluation = False
    training: bool

    def _takes_cpu_path(self) -> bool:
        in_mode = self.training or self.made_for_evaluation
        return in_mode and self.made_for_cpu and not torch.compiler.is_compiling()


def is_by_pixel(x: Tensor) -> bool:
    """Whether images [N, C, H, W] lie in memory as [H, W, N, C], and not in channels_last too."""
    return (
        isinstance(x, Tensor)  # and not what torch.fx traces with
        and x.ndim == 4
        and x.permute(2, 3, 0, 1).is_contiguous()
        and len(x) > 1
        and x.shape[2:].numel() > 1
    )


def layout_for_kernels(x: Tensor) -> bool | None:
    """Whether images are by pixel, or else in channels_last; None if C++ cannot take them."""
    if not are_plain_images(x) or x.dtype not in KERNEL_DTYPES:
        return None
    if is_by_pixel(x):
        return True
    return False if x.is_contiguous(memory_format=torch.channels_last) else None


def max_pool_by_pixel(x: Tensor, rows: int, columns: int) -> Tensor:
    """``F.max_pool2d`` with windows of rows x columns, for images by pixel and to such."""
    images, channels, height, width = x.shape
    count = height // rows
    pixels = x.permute(2, 3, 0, 1)
    if count * rows < height:
        pixels = pixels[: count * rows]
    bands = pixels.reshape(count, rows, width, -1).permute(0, 3, 1, 2)
    pooled: Tensor = _MaxPool.apply(bands, (rows, columns))
    pixels = pooled.squeeze(2).permute(0, 2, 1)
    return pixels.reshape(count, -1, images, channels).permute(2, 3, 0, 1)


def batch_norm_by_pixel(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The norm of images by pixel, to such.

    To its statistics pixels and images are the same, so it sees H * W images of one column and N
    rows in ``channels_last``.
    """
    pixels = x.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(2).permute(0, 3, 1, 2)
    normalized: Tensor = norm(pixels)
    pixels = normalized.permute(0, 2, 3, 1)
    return pixels.reshape(*x.shape[2:], *x.shape[:2]).permute(2, 3, 0, 1)


def try_halve(x: Tensor) -> Tensor | None:
    """``F.max_pool2d`` with windows of 2 x 2 in compiled C++, equal to the bit, or None.

    Takes images in [H, W, N, C] or channels_last order while gradients are recorded, and returns
    the same order. None for any other input, and where it could not be compiled.
    """
    by_pixel = layout_for_kernels(x)
    if by_pixel is None or not x.requires_grad or min(x.shape[2:]) < 2:
        return None
    library = kernels()
    if library is None:
        return None
    found: Tensor = _Halve.apply(x, by_pixel, library)
    return found


class _Halve(torch.autograd.Function):
    """A byte for each maximum says where it was, where torch keeps eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by_pixel: bool, library: CDLL) -> Tensor:
        images, channels, rows, columns = x.shape
        found = empty_images(x, (images, channels, rows // 2, columns // 2), by_pixel=by_pixel)
        which = empty_images(found, found.shape, by_pixel=by_pixel, dtype=torch.uint8)
        library.fasttricks_max_pool(
            x.dtype == torch.bfloat16,
            *(x.data_ptr(), found.data_ptr(), which.data_ptr()),
            *_maps(x.shape, by_pixel),
        )
        ctx.save_for_backward(which)
        ctx.shape, ctx.by_pixel, ctx.library = x.shape, by_pixel, library
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (which,) = ctx.saved_tensors
        grad, which = laid(grad, ctx.by_pixel), laid(which, ctx.by_pixel)
        found = empty_images(grad, ctx.shape, by_pixel=ctx.by_pixel)
        ctx.library.fasttricks_max_pool_backward(
            grad.dtype == torch.bfloat16,
            *(grad.data_ptr(), which.data_ptr(), found.data_ptr()),
            *_maps(ctx.shape, ctx.by_pixel),
        )
        return found, None, None


def empty_images(
    like: Tensor, shape: Sequence[int], *, by_pixel: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """Return images of a shape, not filled, by pixel or in channels_last, and no view of others."""
    return like.new_empty_strided(tuple(shape), _strides(shape, by_pixel), dtype=dtype)


def as_images(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    """[H * W, N * C] seen as images [N, C, H, W] by pixel."""
    return pixels.as_strided(tuple(shape), _strides(shape, by_pixel=True))


def _strides(shape: Sequence[int], by_pixel: bool) -> tuple[int, int, int, int]:
    """Of one image both orders are the same, and torch's batch norm misreads any but these."""
    images, channels, rows, columns = shape
    if by_pixel and images > 1:
        return channels, 1, columns * images * channels, images * channels
    return rows * columns * channels, 1, columns * channels, channels


def laid(x: Tensor, by_pixel: bool) -> Tensor:
    """The same numbers in the order that C++ takes for granted."""
    if by_pixel:
        return x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    return x.contiguous(memory_format=torch.channels_last)


def _maps(shape: Sequence[int], by_pixel: bool) -> tuple[int, int, int, int]:
    """Number of maps, their rows and columns, and the lanes of a pixel."""
    images, channels, rows, columns = shape
    return (1, rows, columns, images * channels) if by_pixel else (images, rows, columns, channels)


class _MaxPool(torch.autograd.Function):
    """A row of windows is one image in channels_last, whose channels are those of all images.

    torch's own pass would keep the convolution's output until its backward pass, and take the
    strides of such images of one row for another format's, into which it would copy.
    """

    @staticmethod
    def forward(ctx: Any, bands: Tensor, window: tuple[int, int]) -> Tensor:
        pooled: Tensor
        pooled, indices = torch.ops.aten.max_pool2d_with_indices(bands, window, window)
        ctx.save_for_backward(indices)
        ctx.shape, ctx.window = bands.shape, window
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        count, channels, rows, width = ctx.shape
        grad = grad.squeeze(2).permute(0, 2, 1).contiguous().unsqueeze(1).permute(0, 3, 1, 2)
        like = grad.new_empty(count, rows, width, channels).permute(0, 3, 1, 2)  # for its strides
        found: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, like, ctx.window, ctx.window, [0, 0], [1, 1], False, indices
        )
        return found, None
