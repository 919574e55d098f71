"""Image sizes that change with the epoch. Shapes: N images, C channels, H rows, W columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttricks._checks import check_integer
from fasttricks.transforms._base import Shape, Transform
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._layout import memory_format_of


@dataclass(frozen=True)
class ProgressiveResize(Transform[int | None]):
    """Train on small images first: from each given epoch on, squares of so many pixels.

    Bilinear, without antialiasing (``torch.nn.functional.interpolate``). The work of a convolution
    goes with the square of the side: 24 pixels cost 56 % of 32. Called alone on a batch, it is
    epoch 0.

    Args:
        sizes: epoch -> side in pixels; None leaves the images as they come, which is also so before
            the first epoch named.

    Raises:
        TypeError: sizes is not a mapping, or an epoch or side not a whole number.
        ValueError: sizes is empty, an epoch negative or a side less than 1.

    Example:
        >>> resize = ProgressiveResize({0: 24, 3: 28, 6: None})
        >>> [resize.size_at(epoch) for epoch in (0, 2, 3, 6, 100)]
        [24, 24, 28, None, None]

    Reference:
        Howard, Training Imagenet in 3 hours for USD 25; and CIFAR10 for USD 0.26 (fast.ai, 2018);
        Tan and Le, EfficientNetV2 (arXiv 2104.00298), section 4.
    """

    sizes: Mapping[int, int | None]

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, Mapping):
            raise TypeError(
                f"sizes must map epochs to pixels, such as {{0: 24, 3: None}}, "
                f"got sizes={self.sizes!r}"
            )
        if not self.sizes:
            raise ValueError(f"sizes must have at least one epoch, got sizes={self.sizes!r}")
        sizes = {
            check_integer("each epoch of sizes", epoch): _checked_size(size)
            for epoch, size in self.sizes.items()
        }
        object.__setattr__(self, "sizes", dict(sorted(sizes.items())))

    def __hash__(self) -> int:
        return hash(tuple(self.sizes.items()))

    def size_at(self, epoch: int) -> int | None:
        """The side in pixels at ``epoch``; None for the images' own size."""
        reached = [size for start, size in self.sizes.items() if start <= epoch]
        return reached[-1] if reached else None

    def sample(self, draws: Draws, shape: Shape) -> int | None:
        """The side at the epoch of ``draws``; nothing is random."""
        return self.size_at(draws.epoch)

    def apply(self, images: Tensor, params: int | None) -> Tensor:
        """The resized images; ``images`` itself where there is nothing to do."""
        return images if params is None else resize(images, params)

    def output_shape(self, shape: Shape, params: int | None) -> Shape:
        """(N, C, side, side)."""
        return shape if params is None else (*shape[:2], params, params)


def _checked_size(size: object) -> int | None:
    return None if size is None else check_integer("each size of sizes", size, minimum=1)


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear images of ``size`` by ``size`` pixels, without antialiasing.

    Integer images are computed in float32 and rounded, which may differ by 1 from one device to
    another where it comes out halfway.

    Args:
        images: shape [N, C, H, W], any dtype.
        size: side in pixels.

    Returns:
        Shape [N, C, size, size], dtype and memory format of ``images``; the same tensor if it has
        that size already.
    """
    if tuple(images.shape[2:]) == (size, size):
        return images
    if len(images) == 0:
        return images.new_empty(0, images.shape[1], size, size)
    working = images if images.is_floating_point() else images.to(torch.float32)
    result = F.interpolate(working, (size, size), mode="bilinear", antialias=False)
    if not images.is_floating_point():
        result = result.round_().to(images.dtype)
    return result.contiguous(memory_format=memory_format_of(images))
