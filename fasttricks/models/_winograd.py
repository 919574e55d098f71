"""3 x 3 convolutions by Winograd's algorithm: a third of the multiplications, for a CPU's bf16.

Legend: N images of H x W pixels, C channels in, K out, m the side of an output tile, n = m + 2 that
of the input tile it needs, T tiles in all images together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fasttricks._checks import check_integer

# Pairs of these signs and sizes keep the errors of bf16 the smallest of those tried: 1.3 % of the
# output's norm for m = 4, where 0, 1, -1, 2, -2 of the paper have 3 %.
_POINTS = {3: (0.0, 1.0, -1.0, 2.0), 4: (0.0, 2 / 3, -2 / 3, 1.5, -1.5)}


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution that trains faster in bf16 on a CPU, by a third of the multiplications.

    While training under bf16 autocast on a CPU it cuts the images into tiles of m x m pixels,
    transforms tiles and weights, multiplies, and transforms back; its gradients come the same way.
    Results differ from those of ``nn.Conv2d`` by rounding, 1 to 2 % of their norm where bf16 itself
    rounds 0.3 %. In evaluation, in any other precision, elsewhere, and for maps where it does not
    pay, it is ``nn.Conv2d``. It needs more memory, for the transformed images.

    Args:
        in_channels: C.
        out_channels: K.
        device: Of the weight.
        dtype: Of the weight.

    Raises:
        ValueError: If a size is out of its range.

    Example:
        >>> conv = WinogradConv2d(128, 128)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     conv(torch.randn(2, 128, 7, 7)).shape
        torch.Size([2, 128, 7, 7])

    Reference:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308,
        section 4; matrices for other points by Cook and Toom's rule.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, padding=1, bias=False, device=device, dtype=dtype
        )

    @override
    def forward(self, input: Tensor) -> Tensor:
        m = self._tile(input)
        if m is None:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            found: Tensor = _Winograd.apply(input.to(torch.bfloat16), self.weight, m)
        return found

    def _tile(self, x: Tensor) -> int | None:
        """Return the side of the output tiles, or None where the usual way is taken."""
        applies = (
            self.training
            and torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.ndim == 4
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and not torch.compiler.is_compiling()
        )
        return best_tile(*x.shape[2:]) if applies else None


def use_winograd_(model: nn.Module, *, min_channels: int = 128) -> int:
    """Put a ``WinogradConv2d`` in the place of every convolution that it is for, in place.

    Those are 3 x 3, of stride 1, padded by 1, without bias or groups. The parameters stay the same
    objects, under their names.

    Args:
        model: The network.
        min_channels: Fewest channels in and out; with fewer, the transforms cost more than the
            multiplications save. Default 128.

    Returns:
        How many were replaced; 0 is no error.

    Raises:
        ValueError: If ``min_channels`` is under 1.

    Example:
        >>> use_winograd_(nn.Sequential(nn.Conv2d(128, 256, 3, padding=1, bias=False)))
        1
    """
    check_integer("min_channels", min_channels, minimum=1)
    places = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if type(child) is nn.Conv2d and _fits(child, min_channels)
    ]
    for parent, name, conv in places:
        new = WinogradConv2d(conv.in_channels, conv.out_channels, device="meta")
        new.weight = conv.weight
        setattr(parent, name, new.train(conv.training))
    return len(places)


def _fits(conv: nn.Conv2d, min_channels: int) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and conv.bias is None
        and min(conv.in_channels, conv.out_channels) >= min_channels
    )


def best_tile(rows: int, columns: int) -> int | None:
    """Return the side of the output tiles that multiplies least, or None if little is saved."""
    costs = {m: -(-rows // m) * -(-columns // m) * (m + 2) ** 2 for m in _POINTS}
    m = min(costs, key=costs.__getitem__)
    return m if costs[m] < 0.5 * 9 * rows * columns else None


@lru_cache
def winograd_matrices(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return A [m, n], G [n, 3], B [n, n] with conv(x, w) = A [(G w) * (B x)], in float64.

    Each polynomial is told by its values at n - 1 points and its leading coefficient; B's rows are
    brought to norm 1, and G's to its reciprocal, which keeps what is rounded in range.
    """
    points = torch.tensor(_POINTS[m], dtype=torch.float64)
    n = m + 2

    def values(length: int) -> Tensor:
        leading = torch.zeros(1, length, dtype=torch.float64)
        leading[0, -1] = 1
        return torch.cat([points[:, None] ** torch.arange(length), leading])

    inverse = torch.linalg.inv(values(n)).T
    norms = inverse.norm(dim=1, keepdim=True)
    return values(m).T, values(3) * norms, inverse / norms


@lru_cache
def _on_tiles(m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices for flattened tiles: A [m * m, n * n], G [n * n, 9], B [n * n, n * n]."""
    a, g, b = (torch.kron(matrix, matrix) for matrix in winograd_matrices(m))
    return (
        a.to(dtype),
        g.to(torch.float64 if dtype == torch.float64 else torch.float32),
        b.to(dtype),
    )


class _Winograd(torch.autograd.Function):
    """x [N, C, H, W], weight [K, C, 3, 3] to [N, K, H, W], computed in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, m: int) -> Tensor:
        a, g, b = _on_tiles(m, x.dtype)
        n, (images, channels, rows, columns) = m + 2, x.shape
        down, across = -(-rows // m), -(-columns // m)
        padded = x.new_zeros(images, down * m + 2, across * m + 2, channels)
        padded[:, 1 : rows + 1, 1 : columns + 1] = x.permute(0, 2, 3, 1)
        pieces = _tiles(padded, n, m).reshape(n * n, -1, channels)
        v = (b @ pieces.flatten(1)).view_as(pieces)  # [n * n, T, C]
        kernels = weight.to(g.dtype).reshape(-1, 9) @ g.T
        u = kernels.view(len(weight), channels, n * n).permute(2, 1, 0).to(x.dtype)
        u = u.contiguous()  # [n * n, C, K]
        products = torch.bmm(v, u)
        y = (a @ products.flatten(1)).view(m, m, images, down, across, -1)
        out = x.new_empty(images, rows, columns, len(weight))
        _join(y, out, m)
        ctx.save_for_backward(v, u)
        ctx.m, ctx.shape, ctx.dtype = m, x.shape, weight.dtype
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        v, u = ctx.saved_tensors
        m, (images, channels, rows, columns) = ctx.m, ctx.shape
        a, g, b = _on_tiles(m, v.dtype)
        n, down, across = m + 2, -(-rows // m), -(-columns // m)
        padded = grad.new_zeros(images, down * m, across * m, grad.shape[1])
        padded[:, :rows, :columns] = grad.permute(0, 2, 3, 1)
        pieces = _tiles(padded, m, m).reshape(m * m, -1, grad.shape[1])
        products = (a.T @ pieces.flatten(1)).view(n * n, -1, grad.shape[1])  # [n * n, T, K]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_u = torch.bmm(v.transpose(1, 2), products)  # [n * n, C, K]
            flat = g.T @ grad_u.to(g.dtype).flatten(1)
            grad_weight = flat.view(3, 3, channels, -1).permute(3, 2, 0, 1).to(ctx.dtype)
        if ctx.needs_input_grad[0]:
            grad_v = torch.bmm(products, u.transpose(1, 2))
            grad_pieces = (b.T @ grad_v.flatten(1)).view(n, n, images, down, across, channels)
            grad_x = _add_up(grad_pieces, m)[:, 1 : rows + 1, 1 : columns + 1].permute(0, 3, 1, 2)
        return grad_x, grad_weight, None


def _tiles(padded: Tensor, side: int, step: int, *, top: int = 0, left: int = 0) -> Tensor:
    """View images [N, H, W, C] as tiles [side, side, N, down, across, C], which may overlap."""
    parts = padded[:, top:, left:].unfold(1, side, step).unfold(2, side, step)
    return parts.permute(4, 5, 0, 1, 2, 3)


def _join(tiles: Tensor, out: Tensor, m: int) -> None:
    """Write tiles [m, m, N, down, across, K] to ``out`` [N, H, W, K], cut off at its border."""
    by_image = tiles.permute(2, 3, 0, 4, 1, 5)  # [N, down, m, across, m, K]
    for rows, tile_rows, r in _blocks(out.shape[1], m):
        for columns, tile_columns, c in _blocks(out.shape[2], m):
            place = out[:, rows, columns].unflatten(2, (-1, c)).unflatten(1, (-1, r))
            place.copy_(by_image[:, tile_rows, :r, tile_columns, :c])


def _blocks(size: int, m: int) -> list[tuple[slice, slice, int]]:
    """The part of whole tiles and the cut one: pixels, tiles, and pixels that are used of each."""
    whole, rest = divmod(size, m)
    blocks = [(slice(0, whole * m), slice(0, whole), m)] if whole else []
    return blocks + ([(slice(whole * m, size), slice(whole, whole + 1), rest)] if rest else [])


def _add_up(tiles: Tensor, m: int) -> Tensor:
    """Sum overlapping tiles [n, n, N, down, across, C] to images [N, down * m + 2, ..., C]."""
    n, _, images, down, across, channels = tiles.shape
    # One tile more each way, into which the last ones reach by two pixels.
    out = tiles.new_zeros(images, (down + 1) * m, (across + 1) * m, channels)
    for top, rows in ((0, m), (m, n - m)):
        for left, columns in ((0, m), (m, n - m)):
            place = _tiles(out, m, m, top=top, left=left)[:rows, :columns, :, :down, :across]
            part = tiles[top : top + rows, left : left + columns]
            place.copy_(part) if top == left == 0 else place.add_(part)
    return out[:, : down * m + 2, : across * m + 2]
