"""Random brightness and contrast of each image. Shapes: N images, C channels, H rows, W columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks._checks import check_fraction, check_non_negative
from fasttricks.transforms._base import Shape, Transform
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._layout import memory_format_of


@dataclass(frozen=True)
class RandomIntensity(Transform[tuple[Tensor, Tensor]]):
    """Make each image brighter or darker, and its contrast higher or lower: ``(x + a) b``.

    ``a`` is uniform in ``[-shift, shift]`` and ``b`` in ``[1 - scale, 1 + scale]``, a draw of each
    per image. Best after ``Normalize``, where ``shift`` counts in standard deviations of the set;
    uint8 images are taken as 0..1, and rounded and clipped to 0..255.

    Args:
        shift: largest offset, at least 0; 0.14 by default.
        scale: largest relative change of contrast, 0 to 1; 0.13 by default.

    Raises:
        TypeError: a number is none, or images are neither uint8 nor floating.
        ValueError: a number is out of its range.

    Example:
        >>> RandomIntensity()(torch.zeros(4, 3, 32, 32)).amax((1, 2, 3)).shape
        torch.Size([4])

    Reference:
        The jitter of the CIFAR-10 record of Hiverge (2025): 0.1399 and 0.1308.
    """

    shift: float = 0.14
    scale: float = 0.13

    def __post_init__(self) -> None:
        check_non_negative("shift", self.shift)
        check_fraction("scale", self.scale)

    @property
    @override
    def moves_pixels(self) -> bool:
        return False

    def sample(self, draws: Draws, shape: Shape) -> tuple[Tensor, Tensor]:
        """Offset and factor of each image, each of shape [N]."""
        offset, factor = (2 * draws.uniform(2) - 1).unbind(1)
        return self.shift * offset, 1 + self.scale * factor

    def apply(self, images: Tensor, params: tuple[Tensor, Tensor]) -> Tensor:
        """The changed images, in their dtype and memory format."""
        offset, factor = (value[:, None, None, None] for value in params)
        if images.dtype == torch.uint8:
            changed = ((images / 255 + offset) * factor * 255).round().clamp(0, 255)
        elif images.is_floating_point():
            # the sum is a new tensor, which the product may change in place
            changed = (images + offset.to(images.dtype)).mul_(factor.to(images.dtype))
        else:
            raise TypeError(f"images must be uint8 or floating, got dtype={images.dtype}")
        return changed.to(images.dtype).contiguous(memory_format=memory_format_of(images))
