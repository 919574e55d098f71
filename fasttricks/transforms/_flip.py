"""Horizontal flips: at random, and alternating. Shapes: N images, C channels, H rows, W columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fasttricks._checks import check_fraction
from fasttricks.transforms._base import Shape, Transform
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._layout import memory_format_of


@dataclass(frozen=True)
class RandomHorizontalFlip(Transform[Tensor]):
    """Mirror each image left to right with probability ``p``, each image by its own draw.

    Args:
        p: the probability, 0 to 1.

    Raises:
        TypeError: p is not a number.
        ValueError: p is not between 0 and 1.

    Example:
        >>> RandomHorizontalFlip(p=1.0)(torch.tensor([[[1, 2, 3]]]))
        tensor([[[3, 2, 1]]])
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_fraction("p", self.p)

    def sample(self, draws: Draws, shape: Shape) -> Tensor:
        """Which images are mirrored: bool, shape [N]."""
        return draws.uniform(1)[:, 0] < self.p

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        """The images, some mirrored."""
        return horizontal_flip(images, params)


@dataclass(frozen=True)
class AlternatingFlip(Transform[Tensor]):
    """Mirror each image at random in epoch 0, and from then on the other way in every other epoch.

    flip_e = flip_0 XOR (e odd), flip_0 by a fair draw from (seed, index): any two epochs in a row
    show both views of each image, where independent flips would show half of the images the same
    way twice. It needs the epoch and the images' indices, which ``DeviceLoader`` gives by
    ``draws``; called alone on a batch, without them, it is a random flip with p = 1/2.

    Example:
        >>> from fasttricks.transforms import Draws
        >>> draws = Draws(torch.arange(6), seed=0)
        >>> flip, shape = AlternatingFlip(), (6, 3, 32, 32)
        >>> first, second = flip.sample(draws, shape), flip.sample(draws.at_epoch(1), shape)
        >>> bool((first ^ second).all())
        True

    Reference:
        Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv 2404.00498), section 3.6.
    """

    def sample(self, draws: Draws, shape: Shape) -> Tensor:
        """Which images are mirrored: bool, shape [N]."""
        first = draws.at_epoch(0).uniform(1)[:, 0] < 0.5
        return first ^ (draws.epoch % 2 == 1)

    def apply(self, images: Tensor, params: Tensor) -> Tensor:
        """The images, some mirrored."""
        return horizontal_flip(images, params)


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror image n left to right where ``flip[n]``.

    Args:
        images: shape [N, C, H, W], any dtype.
        flip: bool, shape [N].

    Returns:
        Shape, dtype and memory format of ``images``.
    """
    n, c, h, w = images.shape
    storage = images.permute(0, 2, 3, 1).reshape(n, h, w, c)
    # Whole images are chosen from both views: quicker on a CPU than `where` or a gather of pixels,
    # which work in runs of C numbers.
    both = torch.cat([storage, storage.flip(2)]).view(2 * n, h * w * c)
    chosen = both.index_select(0, torch.arange(n, device=images.device) + n * flip)
    flipped = chosen.view(n, h, w, c).permute(0, 3, 1, 2)
    return flipped.contiguous(memory_format=memory_format_of(images))
