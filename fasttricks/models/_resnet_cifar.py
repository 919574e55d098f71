"""The CIFAR ResNets of He 2015, section 4.2: 20 to 110 layers of 16, 32 and 64 channels.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttricks._checks import check_fraction
from fasttricks.models._activation import Activation
from fasttricks.models._blocks import (
    Make,
    MakeNorm,
    check_image_size,
    check_sizes,
    check_zero_init,
    convolution,
    global_mean_pool,
    norm_and_act,
)
from fasttricks.models._resnet import BasicBlock, init_convolutions_, zero_residuals_

torch.fx.wrap("check_image_size")  # fx has no sizes to look at


class PaddedShortcut(nn.Module):
    """Every other pixel, and new channels of zeros (the paper's option A, without weights).

    Args:
        stride: From one pixel taken to the next.
        new_channels: How many channels of zeros follow.
    """

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new_channels={self.new_channels}"


def _padded(
    in_channels: int, out_channels: int, stride: int, norm: MakeNorm
) -> PaddedShortcut | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return PaddedShortcut(stride, out_channels - in_channels)


class PlainBlock(BasicBlock):
    """The block whose shortcut has no weights."""

    shortcut = staticmethod(_padded)


class CifarResNet(nn.Module):
    """A 3 x 3 stem, three stages of n blocks each, the mean over the map, and a linear head.

    6 n + 2 layers with weights. Made by ``resnet20`` and its like, which choose the pieces and
    document the arguments.

    Attributes:
        head: The ``nn.Linear``.
        min_size: Smallest side of an image, 8 pixels.
    """

    min_size = 8
    logit_scale = 1.0
    pool = staticmethod(global_mean_pool)

    def __init__(
        self,
        blocks: int,
        num_classes: int,
        in_channels: int,
        *,
        width: int,
        norm: MakeNorm,
        act: Make,
        drop_path: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3)
        self.bn1 = norm(width)
        self.act = act()
        stages, before = [], width
        for stage in range(3):
            channels = width * 2**stage
            stacked = []
            for place in range(blocks):
                share = (stage * blocks + place + 1) / (3 * blocks)
                stacked.append(
                    PlainBlock(
                        before,
                        channels,
                        stride=2 if stage and place == 0 else 1,
                        norm=norm,
                        act=act,
                        drop_path=drop_path * share,
                    )
                )
                before = channels
            stages.append(nn.Sequential(*stacked))
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, num_classes)
        init_convolutions_(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to features [N, 4 * width, about H / 4, about W / 4]."""
        check_image_size(images, min_size=self.min_size)
        x: Tensor = self.stages(self.act(self.bn1(self.conv1(images))))
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.head(self.dropout(self.pool(self.forward_features(images))))
        return logits


class CifarResNetBuilder(Protocol):
    """The signature that all builders of this family share."""

    def __call__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        width: int = 16,
        act: Activation = "relu",
        celu_alpha: float | None = None,
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        frozen_scale: bool = False,
        batch_norm_eps: float = 1e-5,
        batch_norm_momentum: float = 0.1,
        ghost_batch_size: int | None = None,
    ) -> CifarResNet: ...


_DOC = """Build the ResNet-{depth} that He et al. made for CIFAR-10.

    {parameters:,} parameters for ten classes. Shortcuts have no weights (option A). Convolutions
    are drawn from He's normal distribution (fan out) by the global generator: call
    ``torch.manual_seed`` before.

    Args:
        num_classes: Outputs, at least 1. Default 10.
        in_channels: Channels of the images, at least 1. Default 3.
        width: Channels of the first stage; the next have 2 and 4 times as many. Default 16.
        act: Activation: a name of ``ACTIVATIONS`` or a module class. Default "relu".
        celu_alpha: Smoothing of CELU, only with ``act="celu"``. None is 0.075, or 0.3 with
            ``frozen_scale``.
        zero_init_residual: Whether each block starts as the identity; not with ``frozen_scale``,
            which would keep it so. Default False.
        drop_path: Probability that an image skips the last block; less for earlier ones, in a
            straight line. Default 0.
        dropout: Probability that a feature is dropped before the head. Default 0.
        frozen_scale: Whether the norms' scales stay 1. Default False.
        batch_norm_eps: Added to the variance. Default 1e-5.
        batch_norm_momentum: Weight of the newest batch in the running statistics. Default 0.1.
        ghost_batch_size: Images that share batch-norm statistics, at least 2; see
            ``GhostBatchNorm2d``. Default None, the whole batch.

    Returns:
        A ``CifarResNet``: float [N, in_channels, H, W] of at least 8 x 8 pixels to logits
        [N, num_classes].

    Raises:
        ValueError: If a number is out of its range, ``zero_init_residual`` meets ``frozen_scale``,
            or ``act`` isn't known.
        TypeError: If an argument has the wrong type.

    Reference:
        He et al., "Deep Residual Learning", arXiv 1512.03385, section 4.2 and table 6.
    """


def _builder(depth: int, parameters: int) -> CifarResNetBuilder:
    def build(
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        width: int = 16,
        act: Activation = "relu",
        celu_alpha: float | None = None,
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        frozen_scale: bool = False,
        batch_norm_eps: float = 1e-5,
        batch_norm_momentum: float = 0.1,
        ghost_batch_size: int | None = None,
    ) -> CifarResNet:
        check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        check_fraction("drop_path", drop_path)
        check_fraction("dropout", dropout)
        check_zero_init(zero_init_residual, frozen_scale=frozen_scale)
        norm, activation = norm_and_act(
            act=act,
            celu_alpha=celu_alpha,
            frozen_scale=frozen_scale,
            batch_norm_eps=batch_norm_eps,
            batch_norm_momentum=batch_norm_momentum,
            ghost_batch_size=ghost_batch_size,
        )
        model = CifarResNet(
            (depth - 2) // 6,
            num_classes,
            in_channels,
            width=width,
            norm=norm,
            act=activation,
            drop_path=drop_path,
            dropout=dropout,
        )
        if zero_init_residual:
            zero_residuals_(model)
        return model

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = _DOC.format(depth=depth, parameters=parameters)
    return build


resnet20 = _builder(20, 269_722)
resnet32 = _builder(32, 464_154)
resnet44 = _builder(44, 658_586)
resnet56 = _builder(56, 853_018)
resnet110 = _builder(110, 1_727_962)
