"""Images that lie in memory as [H, W, N, C]: pooling and batch norm that keep them so.

Winograd's convolution works on whole pixels of all images, and torch's own operations would copy
such images to a format of theirs, and back for the next convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def is_by_pixel(x: Tensor) -> bool:
    """Whether images [N, C, H, W] lie in memory as [H, W, N, C], and in no common format too."""
    return (
        x.ndim == 4
        and x.permute(2, 3, 0, 1).is_contiguous()
        and not x.is_contiguous()
        and not x.is_contiguous(memory_format=torch.channels_last)
    )


def max_pool_by_pixel(x: Tensor, rows: int, columns: int) -> Tensor:
    """``F.max_pool2d`` with windows of rows x columns, for images by pixel and to such."""
    pooled: Tensor = _MaxPool.apply(x, (rows, columns))
    return pooled


def batch_norm_by_pixel(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The norm of images by pixel, to such.

    To its statistics pixels and images are the same, so it sees H * W images of one column and N
    rows in ``channels_last``.
    """
    pixels = x.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(2).permute(0, 3, 1, 2)
    normalized: Tensor = norm(pixels)
    pixels = normalized.permute(0, 2, 3, 1)
    return pixels.reshape(*x.shape[2:], *x.shape[:2]).permute(2, 3, 0, 1)


class _MaxPool(torch.autograd.Function):
    """One row of windows is one image in channels_last, whose channels are those of all images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int]) -> Tensor:
        images, channels, height, width = x.shape
        rows, columns = window
        count = height // rows
        bands = x.permute(2, 3, 0, 1)[: count * rows].view(count, rows, width, -1)
        pooled, indices = torch.ops.aten.max_pool2d_with_indices(
            bands.permute(0, 3, 1, 2), window, window
        )
        ctx.save_for_backward(indices)
        ctx.shape, ctx.window = x.shape, window
        found: Tensor = pooled.permute(0, 2, 3, 1)
        return found.reshape(count, width // columns, images, channels).permute(2, 3, 0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        images, channels, height, width = ctx.shape
        (indices,) = ctx.saved_tensors
        rows, window = ctx.window[0], ctx.window
        count = height // rows
        bands = grad.permute(2, 3, 0, 1).reshape(count, 1, -1, images * channels)
        like = grad.new_empty(count, rows, width, images * channels)  # for its strides
        found = torch.ops.aten.max_pool2d_with_indices_backward(
            bands.permute(0, 3, 1, 2), like.permute(0, 3, 1, 2), window, window, [0, 0], [1, 1],
            False, indices,
        )  # fmt: skip
        found = found.permute(0, 2, 3, 1).reshape(count * rows, width, images, channels)
        if count * rows < height:
            found = torch.nn.functional.pad(found, (0, 0, 0, 0, 0, 0, 0, height - count * rows))
        return found.permute(2, 3, 0, 1), None
