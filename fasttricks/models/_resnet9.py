"""The nine-layer residual network of DAWNBench."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fasttricks._checks import check_fraction, check_positive
from fasttricks.models._activation import Activation
from fasttricks.models._blocks import (
    ConvNormAct,
    PoolPlace,
    Residual,
    check_image_size,
    check_sizes,
    check_zero_init,
    global_max_pool,
    norm_and_act,
)

torch.fx.wrap("check_image_size")  # fx has no sizes to look at


class ResNet9(nn.Module):
    """Eight 3 x 3 convolutions, two of the pairs residual, and a linear head.

    ``prep -> layer1 (pool) -> residual1 -> layer2 (pool) -> layer3 (pool) -> residual3 -> global
    max-pool -> head * logit_scale``. Made by ``resnet9``, which chooses the pieces.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the first layer; the next have 2, 4 and 8 times as many.
        block: Makes a ``ConvNormAct`` from (in_channels, out_channels, pool=...).
        pool: Where the three pooling blocks pool, "first" or "last".
        logit_scale: Factor on the logits.
        drop_path: Probability that an image skips the second residual pair; half as likely the
            first.
        dropout: Probability that a feature is dropped before the head.

    Attributes:
        head: The ``nn.Linear`` without bias.
        logit_scale: Factor on the logits.
        min_size: Smallest side of an image, 8 pixels (three poolings).
    """

    min_size = 8

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        width: int,
        block: Callable[..., ConvNormAct],
        pool: PoolPlace,
        logit_scale: float,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.prep = block(in_channels, width)
        self.layer1 = block(width, 2 * width, pool=pool)
        self.residual1 = _residual(2 * width, block, drop_path / 2)
        self.layer2 = block(2 * width, 4 * width, pool=pool)
        self.layer3 = block(4 * width, 8 * width, pool=pool)
        self.residual3 = _residual(8 * width, block, drop_path)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8 * width, num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to features [N, 8 * width, H // 8, W // 8]."""
        check_image_size(images, min_size=self.min_size)
        x: Tensor = self.residual1(self.layer1(self.prep(images)))
        x = self.residual3(self.layer3(self.layer2(x)))
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.head(self.dropout(global_max_pool(self.forward_features(images))))
        return logits * self.logit_scale


def _residual(channels: int, block: Callable[..., ConvNormAct], drop_path: float) -> Residual:
    body = nn.Sequential(block(channels, channels), block(channels, channels))
    return Residual(body, drop_path=drop_path)


def resnet9(
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    width: int = 64,
    act: Activation = "celu",
    celu_alpha: float | None = None,
    logit_scale: float = 0.125,
    pool_first: bool = False,
    zero_init_residual: bool = False,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    frozen_scale: bool = False,
    batch_norm_eps: float = 1e-5,
    batch_norm_momentum: float = 0.1,
    ghost_batch_size: int | None = None,
) -> ResNet9:
    """Build David Page's ResNet-9, the network of the DAWNBench CIFAR-10 records.

    Eight convolutions of ``width`` to ``8 * width`` channels, three 2 x 2 max-pools, two residual
    pairs, a global max-pool, and a linear head without bias whose logits are multiplied by
    ``logit_scale``. 6,573,120 parameters for ten classes. Weights are torch's default
    initialisation, drawn from the global generator: call ``torch.manual_seed`` before.

    Args:
        num_classes: Outputs, at least 1. Default 10.
        in_channels: Channels of the images, at least 1. Default 3.
        width: Channels of the first layer, at least 1. Default 64.
        act: Activation: a name of ``ACTIVATIONS`` or a module class. Default "celu"; the first
            records (2018) used "relu".
        celu_alpha: Smoothing of CELU, only with ``act="celu"``. None is the value tuned by the
            author: 0.075, or 0.3 with ``frozen_scale``, whose channels are about 4 times larger.
        logit_scale: Factor on the logits, above 0. Default 1/8; with ``frozen_scale`` the author
            used 1/16.
        pool_first: Whether to pool before norm and activation: in the author's measurement a tenth
            less time an epoch for 0.1 points of accuracy. Default False.
        zero_init_residual: Whether the residual pairs start as the identity; not with
            ``frozen_scale``, which would keep them so. Default False.
        drop_path: Probability that an image skips the second residual pair; half as likely the
            first. Default 0.
        dropout: Probability that a feature is dropped before the head. Default 0.
        frozen_scale: Whether the norms' scales stay 1. Default False.
        batch_norm_eps: Added to the variance. Default 1e-5.
        batch_norm_momentum: Weight of the newest batch in the running statistics. Default 0.1.
        ghost_batch_size: Images that share batch-norm statistics, at least 2; see
            ``GhostBatchNorm2d``. Default None, the whole batch.

    Returns:
        A ``ResNet9``: float [N, in_channels, H, W] of at least 8 x 8 pixels to logits
        [N, num_classes].

    Raises:
        ValueError: If a number is out of its range, ``zero_init_residual`` meets ``frozen_scale``,
            or ``act`` isn't known.
        TypeError: If an argument has the wrong type.

    Example:
        >>> import torch
        >>> model = resnet9(num_classes=5, in_channels=1, width=4)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])

    Reference:
        Page, "How to Train Your ResNet 4: Architecture" (2018) and "8: Bag of Tricks" (2019).
    """
    check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
    check_positive("logit_scale", logit_scale)
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
    model = ResNet9(
        num_classes,
        in_channels,
        width=width,
        block=partial(ConvNormAct, norm=norm, act=activation),
        pool="first" if pool_first else "last",
        logit_scale=logit_scale,
        drop_path=drop_path,
        dropout=dropout,
    )
    if zero_init_residual:
        for residual in (model.residual1, model.residual3):
            nn.init.zeros_(residual.body.get_parameter("1.norm.weight"))
    return model
