"""Random translation, or pad and crop. Shapes: N images, C channels, H rows, W columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fasttricks._checks import check_choice, check_integer
from fasttricks.transforms._base import Shape, Transform
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._layout import take_pixels

_MODES = ("reflect", "zero")


@dataclass(frozen=True)
class RandomTranslate(Transform[Tensor]):
    """Move each image by up to ``padding`` pixels: pad, then crop at random to the same size.

    The shift (dy, dx) is uniform over the (2·padding + 1)² pairs, each image its own; pixel (y, x)
    of the result is (y + dy, x + dx) of the image. No padded copy is made: the border is index
    arithmetic.

    Args:
        padding: pixels, from 0; less than height and width for "reflect".
        mode: what lies outside the image. "reflect" mirrors it without repeating the border pixel
            (``torch.nn.functional.pad(mode="reflect")``); "zero" is 0, which is black before
            ``Normalize`` and the mean colour after it.

    Raises:
        TypeError: padding is not a whole number.
        ValueError: padding is negative or too large for the images, or mode unknown.

    Example:
        >>> images = torch.arange(9.0).view(1, 1, 3, 3)
        >>> RandomTranslate(2).apply(images, torch.tensor([[1, -1]]))
        tensor([[[[4., 3., 4.],
                  [7., 6., 7.],
                  [4., 3., 4.]]]])

    Reference:
        He et al., Deep Residual Learning (arXiv 1512.03385), section 4.2 (zeros); Jordan, 94% on
        CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv 2404.00498), section 3 (reflected, 2
        pixels).
    """

    padding: int
    mode: str = "reflect"

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", check_integer("padding", self.padding))
        check_choice("mode", self.mode, _MODES)

    def sample(self, draws: Draws, shape: Shape) -> Tensor:
        """Each image's shift (dy, dx): int64, shape [N, 2]."""
        if self.mode == "reflect" and self.padding >= min(shape[2:]):
            raise ValueError(
                f"padding must be less than height and width for mode='reflect', "
                f"got padding={self.padding} and images of {shape[2]}x{shape[3]}; "
                f"use a smaller padding or mode='zero'"
            )
        return draws.integers(-self.padding, self.padding + 1, 2)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        """The moved images."""
        return translate(images, params, mode=self.mode)


def translate(images: Tensor, shifts: Tensor, *, mode: str = "reflect") -> Tensor:
    """Move each image: pixel (y, x) of the result is (y + dy, x + dx) of the image.

    Args:
        images: shape [N, C, H, W], any dtype.
        shifts: each image's (dy, dx) in pixels, int64, shape [N, 2]; below H and W in size for
            "reflect".
        mode: "reflect" or "zero", what lies outside of the image.

    Returns:
        Shape, dtype and memory format of ``images``.

    Example:
        >>> translate(torch.arange(4.0).view(1, 1, 1, 4), torch.tensor([[0, 1]]), mode="zero")
        tensor([[[[1., 2., 3., 0.]]]])
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + shifts[:, :1]
    columns = torch.arange(width, device=images.device) + shifts[:, 1:]
    if mode == "reflect":
        return take_pixels(images, reflect_index(rows, height), reflect_index(columns, width))
    moved = take_pixels(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    outside = _outside(rows, height)[:, None, :, None] | _outside(columns, width)[:, None, None, :]
    # `moved` is this function's own copy
    return moved.masked_fill_(outside, 0)


def reflect_index(index: Tensor, size: int) -> Tensor:
    """Fold -size < index < 2·size - 1 into 0..size - 1: -1 becomes 1, and size becomes size - 2."""
    last = size - 1
    return last - (last - index.abs()).abs()


def _outside(index: Tensor, size: int) -> Tensor:
    return (index < 0) | (index >= size)
