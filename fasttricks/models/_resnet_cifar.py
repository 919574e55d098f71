"""The CIFAR ResNets of He 2015, section 4.2: 20 to 110 layers of 16, 32 and 64 channels.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from fasttricks._checks import check_fraction, check_integer
from fasttricks.models._activation import Activation
from fasttricks.models._blocks import check_image_size, global_mean_pool, norm_and_act
from fasttricks.models._drop_path import DropPath
from fasttricks.models._resnet import check_zero_init, init_convolutions_

Make = Callable[[], nn.Module]
MakeNorm = Callable[[int], nn.Module]


class PlainBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without weights (the paper's option A).

    Where the size halves, the shortcut takes every other pixel and adds channels of zeros.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        norm: MakeNorm,
        act: Make,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.act1 = act()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.drop_path = DropPath(drop_path)
        self.act2 = act()
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        body = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
        if self.new_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        out: Tensor = self.act2(shortcut + self.drop_path(body))
        return out


class CifarResNet(nn.Module):
    """A 3 x 3 stem, three stages of n blocks each, the mean over the map, and a linear head.

    6 n + 2 layers with weights. Made by ``resnet20`` and its like, which choose the pieces.

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
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
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
    ) -> CifarResNet:
        check_integer("num_classes", num_classes, minimum=1)
        check_integer("in_channels", in_channels, minimum=1)
        check_integer("width", width, minimum=1)
        check_fraction("drop_path", drop_path)
        check_fraction("dropout", dropout)
        check_zero_init(zero_init_residual, frozen_scale=frozen_scale)
        norm, activation = norm_and_act(
            act=act,
            celu_alpha=celu_alpha,
            frozen_scale=frozen_scale,
            batch_norm_eps=batch_norm_eps,
            batch_norm_momentum=batch_norm_momentum,
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
            for module in model.modules():
                if isinstance(module, PlainBlock):
                    nn.init.zeros_(module.bn2.weight)  # type: ignore[arg-type]
        return model

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = _DOC.format(depth=depth, parameters=parameters)
    return build


resnet20 = _builder(20, 269_722)
resnet32 = _builder(32, 464_154)
resnet44 = _builder(44, 658_586)
resnet56 = _builder(56, 853_018)
resnet110 = _builder(110, 1_727_962)
