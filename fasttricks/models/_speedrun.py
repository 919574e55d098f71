"""The network of the CIFAR-10 speed runs: whitening, three wide groups, one linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fasttricks._checks import check_choice, check_fraction, check_integer, check_positive
from fasttricks.models._activation import ACTIVATIONS, Activation, make_activation
from fasttricks.models._blocks import (
    ConvNormAct,
    Make,
    Residual,
    check_image_size,
    check_sizes,
    global_max_pool,
    has_hooks,
    norm_and_act,
)
from fasttricks.models._by_pixel import ForCPU, is_by_pixel, max_pool_by_pixel
from fasttricks.models._initialisation import dirac_, scale_head_
from fasttricks.models._norm_act import act_by_pixel
from fasttricks.models._winograd import WinogradConv2d

torch.fx.wrap("check_image_size")  # fx has no sizes to look at


class SpeedrunNet(ForCPU, nn.Module):
    """A frozen 2 x 2 whitening convolution, groups of convolutions, and a linear head.

    Each group is ``conv -> 2 x 2 max-pool -> norm -> act -> conv -> norm -> act``; one of depth 3
    goes on with ``-> conv -> norm``, the sum with what came out of its first activation, and
    ``act``. Made by ``speedrun_net``, which chooses the pieces.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        widths: Channels of the two convolutions of each group.
        depths: Convolutions of each group, 2 or 3.
        second_kernel_sizes: Side of the second kernel of each group, and of the third.
        whiten_channels: Filters of the whitening convolution.
        block: Makes a ``ConvNormAct`` from (in_channels, out_channels, ...).
        act: Makes the activation after the sum of a group of depth 3.
        whiten_act: Makes the activation after the whitening.
        logit_scale: Factor on the logits.
        dropout: Probability that a feature is dropped before the head.

    Attributes:
        whiten: The 2 x 2 ``nn.Conv2d``: weight frozen, bias trainable.
        groups: ``nn.Sequential`` of groups; a group is an ``nn.Sequential`` of two ``ConvNormAct``,
            or of one, a ``Residual`` of two and an activation.
        head: The ``nn.Linear`` without bias.
        logit_scale: Factor on the logits.
        min_size: Smallest side of an image, 2 to the number of groups: 8 pixels for three.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        widths: Sequence[tuple[int, int]],
        depths: Sequence[int],
        second_kernel_sizes: Sequence[int],
        whiten_channels: int,
        block: Callable[..., ConvNormAct],
        act: Make,
        whiten_act: Make,
        logit_scale: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(in_channels, whiten_channels, 2)
        # Frozen, so that with a frozen bias as well autograd stops at the first group.
        self.whiten.weight.requires_grad_(False)
        self.act = whiten_act()
        self.groups = nn.Sequential()
        before = whiten_channels
        for (first, second), depth, size in zip(widths, depths, second_kernel_sizes, strict=True):
            pieces: list[nn.Module] = [block(before, first, pool="first")]
            body = block(first, second, kernel_size=size)
            if depth == 2:
                pieces.append(body)
            else:  # the activation comes after the sum
                last = block(second, second, kernel_size=size, act=nn.Identity)
                pieces += [Residual(nn.Sequential(body, last)), act()]
            self.groups.append(nn.Sequential(*pieces))
            before = second
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, num_classes, bias=False)
        self.logit_scale = logit_scale
        self.min_size = 2 ** len(widths)
        self._start_from_identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to features [N, widths[-1], h, w]."""
        check_image_size(images, min_size=self.min_size)
        x: Tensor = self.groups(self._whitened(images))
        return x

    def _whitened(self, images: Tensor) -> Tensor:
        x: Tensor = self.whiten(images)
        found = None
        if self._takes_cpu_path() and not has_hooks(self.act):
            first = next((m for m in self.groups.modules() if isinstance(m, nn.Conv2d)), None)
            if isinstance(first, WinogradConv2d) and first.halves(x):
                found = act_by_pixel(self.act, x)
        if found is None:
            found = self.act(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        x = self.forward_features(images)
        if self._takes_cpu_path() and is_by_pixel(x):
            features = max_pool_by_pixel(x, *x.shape[2:]).flatten(1)
        else:
            features = global_max_pool(x)
        logits: Tensor = self.head(self.dropout(features))
        return logits * self.logit_scale

    def reset_parameters(self) -> None:
        """Draw all weights anew, in place, and forget the running statistics.

        For many runs of one compiled model. What is trainable stays as it is, and the whitening
        weight is random again: call ``whiten_`` afterwards.
        """
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and reset is not None:
                reset()
        self._start_from_identity()

    def _start_from_identity(self) -> None:
        for module in self.groups.modules():
            if isinstance(module, nn.Conv2d):
                dirac_(module)
        scale_head_(self.head)


def speedrun_net(
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    widths: Sequence[int | tuple[int, int]] = (64, 256, 256),
    depths: Sequence[int] | None = None,
    second_kernel_sizes: Sequence[int] | None = None,
    whiten_channels: int | None = None,
    act: Activation = "gelu",
    whiten_act: Activation | None = None,
    celu_alpha: float | None = None,
    logit_scale: float | None = None,
    dropout: float = 0.0,
    frozen_scale: bool = True,
    batch_norm_eps: float = 1e-3,
    batch_norm_momentum: float = 0.4,
    ghost_batch_size: int | None = None,
) -> SpeedrunNet:
    """Build the network of Keller Jordan's airbench94_muon, the CIFAR-10 speed run.

    A 2 x 2 convolution of ``8 * in_channels`` filters, to be set by ``whiten_`` and never trained
    but for its bias; groups of two 3 x 3 convolutions whose first filters start as the identity (a
    square one wholly); a global max-pool; a head without bias, of unit standard deviation, whose
    logits are divided by the last width. 1,972,792 parameters for ten classes. The other weights
    are torch's default initialisation, drawn from the global generator: call
    ``torch.manual_seed`` before.

    Args:
        num_classes: Outputs, at least 1. Default 10.
        in_channels: Channels of the images, at least 1. Default 3.
        widths: Channels of each group, or a pair, of its first and of its second convolution; at
            least one group. The two must be the same in a group of depth 3. Default (64, 256, 256).
            A narrow first convolution saves most where the map is large, (64, (128, 256), 256) half
            of the second group's.
        depths: Convolutions of each group, 2 or 3: the third, of the second one's width, ends in a
            sum with the output of the first, as in airbench96. None is 2 everywhere. Of one width,
            a third one costs least in the last group, whose map is smallest.
        second_kernel_sizes: Side of the second kernel of each group and of the third, odd: 1 is
            cheap where the map is large. None is 3 everywhere.
        whiten_channels: Filters of the whitening, even: ``whiten_`` takes the directions that vary
            most, and their negatives. None is all, ``8 * in_channels``.
        act: Activation: a name of ``ACTIVATIONS`` or a module class. Default "gelu".
        whiten_act: Activation after the whitening, likewise. None is ``act``.
        celu_alpha: Smoothing of CELU, only with ``act="celu"``. None is 0.3, tuned by Page for
            frozen scales, or 0.075 if they are trained.
        logit_scale: Factor on the logits, above 0. None is 1 over the last width.
        dropout: Probability that a feature is dropped before the head. Default 0.
        frozen_scale: Whether the norms' scales stay 1. Default True.
        batch_norm_eps: Added to the variance. Default 1e-3; the original's 1e-12 fails on images
            with constant channels (grey ones stored as RGB), whose rounding errors it blows up.
        batch_norm_momentum: Weight of the newest batch in the running statistics: 0.4, high
            because a run has a few hundred steps.
        ghost_batch_size: Images that share batch-norm statistics, at least 2; see
            ``GhostBatchNorm2d``. Default None, the whole batch.

    Returns:
        A ``SpeedrunNet``: float [N, in_channels, H, W] of at least 8 x 8 pixels (three groups) to
        logits [N, num_classes].

    Raises:
        ValueError: If a number is out of its range or ``act`` isn't known.
        TypeError: If an argument has the wrong type.

    Example:
        >>> import torch
        >>> from fasttricks.models import whiten_
        >>> model = speedrun_net(num_classes=5, widths=(8, 16, 16))
        >>> images = torch.randn(4, 3, 32, 32)
        >>> _ = whiten_(model.whiten, images)
        >>> model(images).shape
        torch.Size([4, 5])

    Reference:
        Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, section 3, and
        airbench94_muon.py of github.com/KellerJordan/cifar10-airbench.
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels)
    pairs = _pairs(widths)
    sizes = _one_per_group("second_kernel_sizes", second_kernel_sizes, default=3, groups=len(pairs))
    layers = _one_per_group("depths", depths, default=2, groups=len(pairs))
    for place, (depth, (first, second)) in enumerate(zip(layers, pairs, strict=True)):
        check_choice(f"depths[{place}]", depth, (2, 3))
        if depth == 3 and first != second:
            raise ValueError(
                f"widths[{place}] must be the same for both convolutions with depths[{place}]=3, "
                f"whose shortcut adds their outputs, got widths[{place}]={(first, second)}"
            )
    if isinstance(whiten_act, str):
        check_choice("whiten_act", whiten_act, ACTIVATIONS)
    whitened = 8 * in_channels if whiten_channels is None else whiten_channels
    check_integer("whiten_channels", whitened, minimum=2)
    if whitened % 2 or whitened > 8 * in_channels:
        raise ValueError(
            f"whiten_channels must be even and at most 8 * in_channels = {8 * in_channels}, "
            f"got whiten_channels={whitened}"
        )
    if logit_scale is None:
        logit_scale = 1 / pairs[-1][1]
    check_positive("logit_scale", logit_scale)
    check_fraction("dropout", dropout)
    norm, activation = norm_and_act(
        act=act,
        celu_alpha=celu_alpha,
        frozen_scale=frozen_scale,
        batch_norm_eps=batch_norm_eps,
        batch_norm_momentum=batch_norm_momentum,
        ghost_batch_size=ghost_batch_size,
    )
    return SpeedrunNet(
        num_classes,
        in_channels,
        widths=pairs,
        depths=layers,
        second_kernel_sizes=sizes,
        whiten_channels=whitened,
        block=partial(ConvNormAct, norm=norm, act=activation),
        act=activation,
        whiten_act=activation if whiten_act is None else partial(make_activation, whiten_act),
        logit_scale=logit_scale,
        dropout=dropout,
    )


def _one_per_group(name: str, numbers: object, *, default: int, groups: int) -> list[int]:
    """Give the default to every group, or check that there is a number for each."""
    if numbers is None:
        return [default] * groups
    found = _sequence(name, numbers)
    if len(found) != groups:
        raise ValueError(f"{name} must hold one number per group, {groups}, got {name}={numbers!r}")
    return list(found)


def _sequence(name: str, value: object) -> Sequence[Any]:
    """Give the value, or raise if it is no sequence."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence, one number per group, got {name}={value!r}")
    return value


def _pairs(widths: object) -> list[tuple[int, int]]:
    """Check the widths and give both of each group."""
    groups = _sequence("widths", widths)
    if len(groups) == 0:
        raise ValueError("widths must hold at least 1 group, got widths=()")
    pairs = []
    for place, width in enumerate(groups):
        pair = tuple(width) if isinstance(width, tuple | list) else (width, width)
        if len(pair) != 2:
            raise ValueError(
                f"widths[{place}] must be a number or a pair, got widths[{place}]={width!r}"
            )
        for value in pair:
            check_integer(f"widths[{place}]", value, minimum=1)
        pairs.append(pair)
    return pairs
