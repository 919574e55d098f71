"""VGG-11 to 19 (Simonyan 2014) with batch norm, for small images.

The features are laid out and named as torchvision's ``vgg*_bn``. Shapes: N images, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fasttricks._checks import check_fraction
from fasttricks.models._activation import Activation
from fasttricks.models._blocks import (
    Make,
    MakeNorm,
    check_image_size,
    check_sizes,
    global_mean_pool,
    halve,
    norm_and_act,
)
from fasttricks.models._resnet import init_convolutions_

torch.fx.wrap("check_image_size")  # fx has no sizes to look at
torch.fx.wrap("halve")


class Halve(nn.Module):
    """``halve`` as a module: a 2 x 2 max-pool that leaves a side of one pixel as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return halve(x)


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions and a max-pool, the mean over the map, a linear head.

    Made by ``vgg11`` and its like, which choose the pieces and document the arguments.

    Attributes:
        features: ``nn.Sequential`` of convolutions, norms, activations and pools.
        head: The ``nn.Linear``.
        min_size: Smallest side of an image, 8 pixels; a pool leaves a side of one pixel alone.
    """

    min_size = 8
    logit_scale = 1.0
    pool = staticmethod(global_mean_pool)

    def __init__(
        self,
        convolutions: Sequence[int],
        num_classes: int,
        in_channels: int,
        *,
        width: int,
        norm: MakeNorm,
        act: Make,
        dropout: float,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for stage, count in enumerate(convolutions):
            channels = width * min(2**stage, 8)
            for _ in range(count):
                conv = nn.Conv2d(before, channels, 3, padding=1)
                layers += [conv, norm(channels), act()]
                before = channels
            layers.append(Halve())
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, num_classes)
        init_convolutions_(self)
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to features [N, 8 * width, h, w]."""
        check_image_size(images, min_size=self.min_size)
        x: Tensor = self.features(images)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.head(self.dropout(self.pool(self.forward_features(images))))
        return logits


class VGGBuilder(Protocol):
    """The signature that all builders of this family share."""

    def __call__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        width: int = 64,
        act: Activation = "relu",
        celu_alpha: float | None = None,
        dropout: float = 0.0,
        frozen_scale: bool = False,
        batch_norm_eps: float = 1e-5,
        batch_norm_momentum: float = 0.1,
        ghost_batch_size: int | None = None,
    ) -> VGG: ...


_DOC = """Build VGG-{depth} with batch norm for small images.

    {parameters:,} parameters for ten classes: the paper's convolutions, and one linear layer on the
    mean over the map in place of its three. Convolutions are drawn from He's normal distribution
    (fan out) by the global generator: call ``torch.manual_seed`` before.

    Args:
        num_classes: Outputs, at least 1. Default 10.
        in_channels: Channels of the images, at least 1. Default 3.
        width: Channels of the first stage; the next have 2, 4, 8 and 8 times as many. Default 64.
        act: Activation: a name of ``ACTIVATIONS`` or a module class. Default "relu".
        celu_alpha: Smoothing of CELU, only with ``act="celu"``. None is 0.075, or 0.3 with
            ``frozen_scale``.
        dropout: Probability that a feature is dropped before the head. Default 0.
        frozen_scale: Whether the norms' scales stay 1. Default False.
        batch_norm_eps: Added to the variance. Default 1e-5.
        batch_norm_momentum: Weight of the newest batch in the running statistics. Default 0.1.
        ghost_batch_size: Images that share batch-norm statistics, at least 2; see
            ``GhostBatchNorm2d``. Default None, the whole batch.

    Returns:
        A ``VGG``: float [N, in_channels, H, W] of at least 8 x 8 pixels to logits
        [N, num_classes].

    Raises:
        ValueError: If a number is out of its range or ``act`` isn't known.
        TypeError: If an argument has the wrong type.

    Reference:
        Simonyan and Zisserman, "Very Deep Convolutional Networks", arXiv 1409.1556, table 1 (A, B,
        D, E).
    """


def _builder(depth: int, convolutions: Sequence[int], parameters: int) -> VGGBuilder:
    def build(
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        width: int = 64,
        act: Activation = "relu",
        celu_alpha: float | None = None,
        dropout: float = 0.0,
        frozen_scale: bool = False,
        batch_norm_eps: float = 1e-5,
        batch_norm_momentum: float = 0.1,
        ghost_batch_size: int | None = None,
    ) -> VGG:
        check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        check_fraction("dropout", dropout)
        norm, activation = norm_and_act(
            act=act,
            celu_alpha=celu_alpha,
            frozen_scale=frozen_scale,
            batch_norm_eps=batch_norm_eps,
            batch_norm_momentum=batch_norm_momentum,
            ghost_batch_size=ghost_batch_size,
        )
        return VGG(
            convolutions,
            num_classes,
            in_channels,
            width=width,
            norm=norm,
            act=activation,
            dropout=dropout,
        )

    build.__name__ = build.__qualname__ = f"vgg{depth}"
    build.__doc__ = _DOC.format(depth=depth, parameters=parameters)
    return build


vgg11 = _builder(11, (1, 1, 2, 2, 2), 9_231_114)
vgg13 = _builder(13, (2, 2, 2, 2, 2), 9_416_010)
vgg16 = _builder(16, (2, 2, 3, 3, 3), 14_728_266)
vgg19 = _builder(19, (2, 2, 4, 4, 4), 20_040_522)
