"""3 x 3 convolutions by Winograd's algorithm: fewer multiplications, for training in a CPU's bf16.

Legend: N images of H x W pixels, C channels in, K out, m the side of an output tile, n = m + 2 that
of the input tile it needs. Tiles are worked off a row of them at a time, a strip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import harmonic_mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fasttricks._checks import check_integer

# Pairs of these signs and sizes keep the errors of bf16 the smallest of those tried: 1.7 % of the
# output's norm for m = 4, where 0, 1, -1, 2, -2 of the paper have 3 %.
_POINTS = {3: (0.0, 1.0, -1.0, 2.0), 4: (0.0, 2 / 3, -2 / 3, 1.5, -1.5)}

# A strip's matrices grow with the square of its width.
_WIDEST = 16


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution that trains faster in bf16 on a CPU, by fewer multiplications.

    While training under bf16 autocast on a CPU it cuts the images into tiles of m x m pixels,
    transforms tiles and weights, multiplies a quarter to half as often, and transforms back; its
    gradients come the same way. Results differ from those of ``nn.Conv2d`` by rounding, about 2 %
    of their norm where bf16 itself rounds 0.3 %. The transformed images, 2.25 to 4.5 times the
    input, are kept for the backward pass.

    In evaluation, in any other precision, elsewhere, compiled, and on maps wider than 16 pixels or
    so small that it would not halve the multiplications, it is ``nn.Conv2d``. It has no second
    derivative, and ``torch.func`` cannot transform it.

    Args:
        in_channels: C, at least 1.
        out_channels: K, at least 1.
        device: Of the weight; torch's default device by default.
        dtype: Of the weight; torch's default dtype by default.

    Shape:
        Float images [N, C, H, W] to [N, K, H, W]: padded by 1, stride 1, no bias.

    Raises:
        ValueError: If a number of channels is under 1.

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
        check_integer("in_channels", in_channels, minimum=1)
        check_integer("out_channels", out_channels, minimum=1)
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
            and self.bias is None  # that of a batch norm, once it is fused
            and torch.is_grad_enabled()
            and (x.requires_grad or self.weight.requires_grad)
            and type(x) is Tensor
            and x.device.type == "cpu"
            and x.dtype != torch.float64  # which autocast leaves alone
            and x.ndim == 4
            and x.numel() > 0
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and not torch.compiler.is_compiling()
        )
        return best_tile(*x.shape[2:]) if applies else None


def use_winograd_(model: nn.Module, *, min_channels: int = 96) -> int:
    """Make a ``WinogradConv2d`` of every convolution that it is for, in place.

    Those are 3 x 3, of stride 1, padded by 1, without bias or groups. The modules stay the same
    objects, with their parameters, names, hooks and mode.

    Args:
        model: The network.
        min_channels: Fewest channels, as the harmonic mean of those in and out: what is saved goes
            with their product, what the transforms cost with their sum. Default 96, which takes
            64 to 192 and leaves 64 to 128.

    Returns:
        How many there were; 0 is no error.

    Raises:
        ValueError: If ``min_channels`` is under 1.

    Example:
        >>> use_winograd_(nn.Sequential(nn.Conv2d(128, 256, 3, padding=1, bias=False)))
        1
    """
    check_integer("min_channels", min_channels, minimum=1)
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d and _fits(module, min_channels)
    ]
    for module in found:
        module.__class__ = WinogradConv2d
    return len(found)


def _fits(conv: nn.Conv2d, min_channels: int) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and conv.bias is None
        and harmonic_mean([conv.in_channels, conv.out_channels]) >= min_channels
    )


def best_tile(rows: int, columns: int) -> int | None:
    """Return the side of the output tiles that multiplies least, or None if it does not pay."""
    if columns > _WIDEST:
        return None
    costs = {
        m: -(-columns // m) * (m + 2) * sum(height + 2 for _, height in _heights(rows, m))
        for m in _POINTS
    }
    m = min(costs, key=costs.__getitem__)
    return m if costs[m] < 0.5 * 9 * rows * columns else None


@lru_cache
def winograd_matrices(m: int, outputs: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return A [k, n], G [n, 3], B [n, n] with conv(x, w) = A [(G w) * (B x)], in float64.

    k is m, or fewer outputs, which take the first n = k + 2 of m's points and rows of its G. Each
    polynomial is told by its leading coefficient and its values at n - 1 points; the rows of m's B
    are brought to norm 1, and G's to its reciprocal, which keeps what is rounded in range.
    """
    k = m if outputs is None else outputs
    inverse = torch.linalg.inv(_values(m, m + 2)).T
    norms = inverse.norm(dim=1, keepdim=True)[: k + 2]
    inverse = torch.linalg.inv(_values(m, k + 2)).T
    return _values(m, k, k + 2).T, _values(m, 3, k + 2) * norms, inverse / norms


def _values(m: int, length: int, count: int | None = None) -> Tensor:
    """[count, length]: a polynomial's leading coefficient and values, from its coefficients."""
    points = torch.tensor(_POINTS[m], dtype=torch.float64, device="cpu")[:, None]
    leading = _zeros(1, length)
    leading[0, -1] = 1
    return torch.cat([leading, points ** torch.arange(length, device="cpu")])[: count or length]


def _zeros(*shape: int) -> Tensor:
    """On the CPU, whatever the default device is."""
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class _Strip:
    """A row of tiles: the pixels it reads and writes, of a map's H * W, and its matrices.

    a [pixels written, points * tiles] and b [points * tiles, pixels read]: the pieces are ordered
    by the polynomials' point in rows and columns first, then by the tile. A strip of fewer rows
    than m takes the first of all n * n points.
    """

    points: int
    read: slice
    written: slice
    a: Tensor
    b: Tensor


@lru_cache
def _strips(m: int, rows: int, columns: int, dtype: torch.dtype) -> tuple[_Strip, ...]:
    """Cut a map into rows of tiles; pixels outside are zero, so that no matrix has them."""
    a, _, b = winograd_matrices(m)
    n, across = m + 2, -(-columns // m)
    to_columns = _zeros(columns, n, across)
    from_columns = _zeros(n, across, columns)
    for tile in range(across):
        start, stop = tile * m, min(columns, (tile + 1) * m)
        to_columns[start:stop, :, tile] = a[: stop - start]
        inside, cut = _reach(start, m, columns)
        from_columns[:, tile, inside] = b[:, cut]
    found = []
    for start, height in _heights(rows, m):
        a, _, b = winograd_matrices(m, height)
        inside, cut = _reach(start, height, rows)
        points = (height + 2) * n
        whole_a = torch.einsum("hp,wqt->hwpqt", a, to_columns)
        whole_b = torch.einsum("ph,qtw->pqthw", b[:, cut], from_columns)
        found.append(
            _Strip(
                points,
                read=slice(inside.start * columns, inside.stop * columns),
                written=slice(start * columns, (start + height) * columns),
                a=whole_a.reshape(-1, points * across).to(dtype),
                b=whole_b.reshape(points * across, -1).to(dtype),
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


class _Winograd(torch.autograd.Function):
    """x [N, C, H, W], weight [K, C, 3, 3] to [N, K, H, W], computed in the dtype of x.

    It works on [H * W, N * C], so that a strip of tiles is one matrix away from its pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, m: int) -> Tensor:
        images, channels, rows, columns = x.shape
        points, outputs = (m + 2) ** 2, len(weight)
        g = _weight_matrix(m, x.dtype)
        kernels = weight.to(g.dtype).reshape(-1, 9) @ g.T
        u = kernels.view(outputs, channels, points).permute(2, 1, 0).to(x.dtype).contiguous()
        pixels = _by_pixel(x)
        y = x.new_empty(rows * columns, images * outputs)
        transformed = []
        for strip in _strips(m, rows, columns, x.dtype):
            v = torch.mm(strip.b, pixels[strip.read]).view(strip.points, -1, channels)
            products = torch.bmm(v, u[: strip.points])  # [points, tiles * N, K]
            torch.mm(strip.a, products.view(-1, images * outputs), out=y[strip.written])
            if ctx.needs_input_grad[1]:
                transformed.append(v)
        ctx.save_for_backward(u, *transformed)
        ctx.m, ctx.shape, ctx.dtype = m, x.shape, weight.dtype
        return _by_image(y, images, rows, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        with torch.autocast("cpu", enabled=False):
            return *_gradients(ctx, grad), None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight, each None where it is not needed."""
    needs_x, needs_weight, _ = ctx.needs_input_grad
    m, (images, channels, rows, columns) = ctx.m, ctx.shape
    outputs = grad.shape[1]
    u, *transformed = ctx.saved_tensors
    g = _weight_matrix(m, grad.dtype)
    grad_x = grad.new_zeros(rows * columns, images * channels) if needs_x else None
    grad_u = g.new_zeros((m + 2) ** 2, channels, outputs) if needs_weight else None
    pixels = _by_pixel(grad)
    for number, strip in enumerate(_strips(m, rows, columns, grad.dtype)):
        points = strip.points
        products = torch.mm(strip.a.T, pixels[strip.written]).view(points, -1, outputs)
        if grad_u is not None:
            grad_u[:points] += torch.bmm(transformed[number].transpose(1, 2), products)
        if grad_x is not None:  # strips share two rows of pixels
            grad_v = torch.bmm(products, u[:points].transpose(1, 2))
            grad_x[strip.read].addmm_(strip.b.T, grad_v.view(-1, images * channels))
    if grad_u is not None:
        flat = (g.T @ grad_u.flatten(1)).view(3, 3, channels, outputs)
        grad_u = flat.permute(3, 2, 0, 1).to(ctx.dtype)
    if grad_x is not None:
        grad_x = _by_image(grad_x, images, rows, columns)
    return grad_x, grad_u


@lru_cache
def _weight_matrix(m: int, dtype: torch.dtype) -> Tensor:
    """G for flattened kernels [n * n, 9], in float32 at least."""
    g = winograd_matrices(m)[1]
    return torch.kron(g, g).to(torch.promote_types(dtype, torch.float32))


def _by_pixel(x: Tensor) -> Tensor:
    """Images [N, C, H, W] to [H * W, N * C]."""
    return x.permute(2, 3, 0, 1).reshape(x.shape[2] * x.shape[3], -1)


def _by_image(pixels: Tensor, images: int, rows: int, columns: int) -> Tensor:
    """[H * W, N * C] to images [N, C, H, W] in channels_last."""
    by_image = pixels.view(rows, columns, images, -1).permute(2, 0, 1, 3)
    return by_image.contiguous().permute(0, 3, 1, 2)
