"""Batch norm and the activation after it by one pass over images on a CPU, of our own C++.

Forward, images are read twice and written once, where torch's two passes read three times and write
twice; backward they and their gradients are read twice, where torch's also write in between.
"""

from __future__ import annotations

from ctypes import CDLL
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fasttricks.models._by_pixel import empty_images, laid, layout_for_kernels
from fasttricks.models._celu import CELU
from fasttricks.models._kernels import kernels

# Rows are added up in so many parts, and these at last: the same for any number of threads.
_PARTS = 64
_MULTIPLE = 16  # of channels, a whole vector; with a part of one torch's own are faster
_MOST_CHANNELS = 1024  # of an activation without a norm


class _Act(NamedTuple):
    number: int  # in C++
    alpha: float = 1.0


def try_norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor | None:
    """``act(norm(x))`` in compiled C++, equal up to rounding, or None.

    Takes images in [H, W, N, C] or channels_last order, those to train on while gradients are
    recorded and those to evaluate while none are, and returns the same order. None for any other
    input, for a norm or activation that the C++ does not cover, and where it could not be compiled.
    """
    by_pixel = layout_for_kernels(x)
    if by_pixel is None or not isinstance(norm, nn.BatchNorm2d) or not _is_plain(norm):
        return None
    known = _known(act)
    if (
        known is None
        or torch.is_grad_enabled() != norm.training
        or x.shape[1] != norm.num_features
        or x.shape[1] % _MULTIPLE
        or x.numel() == x.shape[1]  # for which torch has an error
    ):
        return None
    library = kernels()
    if library is None:
        return None
    if not norm.training:
        mean, variance = norm.running_mean, norm.running_var
        fits = mean is not None and mean.shape == x.shape[1:2] and mean.device == x.device
        if mean is None or variance is None or not fits:
            return None  # or torch's error
        lines, _ = _lines(mean.double(), variance.double(), norm.weight, norm.bias, norm.eps)
        return _norm_act(x, lines, known, by_pixel, library)
    y: Tensor
    y, mean, variance = _NormAct.apply(
        *(x, norm.weight, norm.bias, norm.eps), known, by_pixel, library
    )
    _follow(norm, mean, variance, count=x.numel() // x.shape[1])
    return y


def act_by_pixel(act: nn.Module, x: Tensor) -> Tensor | None:
    """``act(x)`` in compiled C++, from channels_last to [H, W, N, C] order, or None.

    None for any other input, for an activation that the C++ does not cover, and where it could not
    be compiled.
    """
    if layout_for_kernels(x) is not False or x.shape[1] > _MOST_CHANNELS:
        return None
    known = _known(act)
    if known is None:
        return None
    library = kernels()
    if library is None:
        return None
    y: Tensor = _ActByPixel.apply(x, act, known, library)
    return y


def _known(act: nn.Module) -> _Act | None:
    if isinstance(act, (nn.ReLU, nn.SiLU, nn.CELU)) and act.inplace:
        return None
    if isinstance(act, nn.CELU) and type(act) in (nn.CELU, CELU):
        return _Act(3, act.alpha)
    if isinstance(act, nn.GELU) and act.approximate != "none":
        return None
    numbers: dict[type, int] = {nn.Identity: 0, nn.ReLU: 1, nn.SiLU: 2, nn.GELU: 4}
    number = numbers.get(type(act))
    return None if number is None else _Act(number)


def _is_plain(norm: nn.BatchNorm2d) -> bool:
    """Whether it is torch's own batch norm, with fp32 numbers."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.momentum is not None
        and all(p.dtype == torch.float32 for p in norm.parameters())
    )


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, *, count: int) -> None:
    """Bring the running statistics nearer to a batch's, as torch does."""
    if not norm.track_running_stats or norm.momentum is None:
        return
    if norm.running_mean is None or norm.running_var is None:
        return
    unbiased = variance * (count / (count - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


class _NormAct(torch.autograd.Function):
    """Also gives the mean and the variance of each channel, in float64."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        act: _Act,
        by_pixel: bool,
        library: CDLL,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, is_bf16 = _rows(x, by_pixel), x.dtype == torch.bfloat16
        # taken away from all, so that those far from 0 are no less exact
        shift = rows[:: max(1, len(rows) // _PARTS)].float().mean(0)
        parts = _parts(rows)
        library.fasttricks_sums(
            *(is_bf16, shift.data_ptr(), x.data_ptr(), *rows.shape), len(parts), parts.data_ptr()
        )
        first, square = parts.double().sum(0) / len(rows)
        variance = (square - first.square()).clamp_(min=0)
        mean = first + shift
        norm, deviation = _lines(mean, variance, weight, bias, eps)
        y = _norm_act(x, norm, act, by_pixel, library)
        ctx.save_for_backward(x, norm, deviation)
        ctx.act, ctx.by_pixel, ctx.library = act, by_pixel, library
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, norm, deviation = ctx.saved_tensors
        # in another order if somebody kept them elsewhere meanwhile
        x, grad, norm = laid(x, ctx.by_pixel), laid(grad, ctx.by_pixel), norm.contiguous()
        rows = _rows(x, ctx.by_pixel)
        parts = _parts(rows)
        given = (
            *(x.dtype == torch.bfloat16, *ctx.act),
            *(norm.data_ptr(), x.data_ptr(), grad.data_ptr()),
        )
        ctx.library.fasttricks_norm_act_sums(*given, *rows.shape, len(parts), parts.data_ptr())
        # of the gradient of the norm's output, and of that times (x - mean)
        total, along = parts.double().sum(0)
        grad_x = None
        if ctx.needs_input_grad[0]:
            lines = torch.stack([along / deviation.square(), total])
            lines = (lines * (-norm[1] / len(rows))).float()
            grad_x = empty_images(x, x.shape, by_pixel=ctx.by_pixel)
            ctx.library.fasttricks_norm_act_backward(
                *given, lines.data_ptr(), grad_x.data_ptr(), *rows.shape
            )
        grad_weight = (along / deviation).float() if ctx.needs_input_grad[1] else None
        grad_bias = total.float() if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None, None


def _lines(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return what C++ normalises by, mean, scale and bias, fp32 [3, C], and the deviation."""
    deviation = (variance + eps).sqrt()
    scale = deviation.reciprocal() if weight is None else weight / deviation
    lines = torch.stack([mean, scale, torch.zeros_like(mean) if bias is None else bias])
    return lines.float(), deviation


def _norm_act(x: Tensor, lines: Tensor, act: _Act, by_pixel: bool, library: CDLL) -> Tensor:
    y, rows = empty_images(x, x.shape, by_pixel=by_pixel), _rows(x, by_pixel)
    library.fasttricks_norm_act(
        x.dtype == torch.bfloat16,
        *(*act, lines.data_ptr(), x.data_ptr(), y.data_ptr()),
        *rows.shape,
    )
    return y


class _ActByPixel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, act: nn.Module, known: _Act, library: CDLL) -> Tensor:
        images, channels, rows, columns = x.shape
        y = empty_images(x, x.shape, by_pixel=True)
        library.fasttricks_act_by_pixel(
            *(x.dtype == torch.bfloat16, *known, x.data_ptr(), y.data_ptr()),
            *(images, rows * columns, channels),
        )
        ctx.save_for_backward(x)
        ctx.act = act
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():  # torch's own: what comes before trains for a moment at most
            leaf = x.detach().requires_grad_(True)
            y = ctx.act(leaf)
        (found,) = torch.autograd.grad(y, leaf, laid(grad, by_pixel=False))
        return found, None, None, None


def _rows(x: Tensor, by_pixel: bool) -> Tensor:
    """Images as they lie in memory, [rows, C]."""
    order = (2, 3, 0, 1) if by_pixel else (0, 2, 3, 1)
    return x.permute(order).reshape(-1, x.shape[1])


def _parts(rows: Tensor) -> Tensor:
    return rows.new_empty(min(len(rows), _PARTS), 2, rows.shape[1], dtype=torch.float32)
