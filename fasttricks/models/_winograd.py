"""3 x 3 convolutions by Winograd's algorithm: fewer multiplications, for training on a CPU.

Legend: N images of H x W pixels, C channels in, K out, m the side of an output tile, n = m + 2 that
of the input tile it needs. Tiles are worked off a row of them at a time, a strip.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fasttricks._checks import check_integer
from fasttricks._hardware import cpu_rounds_fp32_products
from fasttricks.models._by_pixel import ForCPU, as_images, empty_images, is_by_pixel
from fasttricks.models._kernels import KERNEL_DTYPES, are_plain_images, kernels
from fasttricks.models._winograd_tiles import (
    Size,
    best_tile,
    points_for,
    singles,
    strips,
    winograd_matrices,
)
from fasttricks.models._winograd_transforms import (
    Axis,
    Halving,
    Transform,
    Way,
    make_transform,
    way_for,
)

# What is saved goes with the product of the channels in and out, what the transforms cost with
# their sum; bf16's products are so fast that it takes more channels to pay: 24 to 64 does, 32 to 32
# does not where images come and go in channels_last.
_FEWEST = {
    Way(torch.float32): 48,
    Way(torch.float32, native=True): 32,
    Way(torch.bfloat16): 96,
    Way(torch.bfloat16, native=True): 33,
}


class _Plan(NamedTuple):
    """How to compute, the side of a tile, the output's size, and whether it is halved then."""

    way: Way
    m: int
    size: Size
    halve: bool = False


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution that trains faster on a CPU, by fewer multiplications.

    While training on a CPU, in fp32 or under bf16 autocast, it cuts the images into tiles of m x m
    pixels, transforms tiles and weights, multiplies a sixth to half as often, and transforms back;
    its gradients come the same way. Results differ from those of ``nn.Conv2d`` by rounding: in fp32
    by about 1e-4 of their norm at most, in bf16 by 1 to 7 %, where bf16 itself rounds 0.3 %. The
    transformed images, 1.3 to 4.5 times the input, are kept for the backward pass.

    Where GCC is found (``$CXX``, or else ``g++``; on Linux), it compiles passes of our own for the
    transforms, once in a process, in some seconds, for larger tiles in bf16 and much less time.
    Without it, or with ``FASTTRICKS_NATIVE=0`` in the environment, torch's operations do the same,
    in bf16 on maps of up to 16 pixels, with a rounding of 2 %, in fp32 on maps of up to 32.

    In evaluation unless ``in_evaluation`` is set, in any other precision, elsewhere, compiled, on
    maps so small that it would not halve the multiplications, and where torch was told to round the
    products of fp32 matrices (``torch.set_float32_matmul_precision``), it is ``nn.Conv2d``. It has
    no second derivative, and neither ``torch.func`` nor ``make_fx`` can take it.

    Args:
        in_channels: C, at least 1.
        out_channels: K, at least 1.
        device: Of the weight; torch's default device by default.
        dtype: Of the weight; torch's default dtype by default.

    Attributes:
        min_channels: Fewest channels, as the harmonic mean of C and K, with which it is not
            ``nn.Conv2d``: 1, or what ``use_winograd_`` set. None is 32 in fp32 and 33 in bf16, or
            without a compiler 48 and 96.
        in_evaluation: Whether it is used in evaluation too, and in training mode under ``no_grad``:
            False, or what ``use_winograd_`` set.

    Shape:
        Float images [N, C, H, W] to [N, K, H, W]: padded by 1, stride 1, no bias.

    Raises:
        ValueError: If a number of channels is under 1.

    Example:
        >>> conv = WinogradConv2d(128, 128)
        >>> conv(torch.randn(2, 128, 7, 7)).shape
        torch.Size([2, 128, 7, 7])

    Reference:
        Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308,
        section 4; matrices for other points by Cook and Toom's rule.
    """

    min_channels: int | None = 1
    in_evaluation = False

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
    def forward(self, input: Tensor, *, pooled: bool = False, by_pixel: bool = False) -> Tensor:
        """Convolve.

        Args:
            input: Images [N, C, H, W].
            pooled: The output goes to a 2 x 2 max-pool, which drops an odd last row and column:
                leave them out where Winograd's algorithm is used.
            by_pixel: What comes next takes images that lie in memory as [H, W, N, K], which costs
                nothing here: give them so where Winograd's algorithm is used. Otherwise, and by
                default, they are ``channels_last``.

        Returns:
            [N, K, H, W], or with ``pooled`` the largest even part of it.
        """
        plan = self._plan(input, pooled=pooled)
        if plan is None:
            return super().forward(input)
        found = self._convolve(input, plan)
        return found if by_pixel else found.contiguous(memory_format=torch.channels_last)

    def halved(self, input: Tensor) -> Tensor | None:
        """Convolve, and take the largest of 2 x 2 pixels in the same pass.

        Args:
            input: Images [N, C, H, W].

        Returns:
            [N, K, H // 2, W // 2], in memory as [H, W, N, K]; or None where that is two passes.
        """
        plan = self._plan(input, pooled=True, halve=True)
        return None if plan is None or not plan.halve else self._convolve(input, plan)

    def halves(self, input: Tensor) -> bool:
        """Whether ``halved`` would take the images, [N, C, H, W]."""
        plan = self._plan(input, pooled=True, halve=True)
        return plan is not None and plan.halve

    def _convolve(self, x: Tensor, plan: _Plan) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            # Without gradients to come, a weight that wants none: nothing is kept for them.
            weight = self.weight if torch.is_grad_enabled() else self.weight.detach()
            found: Tensor = _Winograd.apply(x.to(plan.way.dtype), weight, plan)
        return found

    def _plan(self, x: Tensor, *, pooled: bool, halve: bool = False) -> _Plan | None:
        way = self._way(x)
        if way is None:
            return None
        rows, columns = x.shape[2:]
        size = rows, columns
        if pooled:
            size = max(1, rows - rows % 2), max(1, columns - columns % 2)
        m = best_tile((rows, columns), size, way)
        if m is None:
            return None
        return _Plan(way, m, size, halve and way.native and min(size) > 1)

    def _is_to_learn(self, x: Tensor) -> bool:
        wanted = x.requires_grad or self.weight.requires_grad
        return self.training and wanted and torch.is_grad_enabled()

    def _way(self, x: Tensor) -> Way | None:
        """Return how to compute, or None for torch's way."""
        applies = (
            are_plain_images(x)
            and (self.in_evaluation or self._is_to_learn(x))
            and self.bias is None  # that of a batch norm, once it is fused
            and x.dtype != torch.float64  # which autocast leaves alone
        )
        if not applies:
            return None
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        elif x.dtype == self.weight.dtype == torch.float32:
            dtype = torch.float32
        else:
            return None
        # Tiles of 8 blow rounding up a thousandfold.
        if dtype not in KERNEL_DTYPES or (dtype == torch.float32 and cpu_rounds_fp32_products()):
            return None
        channels = _mean_channels(self)
        if self.min_channels is not None:
            return way_for(dtype) if channels >= self.min_channels else None
        if channels < min(_FEWEST.values()):
            return None  # and nothing is compiled for it
        way = way_for(dtype)
        return way if channels >= _FEWEST[way] else None


def use_winograd_(
    model: nn.Module, *, min_channels: int | None = None, evaluation: bool = False
) -> int:
    """Turn every convolution that Winograd's algorithm fits into a ``WinogradConv2d``, in place.

    Those are 3 x 3, of stride 1, padded by 1, without bias or groups. The modules stay the same
    objects, with their parameters, names, hooks and mode. A second call sets the arguments anew.
    The library's blocks then also run max-pool, batch norm and activation in compiled C++ where it
    can be built: equal up to rounding, and like the convolutions without a second derivative.
    Convolutions to which ``fuse`` gave a bias stay torch's. For a model on a CPU it is built here,
    and not during the first step.

    Args:
        model: The network.
        min_channels: Fewest channels, as the harmonic mean of those in and out: what is saved goes
            with their product, what the transforms cost with their sum. None (default) is 32 in
            fp32 and 33 in bf16, or without a compiler 48 and 96, of which the last takes 64 to 192
            and leaves 64 to 128 as they are.
        evaluation: Whether it is used in evaluation too, with gradients or without, and in training
            mode under ``no_grad``: in less time for batches of many images, with the rounding of
            training and no second derivative. False (default) leaves these to torch.

    Returns:
        How many it made, by default those with 32 channels or more; 0 is no error.

    Raises:
        ValueError: If ``min_channels`` is under 1.

    Example:
        >>> use_winograd_(nn.Sequential(nn.Conv2d(128, 256, 3, padding=1, bias=False)))
        1
    """
    if min_channels is not None:
        check_integer("min_channels", min_channels, minimum=1)
    fewest = min(_FEWEST.values()) if min_channels is None else min_channels
    made, compiled = 0, False
    for module in list(model.modules()):
        if type(module) is nn.Conv2d and _fits(module) and _mean_channels(module) >= fewest:
            module.__class__ = WinogradConv2d
            made += 1
        if isinstance(module, ForCPU):
            module.made_for_cpu = compiled = True
            module.made_for_evaluation = evaluation
        if isinstance(module, WinogradConv2d):
            module.min_channels, module.in_evaluation = min_channels, evaluation
            compiled = True
    if compiled and any(p.device.type == "cpu" for p in model.parameters()):
        kernels()  # now, and not during the first step
    return made


def _fits(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and conv.bias is None
    )


def _mean_channels(conv: nn.Conv2d) -> float:
    """Their harmonic mean."""
    return 2 * conv.in_channels * conv.out_channels / (conv.in_channels + conv.out_channels)


class _Winograd(torch.autograd.Function):
    """x [N, C, H, W], weight [K, C, 3, 3] to [N, K, h, w], in the dtype of x.

    It works on [H * W, N * C], so that a strip of tiles is one matrix away from its pixels. h and w
    are H and W, or one less: as many of the first outputs; or half of that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
        way, m, size, halve = plan
        images, channels, rows, columns = x.shape
        outputs = len(weight)
        written = (size[0] // 2, size[1] // 2) if halve else size
        found = empty_images(x, (images, outputs, *written), by_pixel=True)
        y, pixels = _by_pixel(found), _by_pixel(x)
        which, carry = y.new_empty(0, dtype=torch.uint8), y.new_empty(0)
        if halve:
            which, carry = torch.empty_like(y, dtype=which.dtype), y.new_empty(size[1], y.shape[1])
        places = weight.to(_exact(way)).permute(2, 3, 0, 1).reshape(9, -1)
        u = _weight_transform(m, way).to_points(places, dtype=x.dtype)
        u = u.view(-1, outputs, channels)  # [points, K, C]
        transformed = []
        for strip in strips(m, (rows, columns), size, way):
            v = strip.inputs.to_points(pixels[strip.read]).view(strip.points, -1, channels)
            products = torch.bmm(v, u[: strip.points].transpose(1, 2))  # [points, tiles * N, K]
            products = products.view(-1, images * outputs)
            if halve:
                halving = Halving(which[strip.halved], carry, strip.odd)
                strip.outputs.to_pixels(products, y[strip.halved], halving=halving)
            else:
                strip.outputs.to_pixels(products, y[strip.written])
            if ctx.needs_input_grad[1]:
                transformed.append(v)
        ctx.save_for_backward(u, which, *transformed)
        ctx.plan, ctx.shape, ctx.dtype = plan, x.shape, weight.dtype
        ctx.by_pixel = is_by_pixel(x)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return *_gradients(ctx, grad), None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight, each None where it is not needed."""
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    way, m, size, halve = ctx.plan
    images, channels, *read = ctx.shape
    outputs = grad.shape[1]
    u, which, *transformed = ctx.saved_tensors
    grad_x = grad.new_empty(read[0] * read[1], images * channels) if needs_x else None
    grad_u = None
    if needs_weight:  # [points, C, K]: where C is less, a product is quicker so
        grad_u = u.new_zeros(len(u), channels, outputs, dtype=_exact(way))
    pixels = _by_pixel(grad)
    for number, strip in enumerate(strips(m, tuple(read), size, way)):
        points = strip.points
        if halve:
            halving = Halving(which[strip.halved], pixels[:0], strip.odd)
            products = strip.outputs.to_points(pixels[strip.halved], halving=halving)
        else:
            products = strip.outputs.to_points(pixels[strip.written])
        products = products.view(points, -1, outputs)
        if grad_u is not None:
            transposed = transformed[number].transpose(1, 2)
            if grad_u.dtype == grad.dtype:
                grad_u[:points].baddbmm_(transposed, products)
            else:
                grad_u[:points] += torch.bmm(transposed, products)
        if grad_x is not None:
            grad_v = torch.bmm(products, u[:points]).view(-1, images * channels)
            strip.inputs.to_pixels(grad_v, grad_x[strip.read], added=strip.shared)
    grad_weight = None
    if grad_u is not None:
        places = grad_u.new_empty(9, channels * outputs)
        _weight_transform(m, way).to_pixels(grad_u.view(len(u), -1), places)
        grad_weight = places.view(3, 3, channels, outputs).permute(3, 2, 0, 1).to(ctx.dtype)
    if grad_x is not None:
        grad_x = as_images(grad_x, (images, channels, *read))
        if not ctx.by_pixel:
            grad_x = grad_x.contiguous(memory_format=torch.channels_last)
    return grad_x, grad_weight


@lru_cache
def _weight_transform(m: int, way: Way) -> Transform:
    """Kernels [9, K * C] to points [n * n, K * C]."""
    axis = Axis(winograd_matrices(points_for(way)[m])[1], singles(m, m + 2), size=3)
    return make_transform(axis, axis, Way(_exact(way), way.native))


def _exact(way: Way) -> torch.dtype:
    """What the kernels are transformed in, and their gradients added up."""
    return torch.promote_types(way.dtype, torch.float32)


def _by_pixel(x: Tensor) -> Tensor:
    """Images [N, C, H, W] to [H * W, N * C]."""
    return x.permute(2, 3, 0, 1).reshape(x.shape[2] * x.shape[3], -1)
