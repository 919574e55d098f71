"""ResNet-18 to 152 (He 2015), for small images or with the ImageNet stem.

Modules are named as torchvision's, so that with ``stem="imagenet"`` its state dicts load.
Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from fasttricks._checks import check_choice, check_fraction
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
from fasttricks.models._drop_path import DropPath

torch.fx.wrap("check_image_size")  # fx has no sizes to look at

Stem = Literal["small", "imagenet"]


def projection(
    in_channels: int, out_channels: int, stride: int, norm: MakeNorm
) -> nn.Module | None:
    """Make a shortcut of a 1 x 1 convolution where the shape changes (the paper's option B)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(convolution(in_channels, out_channels, 1, stride), norm(out_channels))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: ``act(shortcut(x) + body(x))``."""

    expansion = 1
    shortcut: Callable[[int, int, int, MakeNorm], nn.Module | None] = staticmethod(projection)

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
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn1 = norm(channels)
        self.act1 = act()
        self.conv2 = convolution(channels, channels, 3, 1)
        self.bn2 = norm(channels)
        self.drop_path = DropPath(drop_path)
        self.downsample = self.shortcut(in_channels, channels, stride, norm)
        self.act2 = act()

    def forward(self, x: Tensor) -> Tensor:
        body = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.act2(shortcut + self.drop_path(body))
        return out


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride, as torchvision's), 1 x 1 to four times the channels."""

    expansion = 4

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
        out_channels = channels * self.expansion
        self.conv1 = convolution(in_channels, channels, 1, 1)
        self.bn1 = norm(channels)
        self.act1 = act()
        self.conv2 = convolution(channels, channels, 3, stride)
        self.bn2 = norm(channels)
        self.act2 = act()
        self.conv3 = convolution(channels, out_channels, 1, 1)
        self.bn3 = norm(out_channels)
        self.drop_path = DropPath(drop_path)
        self.downsample = projection(in_channels, out_channels, stride, norm)
        self.act3 = act()

    def forward(self, x: Tensor) -> Tensor:
        body = self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))
        body = self.bn3(self.conv3(body))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.act3(shortcut + self.drop_path(body))
        return out


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, the mean over the map, and a linear head.

    Made by ``resnet18`` and its like, which choose the pieces and document the arguments.

    Attributes:
        fc: The ``nn.Linear`` head, named as torchvision's; ``head`` is the same.
        min_size: Smallest side of an image: 8 pixels, with the ImageNet stem 32.
    """

    logit_scale = 1.0
    pool = staticmethod(global_mean_pool)

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        *,
        width: int,
        stem: Stem,
        norm: MakeNorm,
        act: Make,
        drop_path: float,
        dropout: float,
    ) -> None:
        super().__init__()
        imagenet = stem == "imagenet"
        self.min_size = 32 if imagenet else 8
        self.conv1 = convolution(in_channels, width, 7 if imagenet else 3, 2 if imagenet else 1)
        self.bn1 = norm(width)
        self.act = act()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else None
        before, done = width, 0
        for stage, depth in enumerate(depths):
            channels = width * 2**stage
            blocks = []
            for place in range(depth):
                # Later blocks are dropped more often (Huang 2016, section 3: linear decay).
                share = (done + place + 1) / sum(depths)
                stride = 2 if stage and place == 0 else 1
                options = {"norm": norm, "act": act, "drop_path": drop_path * share}
                blocks.append(block(before, channels, stride=stride, **options))  # type: ignore[arg-type]
                before = channels * block.expansion
            done += depth
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(before, num_classes)
        init_convolutions_(self)

    @property
    def head(self) -> nn.Linear:
        """The linear head."""
        return self.fc

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module keeps a module under the name given, whatever property has it.
        super().__setattr__("fc" if name == "head" else name, value)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to features."""
        check_image_size(images, min_size=self.min_size)
        x: Tensor = self.act(self.bn1(self.conv1(images)))
        x = x if self.maxpool is None else self.maxpool(x)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.fc(self.dropout(self.pool(self.forward_features(images))))
        return logits


class ResNetBuilder(Protocol):
    """The signature that all builders of this family share."""

    def __call__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        width: int = 64,
        act: Activation = "relu",
        celu_alpha: float | None = None,
        stem: Stem = "small",
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        frozen_scale: bool = False,
        batch_norm_eps: float = 1e-5,
        batch_norm_momentum: float = 0.1,
        ghost_batch_size: int | None = None,
    ) -> ResNet: ...


_DOC = """Build {title}.

    {parameters:,} parameters for ten classes of small images. Convolutions are drawn from He's
    normal distribution (fan out) by the global generator: call ``torch.manual_seed`` before.

    Args:
        num_classes: Outputs, at least 1. Default 10.
        in_channels: Channels of the images, at least 1. Default 3.
        width: Channels of the stem and the first stage, at least 1. Default 64.
        act: Activation: a name of ``ACTIVATIONS`` or a module class. Default "relu".
        celu_alpha: Smoothing of CELU, only with ``act="celu"``. None is 0.075, or 0.3 with
            ``frozen_scale``.
        stem: "small" (default), a 3 x 3 convolution, for images of 8 pixels and more; "imagenet",
            7 x 7 with stride 2 and a max-pool, for 32 and more: torchvision's network, whose state
            dicts load.
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
        A ``ResNet``: float [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        ValueError: If a number is out of its range, ``zero_init_residual`` meets ``frozen_scale``,
            or ``act`` or ``stem`` isn't known.
        TypeError: If an argument has the wrong type.

    Reference:
        He et al., "Deep Residual Learning", arXiv 1512.03385, table 1. The small stem is that of
        the field's CIFAR code. Drop path: Huang et al., "Deep Networks with Stochastic Depth",
        arXiv 1603.09382.
    """


def _builder(
    name: str, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], parameters: int
) -> ResNetBuilder:
    def build(
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        width: int = 64,
        act: Activation = "relu",
        celu_alpha: float | None = None,
        stem: Stem = "small",
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        frozen_scale: bool = False,
        batch_norm_eps: float = 1e-5,
        batch_norm_momentum: float = 0.1,
        ghost_batch_size: int | None = None,
    ) -> ResNet:
        check_sizes(num_classes=num_classes, in_channels=in_channels, width=width)
        check_choice("stem", stem, ("small", "imagenet"))
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
        model = ResNet(
            block,
            depths,
            num_classes,
            in_channels,
            width=width,
            stem=stem,
            norm=norm,
            act=activation,
            drop_path=drop_path,
            dropout=dropout,
        )
        if zero_init_residual:
            zero_residuals_(model)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = _DOC.format(
        title=f"ResNet-{name.removeprefix('resnet')}", parameters=parameters
    )
    return build


def zero_residuals_(model: nn.Module) -> None:
    """Set the scale of each block's last norm to 0, so that the block starts as its shortcut."""
    for module in model.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]


def init_convolutions_(model: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution, by the fan out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


resnet18 = _builder("resnet18", BasicBlock, (2, 2, 2, 2), 11_173_962)
resnet34 = _builder("resnet34", BasicBlock, (3, 4, 6, 3), 21_282_122)
resnet50 = _builder("resnet50", Bottleneck, (3, 4, 6, 3), 23_520_842)
resnet101 = _builder("resnet101", Bottleneck, (3, 4, 23, 3), 42_512_970)
resnet152 = _builder("resnet152", Bottleneck, (3, 8, 36, 3), 58_156_618)
