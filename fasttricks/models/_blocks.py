"""The pieces that the networks share.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttricks._checks import check_choice, check_fraction, check_integer, check_positive
from fasttricks.models._activation import Activation, make_activation
from fasttricks.models._by_pixel import (
    ForCPU,
    batch_norm_by_pixel,
    is_by_pixel,
    max_pool_by_pixel,
    try_halve,
)
from fasttricks.models._drop_path import DropPath
from fasttricks.models._ghost_batch_norm import GhostBatchNorm2d
from fasttricks.models._norm_act import try_norm_act
from fasttricks.models._winograd import WinogradConv2d

PoolPlace = Literal["none", "first", "last"]
Make = Callable[[], nn.Module]
MakeNorm = Callable[[int], nn.Module]


def batch_norm(
    num_features: int,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
    frozen_scale: bool = False,
    ghost_batch_size: int | None = None,
) -> nn.BatchNorm2d:
    """Make a batch norm, with its scale held at 1 or over groups of the batch if asked.

    A frozen scale stays in the ``state_dict`` but isn't trained; the bias is. Momentum is torch's:
    ``running = (1 - momentum) * running + momentum * batch``.

    Args:
        num_features: Channels, at least 1.
        eps: Added to the variance, above 0.
        momentum: Weight of the newest batch in the running statistics, 0 to 1.
        frozen_scale: Whether the scale stays 1.
        ghost_batch_size: Images that share statistics, at least 2; None is the whole batch.

    Returns:
        A new ``nn.BatchNorm2d``, or its subclass ``GhostBatchNorm2d``.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If an argument isn't a number.

    Example:
        >>> batch_norm(8, frozen_scale=True).weight.requires_grad
        False

    Reference:
        Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167.
    """
    check_integer("num_features", num_features, minimum=1)
    check_positive("eps", eps)
    check_fraction("momentum", momentum)
    make: Callable[..., nn.BatchNorm2d] = nn.BatchNorm2d
    if ghost_batch_size is not None:
        make = partial(GhostBatchNorm2d, ghost_batch_size=ghost_batch_size)
    norm = make(num_features, eps=eps, momentum=momentum)
    norm.weight.requires_grad_(not frozen_scale)
    return norm


class ConvNormAct(ForCPU, nn.Module):
    """Convolution without bias, norm, activation, and a 2 x 2 max-pool where asked.

    ``pool="last"`` pools the output, as drawn in papers; ``"first"`` pools right after the
    convolution, so that norm and activation run on a quarter of the pixels. The two differ: with
    ``"first"`` the norm's statistics are those of the maxima.

    Args:
        in_channels: Channels that come in, at least 1.
        out_channels: Channels that go out, at least 1.
        norm: Makes the norm from the number of channels.
        act: Makes the activation.
        pool: "none", "first" or "last".
        kernel_size: Odd side of the convolution; it is padded to keep the size at stride 1.
        stride: Of the convolution.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If a size isn't a whole number.

    Example:
        >>> import torch
        >>> block = ConvNormAct(3, 8, norm=batch_norm, act=nn.ReLU, pool="first")
        >>> block(torch.zeros(2, 3, 10, 10)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: MakeNorm,
        act: Make,
        pool: PoolPlace = "none",
        kernel_size: int = 3,
        stride: int = 1,
    ) -> None:
        super().__init__()
        check_integer("in_channels", in_channels, minimum=1)
        check_integer("out_channels", out_channels, minimum=1)
        check_choice("pool", pool, ("none", "first", "last"))
        check_integer("kernel_size", kernel_size, minimum=1)
        check_integer("stride", stride, minimum=1)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got kernel_size={kernel_size}")
        self.pool = pool
        self.conv = convolution(in_channels, out_channels, kernel_size, stride)
        self.norm = norm(out_channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        if self._takes_cpu_path():
            return self._forward_on_cpu(x)
        x = self.conv(x)
        if self.pool == "first":
            x = halve(x)
        x = self.act(self.norm(x))
        return halve(x) if self.pool == "last" else x

    def _forward_on_cpu(self, x: Tensor) -> Tensor:
        """The same, where the images may lie in memory as the convolution leaves them."""
        x = self._activated(self._convolved(x))
        return _halve_on_cpu(x) if self.pool == "last" else x

    def _activated(self, x: Tensor) -> Tensor:
        """What the norm and the activation make of it."""
        if not has_hooks(self.norm) and not has_hooks(self.act):
            found = try_norm_act(self.norm, self.act, x)
            if found is not None:
                return found
        if not is_by_pixel(x):
            x = self.norm(x)
        elif type(self.norm) is nn.BatchNorm2d and not has_hooks(self.norm):
            x = batch_norm_by_pixel(self.norm, x)
        else:
            x = self.norm(x.contiguous(memory_format=torch.channels_last))
        x = self.act(x)
        return x

    def _convolved(self, x: Tensor) -> Tensor:
        """What goes to the norm."""
        first = self.pool == "first"
        if isinstance(self.conv, WinogradConv2d):
            # Hooks are to see the shapes that they would see elsewhere.
            pooled = first and not has_hooks(self.conv)
            halved = self.conv.halved(x) if pooled else None
            if halved is not None:
                return halved
            x = self.conv(x, pooled=pooled, by_pixel=True)
        else:
            x = self.conv(x)
        return _halve_on_cpu(x) if first else x

    def extra_repr(self) -> str:
        return f"pool={self.pool!r}"


class Residual(nn.Module):
    """Add what a body computes to what came in: ``x + body(x)``.

    Args:
        body: Any module that keeps the shape.
        drop_path: Probability that an image in training skips the body. Default 0.

    Example:
        >>> import torch
        >>> Residual(nn.Identity())(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, body: nn.Module, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.drop_path(self.body(x))
        return x + change


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d:
    """Make a convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )


@torch.fx.wrap
def halve(x: Tensor) -> Tensor:
    """Max-pool 2 x 2 with stride 2; a side of one pixel stays.

    An odd last row or column is dropped, as ``nn.MaxPool2d(2)`` does.

    Args:
        x: Float tensor [N, C, H, W].

    Returns:
        [N, C, max(1, H // 2), max(1, W // 2)].

    Example:
        >>> import torch
        >>> halve(torch.zeros(2, 3, 7, 1)).shape
        torch.Size([2, 3, 3, 1])
    """
    rows, columns = x.shape[-2:]
    return F.max_pool2d(x, (min(2, rows), min(2, columns)))


def _halve_on_cpu(x: Tensor) -> Tensor:
    found = try_halve(x)
    if found is not None:
        return found
    if not is_by_pixel(x):
        return halve(x)
    return max_pool_by_pixel(x, min(2, x.shape[2]), min(2, x.shape[3]))


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody sees what goes in and comes back, or has put another in its place."""
    kinds = ("forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks")
    return "forward" in vars(module) or any(
        getattr(module, f"_{kind}") or getattr(nn.modules.module, f"_global_{kind}")
        for kind in kinds
    )


def global_max_pool(x: Tensor) -> Tensor:
    """Take the maximum of each channel over the whole map.

    Written as one pooling window as large as the map: an adaptive pool has no deterministic
    backward pass on CUDA, and ``amax`` is slower and shares the gradient among equal maxima.

    Args:
        x: Float tensor [N, C, H, W].

    Returns:
        [N, C].

    Example:
        >>> import torch
        >>> global_max_pool(torch.arange(8.0).view(1, 2, 2, 2))
        tensor([[3., 7.]])
    """
    return F.max_pool2d(x, x.shape[-2:]).flatten(1)


def global_mean_pool(x: Tensor) -> Tensor:
    """Take the mean of each channel over the whole map.

    Args:
        x: Float tensor [N, C, H, W].

    Returns:
        [N, C].

    Example:
        >>> import torch
        >>> global_mean_pool(torch.arange(8.0).view(1, 2, 2, 2))
        tensor([[1.5000, 5.5000]])
    """
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@torch.fx.wrap
def check_image_size(images: Tensor, *, min_size: int) -> None:
    """Raise if a side of the images is under ``min_size`` (shapes only: no value is read)."""
    if images.shape[-2] < min_size or images.shape[-1] < min_size:
        raise ValueError(
            f"images must be at least {min_size} x {min_size} pixels, "
            f"got {images.shape[-2]} x {images.shape[-1]}: resize or pad them first"
        )


def check_sizes(**sizes: int) -> None:
    """Raise unless each size, such as num_classes, is a whole number and at least 1."""
    for name, size in sizes.items():
        check_integer(name, size, minimum=1)


def check_zero_init(zero_init_residual: bool, *, frozen_scale: bool) -> None:
    """Raise if scales start at 0 and stay there: the blocks' bodies would never count."""
    if zero_init_residual and frozen_scale:
        raise ValueError(
            "zero_init_residual must be False with frozen_scale=True, whose scales of 0 would "
            "never train, got zero_init_residual=True: leave one of them out"
        )


def norm_and_act(
    *,
    act: Activation,
    celu_alpha: float | None,
    frozen_scale: bool,
    batch_norm_eps: float,
    batch_norm_momentum: float,
    ghost_batch_size: int | None,
) -> tuple[MakeNorm, Make]:
    """Check the options that every builder has; give the makers of its norms and activations."""
    if celu_alpha is None and act == "celu":
        # Tuned by Page: 0.075 beside trained scales; these drift to about 1/4 during a run, so
        # scales frozen at 1 want 4 times as much ("Bag of Tricks", frozen batch norm scales).
        celu_alpha = 0.3 if frozen_scale else 0.075
    check_positive("batch_norm_eps", batch_norm_eps)
    check_fraction("batch_norm_momentum", batch_norm_momentum)
    if ghost_batch_size is not None:
        check_integer("ghost_batch_size", ghost_batch_size, minimum=2)
    make_norm = partial(
        batch_norm,
        eps=batch_norm_eps,
        momentum=batch_norm_momentum,
        frozen_scale=frozen_scale,
        ghost_batch_size=ghost_batch_size,
    )
    return make_norm, partial(make_activation, act, celu_alpha=celu_alpha)
