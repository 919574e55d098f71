"""Images that lie in memory as [H, W, N, C]: pooling and batch norm that keep them so.

Winograd's convolution works on whole pixels of all images, and torch's own operations would copy
such images to a format of theirs, and back for the next convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fasttricks.models._kernels import KERNEL_DTYPES, kernels


class ForCPU:
    """A block that can be told by ``use_winograd_`` to do what is quicker on a CPU."""

    made_for_cpu = False


def is_by_pixel(x: Tensor) -> bool:
    """Whether images [N, C, H, W] lie in memory as [H, W, N, C], and not in channels_last too."""
    return (
        x.ndim == 4
        and x.permute(2, 3, 0, 1).is_contiguous()
        and len(x) > 1
        and x.shape[2:].numel() > 1
    )


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


def can_halve(x: Tensor) -> bool:
    """Whether ``halve_quickly`` is for these images, which are to be trained on."""
    return (
        x.device.type == "cpu"
        and x.dtype in KERNEL_DTYPES
        and x.requires_grad
        and x.ndim == 4
        and min(x.shape[2:]) >= 2
        and x.numel() > 0
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and (x.is_contiguous(memory_format=torch.channels_last) or is_by_pixel(x))
        and kernels() is not None
    )


def halve_quickly(x: Tensor) -> Tensor:
    """``F.max_pool2d`` with windows of 2 x 2 by our own passes, the same to the bit.

    Of images by pixel or in channels_last, to such.
    """
    found: Tensor = _Halve.apply(x)
    return found


class _Halve(torch.autograd.Function):
    """A byte for each maximum says where it was, where torch keeps eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        if is_by_pixel(x):  # one map, of all images
            order, maps, lanes = (2, 3, 0, 1), 1, images * channels
        else:
            order, maps, lanes = (0, 2, 3, 1), images, channels
        size = images, channels, height // 2, width // 2
        found = x.new_empty([size[place] for place in order])
        which = torch.empty_like(found, dtype=torch.uint8)
        pixels = x.permute(order)
        ctx.sizes = maps, height, width, lanes
        _kernel("fasttricks_max_pool", pixels, found, which, *ctx.sizes)
        ctx.save_for_backward(which)
        ctx.order, ctx.shape = order, pixels.shape
        return _back(found, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (which,) = ctx.saved_tensors
        grad = grad.permute(ctx.order).contiguous()
        found = grad.new_empty(ctx.shape)
        _kernel("fasttricks_max_pool_backward", grad, which, found, *ctx.sizes)
        return _back(found, ctx.order)


def _back(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Undo ``permute(order)``."""
    return x.permute([order.index(place) for place in range(4)])


def _kernel(name: str, first: Tensor, *rest: Tensor | int) -> None:
    pointers = [x.data_ptr() if isinstance(x, Tensor) else x for x in (first, *rest)]
    getattr(kernels(), name)(first.dtype == torch.bfloat16, *pointers)


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
